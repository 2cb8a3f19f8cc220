import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addHost } from '../cluster/hosts.ts';
import { setStage, steady } from './stage.ts';

test('porthole makes and stops many machines, and administers accounts, regions and hosts', async (t) => {
  const { api, run } = await setStage(t);
  assert.equal((await run('image', 'build', 'tiny')).code, 0);
  const many = ['vm', 'create', 'web', '--count', '3', '--type', 'nano', '--image', 'tiny@1', '--label', 'app=web'];
  assert.deepEqual(await run(...many), { code: 0, out: '', err: '' });
  const stopped = await run('vm', 'stop', '--selector', 'app=web', '--grace', '0');
  assert.deepEqual(stopped, { code: 0, out: '', err: '3 virtual machines\n' });
  await api.manager.outbox.drain();
  assert.equal((await run('vm', 'ls', '--count')).out, 'REGION  TYPE  STATUS   COUNT\nlocal   nano  stopped  3\n');
  const both = await run('vm', 'stop', 'web-1', '--all');
  assert.deepEqual([both.code, both.err], [2, 'porthole: give names, or --selector, --prefix or --all, not both\n']);
  assert.equal((await run('vm', 'rm', '--prefix', 'web-', '--yes')).code, 0);

  assert.equal((await run('account', 'create', 'team', '--quota', 'local/nano=2')).code, 0);
  assert.match(steady((await run('account', 'ls')).out), /^team +active +local\/nano=2 +AGO *$/m);
  assert.match(
    (await run('account', 'quota', 'team', 'local/small=1', 'eu/large=0')).out,
    /local\/small=1\n +eu\/large=0/,
  );
  assert.equal((await run('key', 'create', 'k', '--account', 'team', '--role', 'viewer', '--vm-prefix', 'a-')).code, 0);
  assert.match((await run('key', 'ls', '--account', 'team')).out, / viewer of a-\* /);
  assert.equal((await run('account', 'rm', 'team')).code, 0);

  await addHost(api.stores.region, 'h1', { capacity: { vcpus: 4, memoryMiB: 2048, diskBytes: 0 } });
  assert.equal((await run('host', 'cordon', 'h1')).code, 0);
  const drained = await run('host', 'drain', 'h1');
  assert.deepEqual([drained.code, drained.out], [0, '']);
  assert.match((await run('host', 'ls')).out, /^h1 +connected, draining /m);
  assert.equal((await run('host', 'uncordon', 'h1')).code, 0);
  assert.equal((await run('host', 'cordon', 'h1')).code, 0);
  assert.equal((await run('host', 'label', 'h1', 'disk=ssd')).code, 0);
  assert.match(
    (await run('host', 'ls')).out,
    /^h1 +connected, cordoned +0 +0 B of 2 GiB +0 of 4 +0 B of 0 B +disk=ssd$/m,
  );
  assert.equal((await run('region', 'set', 'eu', 'https://eu.example:8443')).code, 0);
  assert.equal(
    (await run('region', 'ls')).out,
    'NAME              ADDRESSES\neu                https://eu.example:8443\nlocal (this one)  -\n',
  );
});
