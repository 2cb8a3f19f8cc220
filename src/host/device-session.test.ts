import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SlowKeeper } from '../../test/tree/keepers.ts';
import { digest, specOf, World } from '../../test/tree/world.ts';
import { until } from '../../test/until.ts';
import { LINK_PROTOCOL, monotonicMs, type ToDevice } from '../device/index.ts';
import { Authority } from '../tree/index.ts';
import { EIO } from '../wire/index.ts';
import { DeviceSession } from './device-session.ts';

const caller = { uid: 0, gid: 0, pid: 1 };

/** A session, and device processes that say what a test has them say. */
function begin(authority = new World({ content: { guest: {} } }).authority) {
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
  const device = (holder: string, protocol = LINK_PROTOCOL) => {
    const received: ToDevice[] = [];
    const send = (message: ToDevice): void => void received.push(message);
    session.take({ type: 'hello', protocol, holder, pid: 1 }, send);
    return {
      received,
      make: (sequence: number, name: string, expiresMs = Infinity) => {
        const parentIno = authority.snapshot.resolve('/guest')!.ino;
        const mutation = { op: 'create', caller, parentIno, name, mode: 0o600, umask: 0 } as const;
        session.take({ type: 'mutation', sequence, way: 'virtiofs', mutation, expiresMs }, send);
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
  const first = device('first');
  assert.deepEqual(told(first), [], 'nobody knows yet');
  const hash = Uint8Array.of(1, 2, 3);
  session.bootToken(hash);
  assert.deepEqual(told(first), [hash]);
  const successor = device('first');
  assert.deepEqual(told(successor), [hash]);
  session.bootToken(undefined);
  assert.deepEqual(told(successor), [hash, undefined]);
  const older = device('first', 3);
  session.bootToken(hash);
  assert.deepEqual(told(older), []);
});

/** An authority whose keeper has not answered yet. */
async function slow() {
  const keeper = new SlowKeeper();
  const options = { vm: 'test', digest, audit: () => true, wallMs: Date.now };
  const authority = new Authority({ ...options, persist: keeper.persist });
  const loaded = authority.load(specOf({ content: { guest: {} } }));
  keeper.succeed();
  await loaded.durable;
  const next = () => new Authority({ ...options, restored: keeper.restored });
  return { keeper, next, ...begin(authority) };
}

const typesOf = (received: readonly ToDevice[], sequence: number): string[] =>
  received.flatMap((message) => ('sequence' in message && message.sequence === sequence ? [message.type] : []));

test('DeviceSession tells of what is being kept longer than it may wait, and answers it, and refuses only what is new', async () => {
  const { keeper, next, device } = await slow();
  const first = device('first');
  first.make(1, 'a', monotonicMs() + 10);
  await until('the sender to be told to wait', () => typesOf(first.received, 1).includes('taken'));
  assert.deepEqual(typesOf(first.received, 1), ['taken']);
  const { make, received } = device('first');
  make(1, 'a', 0);
  make(2, 'b', 0);
  assert.deepEqual(typesOf(received, 2), ['outcome']);
  assert.equal(typesOf(received, 1).includes('outcome'), false);
  keeper.succeed();
  await until('the outcome', () => typesOf(received, 1).includes('outcome'));
  assert.equal(make(2, 'b', 0), EIO);
  assert.equal(make(1, 'a', 0), 0, 'it was kept, whatever time it is');
  assert.equal(begin(next()).device('first').make(1, 'a', 0), 0, 'the next daemon knows of it too');
});

test('DeviceSession does not tell a device process of an earlier protocol what that does not know', async () => {
  const [old, current] = [await slow(), await slow()];
  const before = old.device('old', 3);
  before.make(1, 'a', monotonicMs() + 10);
  const now = current.device('current');
  now.make(1, 'a', monotonicMs() + 10);
  await until('the other to be told', () => typesOf(now.received, 1).includes('taken'));
  assert.deepEqual(typesOf(before.received, 1), []);
});
