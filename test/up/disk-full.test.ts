/** The disk of the state directory fills up under a guest that writes and reads secrets, and gets room again. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { ClientError } from '../../src/cluster/index.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';

const mebibyte = 1024 * 1024;
/** The image takes 82 of them, twice while it is built. */
const diskMiB = 256;

/** `appended` and `read` tell how often a program was told that it did, the other files what else it was told. */
const guestScript = `
appends() { i=0; while [ ! -e /tmp/stop ]; do i=$((i+1))
  until echo "$i" | cat >>/run/metadata/guest/log 2>>/tmp/append-errors; do sleep 0.2; done; echo "$i" >/tmp/appended; done; }
reads() { n=0; while [ ! -e /tmp/stop ]; do
  if v=$(cat /run/metadata/secrets/db 2>>/tmp/read-errors); then n=$((n+1)); echo "$n" >/tmp/read; [ "$v" = hunter2 ] || echo "READ $v" >>/tmp/read-errors; else sleep 0.2; fi; done; }
appends & reads & wait; echo all-done >/tmp/ended
`;

const spec = `porthole: 1
metadata: { secrets: { db: hunter2 }, app: { load: ${JSON.stringify(guestScript)} } }
policy: [{ path: /secrets/db, owner: 0, mode: "0400" }]
`;

