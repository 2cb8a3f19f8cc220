/** A host daemon whose stores are copied to two etcds under a running VM, and which goes on there. */
import assert from 'node:assert/strict';
import { cpSync, mkdirSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { ClientError } from '../../src/cluster/index.ts';
import { EtcdCluster } from '../etcd/cluster.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { runPorthole as run } from './porthole.ts';

const spec = `porthole: 1
metadata:
  instance: { hostname: web-1 }
policy: []
`;

test('a store is copied to two etcds under a running VM, which lives on there while members of etcd die', async (t) => {
  const machine = new UpMachine(t);
  const [cluster, globalCluster] = await Promise.all([EtcdCluster.start(), EtcdCluster.start({ members: 1 })]);
  // After the machine, whose VMs are ended through it.
  t.after(() => Promise.all([cluster[Symbol.asyncDispose](), globalCluster[Symbol.asyncDispose]()]));
  await machine.start();
  const { client, directory } = machine;
  await machine.tinyImage();
  await machine.done(
    await client.call('createVm', { body: { name: 'one', type: 'nano', image: { name: 'tiny' }, spec } }),
  );
  await machine.untilReady('one');
  const { revision } = JSON.parse(
    (await client.raw('readMetadata', { params: { name: 'one', path: '' } })).bytes.toString(),
  ) as { readonly revision: string };

  const from = `sqlite:${path.join(directory, 'state')}`;
  const url = `etcd://${cluster.endpoints.join(',')}/west`;
  const globalUrl = `etcd://${globalCluster.endpoints.join(',')}/all`;
  const at = ['--global-store', globalUrl];
  await machine.release();
  const copied = await run(machine, 'store', 'copy', '--from', from, '--to', url, ...at, '--json');
  assert.equal(copied.code, 0, copied.err);
  assert((JSON.parse(copied.out) as { readonly keys: number }).keys > 10, copied.out);

  // Each store is in its own etcd.
  const storesIn = async (etcd: EtcdCluster): Promise<Set<string>> =>
    new Set((await etcd.ctl(['get', '', '--prefix', '--keys-only'])).match(/^\w+\/(region|global)(?=\/)/gm));
  assert.deepEqual(
    [await storesIn(cluster), await storesIn(globalCluster)],
    [new Set(['west/region']), new Set(['all/global'])],
  );
  const again = await run(machine, 'store', 'copy', '--from', from, '--to', url.replace(/west$/, 'else'), ...at);
  assert.deepEqual([again.code, again.err.includes(`"${globalUrl}" has`)], [1, true], again.err);
  // However long a busy machine takes for what is done without the global store, it is no trouble yet.
  const global = { endpoints: globalCluster.endpoints, prefix: 'all', patienceMs: 300_000 };
  const etcd = { url, options: { endpoints: cluster.endpoints, prefix: 'west', global } };
  await machine.start({ etcd });
  const two = await client.call('createVm', {
    body: { name: 'two', type: 'nano', image: { name: 'tiny' }, spec: spec.replace('web-1', 'made-here') },
  });
  const [otherRun, key] = [path.join(directory, 'other-run'), path.join(directory, 'state/key')];
  mkdirSync(otherRun, { mode: 0o711 });
  cpSync(path.join(directory, 'run/accelerator.json'), path.join(otherRun, 'accelerator.json'));
  const otherState = path.join(directory, 'other');
  const other = await run(machine, 'up', '--state', otherState, '--run', otherRun, '--key', key, '--store', url, ...at);
  assert.deepEqual([other.code, /uses this store; stop it/.test(other.err)], [1, true], other.err);
  assert.equal((await client.call('getVm', { params: { name: 'one' } })).status, 'running');
  assert.equal((await machine.type('one', 'cat /run/metadata/instance/hostname')).trim(), 'web-1');
  const leader = await cluster.leader();
  await cluster.kill(leader);
  await client.call('writeMetadata', {
    params: { name: 'one', path: 'instance/hostname' },
    body: Buffer.from('web-2'),
  });
  assert.equal((await machine.type('one', 'cat /run/metadata/instance/hostname')).trim(), 'web-2');
  await machine.type('one', 'echo from-inside > /run/metadata/guest/note');
  assert.equal(
    (await client.raw('readMetadata', { params: { name: 'one', path: 'guest/note' } })).bytes.toString(),
    'from-inside\n',
  );
  cluster.restart(leader);
  await machine.done(two);
  await machine.untilReady('two');
  assert.equal((await machine.type('two', 'cat /run/metadata/instance/hostname')).trim(), 'made-here');

  // Without the global store the region goes on; what that must know waits, and comes then.
  const countsOf = async (): Promise<string> => {
    const { counts } = await client.call('countVms', {});
    return counts
      .map(({ status, count }) => `${count} ${status}`)
      .toSorted()
      .join(', ');
  };
  await until('both to be counted', async () => (await countsOf()) === '2 running');
  const [globalMember] = globalCluster.members;
  await globalCluster.kill(globalMember!);
  await machine.done(await client.call('stopVm', { params: { name: 'two' } }));
  assert.equal((await client.call('getVm', { params: { name: 'two' } })).status, 'stopped');
  const stores = {
    region: { engine: 'etcd', endpoints: cluster.endpoints, prefix: 'west', reachable: true },
    global: { engine: 'etcd', endpoints: globalCluster.endpoints, prefix: 'all', reachable: false },
  };
  await until('the host to say so', async () => isDeepStrictEqual((await client.call('getHost')).stores, stores));
  const status = await run(machine, 'status');
  assert.match(status.out, /^global store: +etcd at 127\.0\.0\.1:\d+, below "all\/": does not answer$/m, status.err);
  globalCluster.restart(globalMember!);
  await until('the global store to know', async () => (await countsOf()) === '1 running, 1 stopped');
  // Revisions of the store that was copied mean nothing in this one.
  const [epoch] = revision.split('.').map(Number);
  const now = JSON.parse(
    (await client.raw('readMetadata', { params: { name: 'one', path: '' } })).bytes.toString(),
  ) as {
    readonly revision: string;
  };
  assert(Number(now.revision.split('.')[0]) > epoch!, `${now.revision} after ${revision}`);
  await assert.rejects(
    client.raw('createBackup', {}),
    (error) =>
      error instanceof ClientError && error.code === 'UNSUPPORTED' && /etcdctl snapshot save/.test(error.message),
  );

  // The next daemon finds it there.
  await machine.release();
  await machine.start();
  const { bytes: hostname } = await client.raw('readMetadata', { params: { name: 'one', path: 'instance/hostname' } });
  assert.equal(hostname.toString(), 'web-2');
  await machine.done(await client.call('stopVm', { params: { name: 'one' } }));
  for (const name of ['one', 'two']) await client.call('deleteVm', { params: { name } });
  await until('the VMs to be gone', async () => (await client.call('listVms', {})).vms.length === 0);
  assert.deepEqual(
    machine.events.filter(({ event }) => event === 'trouble'),
    [],
  );
});
