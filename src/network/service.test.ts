import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { SessionLauncher } from '../qemu/index.ts';
import { HostNetwork } from './host-network.ts';
import { Service } from './service.ts';

const directoryOf = (t: { after(run: () => void): void }): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-network-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
};

test('Service finds what an earlier one started, starts it anew for another configuration, and leaves nothing', async (t) => {
  const directory = directoryOf(t);
  const ends: string[] = [];
  const open = (): Service =>
    new Service({
      name: 'sleeper',
      description: 'a test',
      directory,
      launcher: new SessionLauncher(),
      command: ({ configuration, mark }) => [
        'sh',
        '-c',
        'grep -q start "$0" || exit 3; : > "$1"; exec sleep 600',
        configuration,
        mark,
      ],
      check: async ({ configuration }) => assert.match(readFileSync(configuration, 'utf8'), /^[a-z0-9 ]+$/),
      onEnd: (why) => ends.push(why),
    });
  const pid = (): number => (JSON.parse(readFileSync(join(directory, 'sleeper.json'), 'utf8')) as { pid: number }).pid;
  const first = open();
  await first.run('start 1');
  const one = pid();
  await first.run('start 1');
  first.release();
  const second = open();
  await second.run('start 1');
  assert.equal(pid(), one);
  // What is refused changes nothing.
  await assert.rejects(second.run('START'));
  await second.run('start 1');
  assert.equal(pid(), one);
  await second.run('start 2');
  assert.notEqual(pid(), one);
  assert.equal(existsSync(`/proc/${one}`), false);
  await assert.rejects(second.run('fail'), /sleeper ended/);
  await second.run('start 3');
  const last = pid();
  await second.stop();
  assert.equal(existsSync(`/proc/${last}`), false);
  assert.deepEqual(
    readdirSync(directory).filter((file) => !file.endsWith('.log')),
    [],
  );
  assert.ok(ends.length <= 1, 'only the one that failed ended by itself');
});

test('HostNetwork refuses a VM at once where it does not run as root', async (t) => {
  const network = new HostNetwork({
    runDirectory: directoryOf(t),
    launcher: new SessionLauncher(),
    isRoot: false,
    onTrouble: assert.fail,
  });
  const guest = { id: 'i-1', mac: '52:54:00:00:00:01', ipv4: '10.0.0.2', dns: [], hasMetadata: false };
  await assert.rejects(network.attach(guest), /does not run as root; start it as root/);
  await network.detach('i-1');
  await network.release();
});