const makeDisk = (): string => {
  const base = mkdtempSync(path.join(tmpdir(), 'ph-full-'));
  chmodSync(base, 0o711);
  const disk = path.join(base, 'disk');
  mkdirSync(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${diskMiB}m,mode=0711`, 'tmpfs', disk]);
  return disk;
};

/** What was killed the moment before may still have files open there. */
const removeDisk = async (disk: string): Promise<void> => {
  await until('the disk to be unused', () => spawnSync('umount', [disk]).status === 0);
  rmSync(path.dirname(disk), { recursive: true });
};

/** All the room that there is goes into one file. */
const fill = (file: string): void => {
  const fd = openSync(file, 'a');
  const piece = new Uint8Array(mebibyte);
  try {
    for (let size = piece.length; size >= 1; ) {
      try {
        writeSync(fd, piece, 0, size);
      } catch (error) {
        assert.equal((error as NodeJS.ErrnoException).code, 'ENOSPC');
        size = Math.floor(size / 2);
      }
    }
  } finally {
    closeSync(fd);
  }
};

test('a full disk is told of to guests and over the API, and costs nothing that was acknowledged', {
  skip: process.getuid?.() === 0 ? false : 'mounting a small tmpfs needs root',
}, async (t) => {
  const stateDirectory = makeDisk();
  const filler = path.join(stateDirectory, 'filler');
  // In this order: a daemon that ends what is left needs room, and the directory.
  t.after(() => rmSync(filler, { force: true }));
  const machine = new UpMachine(t);
  t.after(() => removeDisk(stateDirectory));
  const start = (): Promise<void> => machine.spawn('--state', stateDirectory);
  const end = (): Promise<void> => machine.kill('SIGTERM');
  await start();
  const { client } = machine;
  await machine.tinyImage();
  await machine.done(
    await client.call('createVm', { body: { name: 'one', type: 'nano', image: { name: 'tiny' }, spec } }),
  );
  await machine.untilReady('one');
  const guest = async (file: string): Promise<string> => (await machine.type('one', `cat /tmp/${file}`)).trim();
  await machine.type('one', 'sh /run/metadata/app/load >/dev/null 2>&1 </dev/null &');
  await until('the guest to write and read', async () => Number(await guest('appended')) > 2, 60_000);

  // What the API acknowledges, until it has no room: the last rest of it is filled by small values.
  const acknowledged = new Map<string, string>();
  const write = async (key: string, text: string): Promise<void> => {
    await client.call('writeMetadata', { params: { name: 'one', path: key }, body: Buffer.from(text) });
    acknowledged.set(key, text);
  };
  const refusals: unknown[] = [];
  fill(filler);
  truncateSync(filler, statSync(filler).size - 2 * mebibyte);
  for (const size of [100_000, 10_000, 1_000, 1]) {
    for (let n = 0; n < 10_000; n++) {
      try {
        await write(`instance/of-${size}-${n % 20}`, `${n} `.padEnd(size, 'x'));
      } catch (error) {
        refusals.push(error);
        break;
      }
    }
  }
  assert.equal(refusals.length, 4, 'each size was refused at some time');
  for (const error of refusals) {
    assert.ok(error instanceof ClientError, String(error));
    assert.deepEqual([error.status, error.code], [507, 'FULL'], error.message);
    assert.match(error.message, /nothing was changed: .*the disk is full/);
  }
  await until('ENOSPC in the guest', async () => /No space left on device/.test(await guest('append-errors')), 60_000);
  await until('EIO for the secret', async () => /Input\/output error/.test(await guest('read-errors')), 60_000);
  const { warnings } = await client.call('getHost', {});
  assert.ok(
    warnings.some((warning) => /the audit log cannot be written \(ENOSPC\)/.test(warning)),
    warnings.join('; '),
  );
  // What everybody may read stays readable; reading a secret is recorded over the API too.
  const refusesSecret = async (): Promise<boolean> => {
    // A few bytes that the store gave back are room enough for a record.
    fill(filler);
    return read(machine, 'secrets/db').then(
      () => false,
      ({ code }: ClientError) => code === 'UNAVAILABLE',
    );
  };
  await until('the API to refuse a secret', refusesSecret, 60_000);
  for (const [key, text] of acknowledged) assert.equal(await read(machine, key), text, key);

  const [appendedFull, readFull] = [Number(await guest('appended')), Number(await guest('read'))];

  // A daemon does not start on a full disk. Where the store opens and there is no room for a tree, it waits for that.
  const pids = [machine.devicePid('one'), machine.qemuPid('one')];
  await end();
  fill(filler);
  await assert.rejects(start(), /the daemon does not start: .*the disk is full; free some room there/);
  const started = async (): Promise<boolean> => {
    truncateSync(filler, statSync(filler).size - 64 * 1024);
    return start().then(
      () => true,
      () => false,
    );
  };
  await until('the daemon to start', started, 60_000);
  fill(filler);
  t.diagnostic(`started with little room: ${(await client.call('getHost', {})).warnings.join('; ')}`);
  rmSync(filler);
  await until('the VM to be taken up', async () => (await client.call('getHost', {})).vms.length === 1);
  const after = [machine.devicePid('one'), machine.qemuPid('one')];
  assert.deepEqual(after, pids, machine.events.map((event) => JSON.stringify(event)).join('\n'));
  await until('the guest to append again', async () => Number(await guest('appended')) > appendedFull + 2, 60_000);
  await until('the guest to read the secret again', async () => Number(await guest('read')) > readFull + 2, 60_000);
  await write('instance/after', 'there is room');

  await machine.type('one', 'touch /tmp/stop; until [ -e /tmp/ended ]; do sleep 0.2; done');
  const appended = Number(await guest('appended'));
  const reads = Number(await guest('read'));
  for (const line of `${await guest('append-errors')}\n${await guest('read-errors')}`.split('\n').filter(Boolean))
    assert.match(line, /No space left on device|Input\/output error/);
  await end();
  await start();
  for (const [key, text] of acknowledged) assert.equal(await read(machine, key), text, key);
  // Nothing that a program was told had failed was done: not what waited for a daemon for too long either.
  assert.deepEqual(
    (await read(machine, 'guest/log')).trim().split('\n').map(Number),
    Array.from({ length: appended }, (_, index) => index + 1),
    'each line once, in order',
  );
  assert.deepEqual((await client.call('getHost', {})).warnings, []);
  const troubles = machine.events.flatMap((event) => (event.event === 'trouble' ? [event.what] : []));
  assert.deepEqual(
    troubles.filter((what) => /what none may|it ended/.test(what)),
    [],
    'no process was taken for a bad one',
  );
  assert.equal(await recorded(machine), reads, 'each read of the secret is recorded once');
  for (const what of new Set(troubles)) t.diagnostic(what);
  t.diagnostic(`${appended} appends, ${reads} reads, ${acknowledged.size} values`);
});

const read = async ({ client }: UpMachine, at: string): Promise<string> =>
  (await client.raw('readMetadata', { params: { name: 'one', path: at } })).bytes.toString();

/** How many reads of the secret were allowed, by the audit log. */
const recorded = async ({ client }: UpMachine): Promise<number> => {
  let count = 0;
  for (let cursor: string | undefined; ; ) {
    const query = { vm: 'one', path: '/secrets/db', verdict: 'allowed', limit: 500 } as const;
    const page = await client.call('queryAudit', { query: { ...query, ...(cursor !== undefined && { cursor }) } });
    count += page.events.length;
    if (page.next === undefined) return count;
    cursor = page.next;
  }
};
