import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { TOKEN_PROTOCOL, type ToDevice } from '../device/index.ts';
import { DeviceSession } from './device-session.ts';

const caller = { uid: 0, gid: 0, pid: 1 };

/** A session, and device processes that say what a test has them say. */
function begin() {
  const { authority } = new World({ content: { guest: {} } });
  const session = new DeviceSession({
    authority,
    config: () => ({
      type: 'config',
      vm: 'web-1',
      vhostUser: [{ path: '/run/a.sock', mode: 0o600 }],
      mounts: [],
      options: { spinMicros: 0, allowUnsealedMemory: false },
    }),
    onEvent: () => {},
    onAuditWaiting: () => {},
  });
  const device = (holder: string, protocol = 1) => {
    const received: ToDevice[] = [];
    const send = (message: ToDevice): void => void received.push(message);
    session.take({ type: 'hello', protocol, holder, pid: 1 }, send);
    return {
      received,
      make: (sequence: number, name: string) => {
        const parentIno = authority.snapshot.resolve('/guest')!.ino;
        const mutation = { op: 'create', caller, parentIno, name, mode: 0o600, umask: 0 } as const;
        session.take({ type: 'mutation', sequence, way: 'virtiofs', mutation, expiresMs: Infinity }, send);
        return received.findLast((message) => message.type === 'outcome')?.outcome.errno;
      },
    };
  };
  return { authority, device, session };
}

test('DeviceSession forgets what other processes sent when a new one says hello, and not when a successor does', () => {
  const { authority, device } = begin();
  assert.equal(device('first').make(1, 'a'), 0);
  assert.deepEqual(authority.rememberedHolders(), ['first']);
  const successor = device('first');
  assert.equal(successor.make(1, 'a'), 0, 'its predecessor’s mutation is answered, and not done twice');
  const second = device('second');
  assert.deepEqual(authority.rememberedHolders(), []);
  assert.equal(second.make(1, 'b'), 0);
  assert.deepEqual(authority.rememberedHolders(), ['second']);
});

test('DeviceSession tells each device process of the token, once it knows of it and where that one understands', () => {
  const { device, session } = begin();
  const told = ({ received }: ReturnType<typeof device>) =>
    received.flatMap((message) => (message.type === 'bootToken' ? [message.hash] : []));
  const first = device('first', TOKEN_PROTOCOL);
  assert.deepEqual(told(first), [], 'nobody knows yet');
  const hash = Uint8Array.of(1, 2, 3);
  session.bootToken(hash);
  assert.deepEqual(told(first), [hash]);
  const successor = device('first', TOKEN_PROTOCOL);
  assert.deepEqual(told(successor), [hash]);
  session.bootToken(undefined);
  assert.deepEqual(told(successor), [hash, undefined]);
  const older = device('first', TOKEN_PROTOCOL - 1);
  session.bootToken(hash);
  assert.deepEqual(told(older), []);
});
