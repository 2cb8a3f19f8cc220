/** Backup while writers write, restore elsewhere, and what becomes of those who remember the time before. */
import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { ClientError } from '../../src/cluster/index.ts';
import { openStores } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { runPorthole as run } from './porthole.ts';

const spec = `porthole: 1
metadata: { secrets: { db: hunter2-in-the-backup } }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;

const attach = async (machine: UpMachine, name: string): Promise<void> => {
  await machine.client.call('createVm', { body: { name, kind: 'attached', spec } });
  await until(
    `${name} to be served`,
    async () => (await machine.client.call('getVm', { params: { name } })).status === 'running',
    120_000,
  );
};

const lanes = 4;
const keys = (lane: number): readonly string[] => [`lane/${lane}/first`, `lane/${lane}/second`];

/** Each lane puts the same number at two paths in one transaction, until it is stopped. */
class Writers {
  readonly acknowledged = Array.from({ length: lanes }, () => 0);
  readonly #stop = new AbortController();
  readonly #all: Promise<unknown>;

  constructor(machine: UpMachine, name: string) {
    this.#all = Promise.all(this.acknowledged.map((_, lane) => this.#write(machine, name, lane)));
    this.#all.catch(() => {});
  }

  async #write(machine: UpMachine, name: string, lane: number): Promise<void> {
    while (!this.#stop.signal.aborted) {
      const text = String(this.acknowledged[lane]! + 1);
      const edits = keys(lane).map((key) => ({ op: 'put' as const, path: `/${key}`, text }));
      await machine.client.call('editMetadata', { params: { name }, body: { edits } });
      this.acknowledged[lane]! += 1;
    }
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#all;
  }
}

const read = async (machine: UpMachine, name: string, at: string): Promise<string> =>
  (await machine.client.raw('readMetadata', { params: { name, path: at } })).bytes.toString();

const revisionOf = async (machine: UpMachine, name: string): Promise<readonly [number, number]> => {
  const { bytes } = await machine.client.raw('readMetadata', { params: { name, path: '' } });
  const { revision } = JSON.parse(bytes.toString()) as { readonly revision: string };
  return revision.split('.').map(Number) as [number, number];
};

const refused = (code: string) => (error: unknown) => error instanceof ClientError && error.code === code;

test('a backup made while writers write becomes the store of another state directory, and all of before is refused', async (t) => {
  const machine = new UpMachine(t);
  await machine.start();
  const { client, directory } = machine;
  await Promise.all([attach(machine, 'one'), attach(machine, 'two')]);
  const devicesBefore = await idsOf(machine);
  const writers = new Writers(machine, 'one');
  await until('writes', () => writers.acknowledged.every((n) => n > 2), 60_000);

  const before = [...writers.acknowledged];
  const file = path.join(directory, 'monday');
  const made = await run(machine, 'backup', file);
  assert.deepEqual([made.code, made.err], [0, ''], made.err);
  assert.match(
    made.out,
    /KiB in ".*monday"; disks, images, console logs, audit records and the key file are not in it/,
  );
  assert.equal(statSync(file).mode & 0o777, 0o600);
  const bytes = readFileSync(file);
  assert.equal(bytes.includes('hunter2'), false, 'a secret is in the backup in clear');
  const again = await run(machine, 'backup', file);
  assert.equal(again.code, 1);
  assert.match(again.err, /"[^"]*monday" exists already, and is not overwritten; give another name/);
  assert.deepEqual(readFileSync(file), bytes);

  const atBackup = [...writers.acknowledged];
  await until(
    'writes after the backup',
    () => writers.acknowledged.every((n, lane) => n > atBackup[lane]! + 2),
    60_000,
  );
  await writers.stop();
  await attach(machine, 'three');
  const { headers } = await client.raw('readMetadata', { params: { name: 'one', path: 'lane/0/first' } });
  const [epochBefore, revisionBefore] = await revisionOf(machine, 'one');
  const daemonRuns = await run(machine, 'restore', file, '--state', path.join(directory, 'state'));
  assert.equal(daemonRuns.code, 1);
  assert.match(daemonRuns.err, /a host daemon uses ".*state": stop it first/);
  const strays = await idsOf(machine);
  await machine.release();

  const state = path.join(directory, 'other');
  const keyFile = path.join(directory, 'state/key');
  const noKey = await run(machine, 'restore', file, '--state', state);
  assert.equal(noKey.code, 1);
  assert.match(noKey.err, /there is no key file ".*other\/key".*name it with --key; nothing was changed/);
  writeFileSync(path.join(directory, 'wrong'), `${Buffer.alloc(32, 7).toString('base64')}\n`, { mode: 0o600 });
  const wrongKey = await run(machine, 'restore', file, '--state', state, '--key', path.join(directory, 'wrong'));
  assert.equal(wrongKey.code, 1);
  assert.match(
    wrongKey.err,
    /"[^"]*wrong" is not the key of ".*monday": it is key [0-9a-f]{16}, and the store was sealed by key [0-9a-f]{16}/,
  );
  const restored = await run(machine, 'restore', file, '--state', state, '--key', keyFile);
  assert.deepEqual([restored.code, restored.err], [0, ''], restored.err);
  assert.match(restored.out, /^restored into ".*other", as epoch \d+\nthere was no store before\n/);
  assert.match(restored.out, /next: porthole up --state '.*other' --key '.*key'\n$/);

  await machine.start({ stateDirectory: state, keyFile });
  const { vms } = await client.call('listVms', {});
  assert.deepEqual(vms.map(({ name }) => name).toSorted(), ['one', 'two']);
  for (let lane = 0; lane < lanes; lane++) {
    const [first, second] = await Promise.all(keys(lane).map((key) => read(machine, 'one', key)));
    assert.equal(first, second, `lane ${lane} is half done`);
    const n = Number(first);
    assert.ok(
      n >= before[lane]! && n <= atBackup[lane]! + 1,
      `lane ${lane}: ${n} of ${before[lane]} to ${atBackup[lane]}`,
    );
  }
  assert.equal(await read(machine, 'two', 'secrets/db'), 'hunter2-in-the-backup');

  const [epoch, revision] = await revisionOf(machine, 'one');
  assert.ok(epoch > epochBefore, `epoch ${epoch} after ${epochBefore}`);
  assert.ok(revision > revisionBefore, `revision ${revision} after ${revisionBefore}`);
  const put = { params: { name: 'one', path: 'lane/0/first' }, body: Buffer.from('late') };
  await assert.rejects(
    client.call('writeMetadata', { ...put, headers: { 'if-match': headers['etag']! } }),
    refused('PRECONDITION_FAILED'),
  );
  const signal = AbortSignal.timeout(60_000);
  const lastEventId = `${epochBefore}.${revisionBefore}`;
  await assert.rejects(
    client.events('watchMetadata', { params: { name: 'one' }, lastEventId, signal }).next(),
    refused('COMPACTED'),
  );

  // What ran before serves the restored tree; what the backup knows nothing of is named.
  assert.deepEqual(await idsOf(machine), devicesBefore);
  await until('a write to be applied', async () => (await client.call('writeMetadata', put)).notApplied.length === 0);
  const trouble = machine.events.flatMap((event) => (event.event === 'trouble' ? [event] : []));
  const left = trouble.find(({ vm }) => vm === 'three');
  assert.match(left?.what ?? '', /it runs here, and the store has no such VM.*To end it: kill \d+/);
  const stray = strays.find(([name]) => name === 'three')![1];
  assert.match(left!.what, new RegExp(String.raw`\b${stray}\b`));
  process.kill(stray, 'SIGKILL');
});

test('a VM that runs is taken up by a restored store, and one whose image is elsewhere says so', async (t) => {
  const machine = new UpMachine(t);
  await machine.start();
  const { client, directory } = machine;
  await machine.tinyImage();
  const body = { type: 'nano', image: { name: 'tiny' }, spec } as const;
  await machine.done(await client.call('createVm', { body: { ...body, name: 'warm' } }));
  await machine.done(await client.call('createVm', { body: { ...body, name: 'cold', start: false } }));
  await machine.untilReady('warm');
  const secret = { name: 'warm', path: 'secrets/db' };
  const file = path.join(directory, 'backup');
  assert.equal((await run(machine, 'backup', file)).code, 0);
  await client.call('writeMetadata', { params: secret, body: Buffer.from('after-the-backup') });
  assert.equal((await machine.type('warm', 'cat /run/metadata/secrets/db')).trim(), 'after-the-backup');
  const ofBefore = [machine.qemuPid('warm'), machine.devicePid('warm'), machine.keeperPid];
  assert.ok(ofBefore.every((pid) => pid !== undefined));
  await machine.release();

  const keyFile = path.join(directory, 'state/key');
  {
    await using stores = await openStores({ directory: path.join(directory, 'state/store'), keyFile });
    await stores.region.commit({ operations: [{ type: 'put', key: 'vm/warm', value: Buffer.from('{}') }] });
  }
  // A daemon that cannot take a VM up leaves all that runs for it alone, the keeper too.
  await machine.start();
  assert.match((await client.call('getHost')).warnings.join('; '), /VM warm cannot be taken up/);
  await machine.release();

  const other = path.join(directory, 'other');
  assert.equal((await run(machine, 'restore', file, '--state', other, '--key', keyFile)).code, 0);
  await machine.start({ stateDirectory: other, keyFile });
  await until(
    'the VM to be taken up',
    async () => (await client.call('getVm', { params: { name: 'warm' } })).status === 'running',
    120_000,
  );
  assert.deepEqual([machine.qemuPid('warm'), machine.devicePid('warm'), machine.keeperPid], ofBefore);
  assert.match(await machine.console('warm'), /tiny: ready/, 'what its console said before is here too');
  await client.call('writeMetadata', {
    params: { name: 'warm', path: 'instance/told' },
    body: Buffer.from('by the new'),
  });
  assert.equal((await machine.type('warm', 'cat /run/metadata/instance/told')).trim(), 'by the new');
  assert.equal((await machine.type('warm', 'cat /run/metadata/secrets/db')).trim(), 'hunter2-in-the-backup');

  const { operation } = await client.call('startVm', { params: { name: 'cold' } });
  const ended = await client.finished(operation.id, { signal: AbortSignal.timeout(120_000) });
  assert.equal(ended.state, 'failed');
  assert.match(ended.error?.detail ?? '', /image/);
  const { status, reason } = await client.call('getVm', { params: { name: 'cold' } });
  assert.equal(status, 'failed');
  assert.match(reason, /image/);
  t.diagnostic(`reason: ${reason}`);
});

/** VMs and their device processes. */
const idsOf = async (machine: UpMachine): Promise<(readonly [name: string, pid: number])[]> => {
  const { vms } = await machine.client.call('listVms', {});
  const found: (readonly [string, number])[] = [];
  for (const { name } of vms)
    found.push([name, await until(`the device process of ${name}`, () => machine.devicePid(name), 60_000)]);
  return found.toSorted(([a], [b]) => (a < b ? -1 : 1));
};
