import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { SessionLauncher } from '../qemu/index.ts';
import { HostNetwork } from './host-network.ts';
import { Service, type ServiceOptions } from './service.ts';

const directoryOf = (t: { after(run: () => void): void }): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-network-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
};

interface Sleepers {
  readonly directory: string;
  readonly ends: string[];
  open(more?: Partial<ServiceOptions>): Service;
  pid(): number;
}

/** Services whose program makes its mark and waits, where its configuration says so. */
const sleepers = (t: { after(run: () => void): void }): Sleepers => {
  const directory = directoryOf(t);
  const ends: string[] = [];
  return {
    directory,
    ends,
    open: (more) =>
      new Service({
        name: 'sleeper',
        description: 'a test',
        directory,
        launcher: new SessionLauncher(),
        command: ({ configuration, mark }) => [
          'sh',
          '-c',
          'grep -q start "$0" || exit 3; : > "$1"; exec tail -f "$0"',
          configuration,
          mark,
        ],
        argument: ({ configuration }) => configuration,
        check: async ({ configuration }) => assert.match(readFileSync(configuration, 'utf8'), /^[a-z0-9 ]+$/),
        onEnd: (why) => ends.push(why),
        ...more,
      }),
    pid: () => (JSON.parse(readFileSync(join(directory, 'sleeper.json'), 'utf8')) as { pid: number }).pid,
  };
};

test('Service finds what an earlier one started, starts it anew for another configuration, and leaves nothing', async (t) => {
  const { directory, ends, open, pid } = sleepers(t);
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

test('Service ends one that an earlier one started and was killed before it wrote it down', async (t) => {
  const { directory, open, pid } = sleepers(t);
  const first = open();
  await first.run('start 1');
  const lost = pid();
  rmSync(join(directory, 'sleeper.json'));
  first.release();
  const second = open();
  await second.run('start 1');
  assert.notEqual(pid(), lost);
  assert.equal(existsSync(`/proc/${lost}/exe`), false);
  await second.stop();
});

test('Service gives a configuration again that was written and not taken up', async (t) => {
  const { directory, open, pid } = sleepers(t);
  let isDeaf = true;
  const heard: string[] = [];
  const reload = async (): Promise<void> => {
    if (isDeaf) throw new Error('it does not hear');
    heard.push(readFileSync(join(directory, 'sleeper.conf'), 'utf8'));
  };
  const first = open({ reload });
  await first.run('start 1');
  const one = pid();
  await assert.rejects(first.run('start 2'), /does not hear/);
  await first.run('start 2');
  assert.notEqual(pid(), one, 'one that does not hear is started anew');
  const two = pid();
  isDeaf = false;
  await first.run('start 3');
  first.release();
  const record = join(directory, 'sleeper.json');
  // As it is where the daemon was killed while it was told.
  writeFileSync(record, readFileSync(record, 'utf8').replace('"start 3"', '""'));
  const second = open({ reload });
  await second.run('start 3');
  assert.deepEqual([heard, pid()], [['start 3', 'start 3'], two]);
  await second.stop();
});

test('Service starts one anew that was not ready in time', async (t) => {
  const { open, pid } = sleepers(t);
  const command = ['sh', '-c', 'trap "" TERM; while :; do sleep 0.1; done', 'conf'] as const;
  let isSlow = true;
  const options = { readyWithinMs: 300, endWithinMs: 300 };
  const service = open({
    ...options,
    command: ({ configuration, mark }) =>
      isSlow ? command : ['sh', '-c', ': > "$1"; exec tail -f "$0"', configuration, mark],
  });
  await assert.rejects(service.run('start 1'), /is not ready/);
  const slow = pid();
  isSlow = false;
  await service.run('start 1');
  assert.notEqual(pid(), slow);
  assert.equal(existsSync(`/proc/${slow}/exe`), false, 'also one that does not end when asked to');
  await service.stop();
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
