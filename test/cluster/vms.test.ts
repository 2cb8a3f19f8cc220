import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { encodeRecord, graceSecondsOf } from '../../src/records/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { keysOf } from './host-on-authority.ts';

const addImage = async (api: TestApi): Promise<void> => {
  const image = await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  assert.equal(image.status, 202, image.text);
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
};

/** A status as the host would write it. */
const report = async (api: TestApi, name: string, status: object): Promise<void> => {
  const { record } = await api.manager.vms.find('default', name);
  const value = encodeRecord({
    id: record.id,
    reason: '',
    sinceMs: 1,
    bootNumber: 0,
    addresses: [],
    outcome: 'done',
    ...status,
  });
  await api.stores.region.commit({ operations: [{ type: 'put', key: `vmstatus/${name}`, value }] });
};

test('a VM is created, runs with its first tree, and leaves nothing behind when it is deleted', async (t) => {
  const api = await startApi(t, { manager: { uids: { first: 700_000, count: 10 } } });
  await addImage(api);
  const created = await api.ask({
    method: 'POST',
    path: '/v1/vms',
    body: {
      name: 'web-1',
      type: 'small',
      image: { name: 'tiny' },
      labels: { app: 'web' },
      spec: 'porthole: 1\nmetadata:\n  secrets: { db: hunter2 }\n',
    },
  });
  assert.equal(created.status, 202, created.text);
  const operation = String(created.headers['location']);
  await until('the operation', async () => `${(await api.ask({ path: operation })).json['state']}` === 'succeeded');
  const shown = await api.ask({ path: '/v1/vms/web-1' });
  assert.deepEqual(
    [shown.json['status'], shown.json['memoryMiB'], shown.json['labels']],
    ['running', 1024, { app: 'web' }],
  );
  const secret = await api.ask({ path: '/v1/vms/web-1/metadata/secrets/db' });
  assert.deepEqual([secret.status, secret.text], [200, 'hunter2'], secret.text);
  const { region, global } = api.stores;
  // What a host keeps of it, more than one transaction may delete.
  for (let i = 0; i < 3; i++)
    await region.commit({
      operations: Array.from({ length: 90 }, (_, n) => ({
        type: 'put',
        key: `tree/${String(shown.json['id'])}/${i}/${n}`,
        value: new Uint8Array(1),
      })),
    });
  // More requests than one transaction can end.
  for (let i = 0; i < 45; i++)
    assert.equal((await api.ask({ method: 'POST', path: '/v1/vms/web-1/start' })).status, 202);
  const removal = await api.ask({ method: 'DELETE', path: '/v1/vms/web-1' });
  assert.equal(removal.status, 202, removal.text);
  await until('the end', async () => (await api.ask({ path: '/v1/vms/web-1' })).status === 404);
  await api.manager.outbox.drain();
  const left = [...(await keysOf(region)), ...(await keysOf(global))].filter(
    (key) =>
      !/^(operation|imageremoval|regionimage|outboxread|image|account|region|host|hostuse)\/|^(authority|peersecret)$/.test(
        key,
      ),
  );
  assert.deepEqual(left, []);
  const { record, use } = await api.manager.hosts.get('local');
  assert.deepEqual([record.cordoned, use], [false, { vcpus: 0, memoryMiB: 0, diskBytes: 0, vms: 0 }]);
  const operations = await api.ask({ path: '/v1/operations?limit=500' });
  const states = new Set((operations.json['operations'] as unknown as { state: string }[]).map(({ state }) => state));
  assert.deepEqual(states.has('pending') || states.has('running'), false);
  assert.equal((await api.ask({ path: '/v1/counts' })).text, '{"counts":[]}');
});

test('an operation says how the host fares with what was asked for', async (t) => {
  const api = await startApi(t, { obeys: false });
  await addImage(api);
  const body = { name: 'web-1', type: 'nano', image: { name: 'tiny' } };
  const operationOf = async (request: { method: string; path: string; body?: object }): Promise<string> =>
    String((await api.ask(request)).headers['location']);
  const become = (path: string, state: string) =>
    until(`${path} ${state}`, async () => {
      const { json } = await api.ask({ path });
      return `${json['state']}` === state && json;
    });
  const create = await operationOf({ method: 'POST', path: '/v1/vms', body });
  assert.equal(`${(await api.ask({ path: '/v1/vms/web-1' })).json['status']}`, 'creating');
  await report(api, 'web-1', { status: 'starting', generation: 1, outcome: 'underway', reason: 'making the disk' });
  assert.equal(`${(await become(create, 'running'))['step']}`, 'making the disk');
  await report(api, 'web-1', { status: 'failed', generation: 1, outcome: 'failed', reason: 'the image has no kernel' });
  assert.deepEqual((await become(create, 'failed'))['error'], { code: 'VM_FAILED', detail: 'the image has no kernel' });
  const start = await operationOf({ method: 'POST', path: '/v1/vms/web-1/start' });
  const stop = await operationOf({ method: 'POST', path: '/v1/vms/web-1/stop' });
  await report(api, 'web-1', { status: 'stopped', generation: 3 });
  await become(start, 'cancelled');
  await become(stop, 'succeeded');
  const again = await operationOf({ method: 'POST', path: '/v1/vms/web-1/start' });
  assert.equal((await api.ask({ method: 'POST', path: `${again}/cancel` })).status, 202);
  await become(again, 'cancelled');
  assert.equal(`${(await api.ask({ path: '/v1/vms/web-1' })).json['desired']}`, 'stopped');
  // One that is being created is deleted.
  const other = await operationOf({ method: 'POST', path: '/v1/vms', body: { ...body, name: 'web-2' } });
  await report(api, 'web-2', { status: 'creating', generation: 1, outcome: 'underway' });
  await become(other, 'running');
  assert.equal((await api.ask({ method: 'POST', path: `${other}/cancel` })).status, 202);
  assert.match(`${(await become(other, 'cancelled'))['error']!['detail']}`, /the VM is deleted instead/);
  assert.equal(`${(await api.ask({ path: '/v1/vms/web-2' })).json['desired']}`, 'deleted');
  assert.equal((await api.ask({ method: 'POST', path: `${other}/cancel` })).status, 409);
  await report(api, 'web-2', { status: 'deleted', generation: 2 });
  await until('it to be gone', async () => (await api.ask({ path: '/v1/vms/web-2' })).status === 404);
  // A status of a VM that had the name before says nothing.
  await report(api, 'web-1', { status: 'running', generation: 9, id: `i-${'0'.repeat(17)}` });
  assert.equal(`${(await api.ask({ path: '/v1/vms/web-1' })).json['status']}`, 'creating');
});

test('the index follows the status, and counts with it', async (t) => {
  const api = await startApi(t, { obeys: false });
  for (const name of ['a', 'b', 'c'])
    await api.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached' } });
  await report(api, 'a', { status: 'running', generation: 1 });
  await report(api, 'b', { status: 'running', generation: 1 });
  const count = (n: number, status: string) => ({ region: 'local', type: 'attached', status, count: n });
  await until('the counts', async () => {
    const { json } = await api.ask({ path: '/v1/counts' });
    return JSON.stringify(json['counts']) === JSON.stringify([count(1, 'creating'), count(2, 'running')]);
  });
  await api.restart();
  await report(api, 'a', { status: 'failed', generation: 1, outcome: 'failed' });
  await until('the counts', async () => {
    const { json } = await api.ask({ path: '/v1/counts' });
    return (
      JSON.stringify(json['counts']) === JSON.stringify([count(1, 'creating'), count(1, 'running'), count(1, 'failed')])
    );
  });
});

test('list shows every VM once, of the moment of the first page, whatever happens between the pages', async (t) => {
  const api = await startApi(t, { obeys: false });
  const names = Array.from({ length: 25 }, (_, i) => `vm-${String(i).padStart(2, '0')}`);
  for (const [i, name] of names.entries())
    await api.ask({
      method: 'POST',
      path: '/v1/vms',
      body: { name, kind: 'attached', labels: { parity: i % 2 === 0 ? 'even' : 'odd', 'a/b': 'x=y' } },
    });
  for (const [i, name] of names.entries())
    if (i % 3 === 0) await report(api, name, { status: 'running', generation: 1 });
  const all = async (query: string, limit: number, between: () => Promise<unknown>): Promise<string[]> => {
    const found: string[] = [];
    let cursor = '';
    do {
      const page = await api.ask({ path: `/v1/vms?limit=${limit}${query}${cursor}` });
      assert.equal(page.status, 200, page.text);
      found.push(...(page.json['vms'] as unknown as { name: string }[]).map(({ name }) => name));
      cursor = page.json['next'] === undefined ? '' : `&cursor=${String(page.json['next'])}`;
      await between();
    } while (cursor !== '');
    return found;
  };
  let extra = 0;
  const disturb = () =>
    api.ask({
      method: 'POST',
      path: '/v1/vms',
      body: { name: `vm-${String(extra++ % 25).padStart(2, '0')}x${extra}`, kind: 'attached' },
    });
  assert.deepEqual(await all('', 4, disturb), names);
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 30 }),
      fc.constantFrom(
        '',
        '&status=running',
        '&status=creating',
        '&label=parity%3Deven',
        '&label=a/b%3Dx%3Dy&label=parity',
        '&prefix=vm-1',
        '&type=attached',
        '&type=nano',
      ),
      async (limit, query) => {
        const listed = await all(query, limit, async () => {});
        const expected = (await all('', 500, async () => {})).filter((name) => {
          const i = names.indexOf(name);
          if (query === '&status=running') return i >= 0 && i % 3 === 0;
          if (query === '&status=creating') return i < 0 || i % 3 !== 0;
          if (query === '&label=parity%3Deven') return i >= 0 && i % 2 === 0;
          if (query.startsWith('&label=a/b')) return i >= 0;
          if (query === '&prefix=vm-1') return name.startsWith('vm-1');
          return query !== '&type=nano';
        });
        assert.deepEqual(listed, expected);
      },
    ),
    { numRuns: 25 },
  );
  const { json } = await api.ask({ path: '/v1/vms?limit=2' });
  const cursor = String(json['next']);
  assert.equal(
    (await api.ask({ path: `/v1/vms?limit=2&type=nano&cursor=${cursor}` })).json['code'] as unknown,
    'BAD_CURSOR',
  );
  await disturb();
  await api.stores.region.compact(await api.stores.region.revision());
  assert.equal((await api.ask({ path: `/v1/vms?limit=2&cursor=${cursor}` })).json['code'] as unknown, 'COMPACTED');
});

test('uids are given to one VM each, and again when it is gone', async (t) => {
  const api = await startApi(t, { manager: { uids: { first: 700_000, count: 2 } } });
  const create = (name: string) => api.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached' } });
  const both = await Promise.all([create('a'), create('b')]);
  assert.deepEqual(
    both.map(({ status }) => status),
    [202, 202],
  );
  const uids = await Promise.all(
    ['a', 'b'].map(async (name) => (await api.manager.vms.find('default', name)).record.uid),
  );
  assert.deepEqual(uids.toSorted(), [700_000, 700_001]);
  assert.equal((await create('c')).json['code'] as unknown, 'FULL');
  await api.ask({ method: 'DELETE', path: '/v1/vms/a' });
  await until('the end', async () => (await api.ask({ path: '/v1/vms/a' })).status === 404);
  assert.equal((await create('c')).status, 202);
});

test('no VM is made from an image that is removed at the same time', async (t) => {
  const api = await startApi(t);
  for (let round = 0; round < 8; round++) {
    const image = await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
    const version = String((image.json['target'] as unknown as { version: string }).version);
    await until('the image', async () => (await api.ask({ path: `/v1/images/tiny/${version}` })).status === 200);
    const body = { name: `vm-${round}`, type: 'nano', image: { name: 'tiny', version } };
    const [removed, created] = await Promise.all([
      api.ask({ method: 'DELETE', path: `/v1/images/tiny/${version}` }),
      api.ask({ method: 'POST', path: '/v1/vms', body }),
    ]);
    const outcome = `${removed.status} ${created.status}`;
    // Removed and refused, or kept and made.
    assert.match(outcome, /^(204 404|204 409|409 202)$/);
    assert.equal(api.host.images.has(`tiny/${version}`), removed.status !== 204, outcome);
  }
});

test('a VM that the host has not made yet is told from one that is none', async (t) => {
  const api = await startApi(t, { obeys: false });
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'a', kind: 'attached' } });
  const early = await api.ask({ path: '/v1/vms/a/metadata/' });
  assert.deepEqual([early.status, early.headers['retry-after']], [503, '1'], early.text);
  api.host.make((await api.manager.vms.find('default', 'a')).record);
  assert.equal((await api.ask({ path: '/v1/vms/a/metadata/' })).status, 200);
  // Made anew under the same name: what was known of the one before is not used.
  await api.ask({ method: 'DELETE', path: '/v1/vms/a' });
  await report(api, 'a', { status: 'deleted', generation: 2 });
  await until('the end', async () => (await api.ask({ path: '/v1/vms/a' })).status === 404);
  api.host.vms.delete('a');
  assert.equal((await api.ask({ path: '/v1/vms/a/metadata/' })).status, 404);
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'a', kind: 'attached' } });
  api.host.make((await api.manager.vms.find('default', 'a')).record);
  assert.equal((await api.ask({ path: '/v1/vms/a/metadata/' })).status, 200);
});

test('only an attached VM has a libvirt domain, and what is printed for one is for a machine that makes sense', async (t) => {
  const api = await startApi(t);
  const make = (body: object) => api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', ...body } });
  for (const libvirtDomain of ['a/b', "a'b", '', ' a', 'a ', 'a\nb', 'x'.repeat(202)])
    assert.equal((await make({ kind: 'attached', libvirtDomain })).status, 400, libvirtDomain);
  const managed = await make({ type: 'nano', image: { name: 'tiny' }, libvirtDomain: 'web' });
  assert.match(managed.text, /a managed VM has no libvirt domain/);
  const made = await make({ kind: 'attached', libvirtDomain: 'Web é 1' });
  assert.equal(made.status, 202, made.text);
  assert.equal((await api.ask({ path: '/v1/vms/web-1' })).json['libvirtDomain'], 'Web é 1');
  for (const [query, status] of [
    ['memoryMiB=2048&vcpus=2', 200],
    ['memoryMiB=many', 400],
    ['memoryMiB=63', 400],
    ['disk=/srv/a.qcow2', 400],
    ['disk=a.qcow2&diskFormat=qcow2', 400],
    ['disk=/srv/a.qcow2&diskFormat=vmdk', 400],
    ['disk=/srv/a%0Ab&diskFormat=raw', 400],
    ['initrd=/srv/initrd', 400],
    ['kernel=/srv/kernel&kernelArguments=a%0Ab', 400],
    ['other=1', 400],
  ] as const)
    assert.equal((await api.ask({ path: `/v1/vms/web-1/attachment?${query}` })).status, status, query);
});

test('a VM that its host could not make is refused when it is asked for', async (t) => {
  const api = await startApi(t);
  const { addImageWith } = api.host;
  api.host.addImageWith = async (...asked) => ({
    ...(await addImageWith(...asked)),
    virtualSizeBytes: 3 * 1024 ** 2,
  });
  await addImage(api);
  const create = async (more: object) =>
    api.ask({
      method: 'POST',
      path: '/v1/vms',
      body: { name: 'web-1', type: 'nano', image: { name: 'tiny' }, ...more },
    });
  const forwards = [{ hostAddress: '::1', hostPort: 8080, guestPort: 80 }];
  const refused = await create({ network: { mode: 'user', forwards } });
  assert.deepEqual([refused.status, refused.json['code']], [400, 'BAD_REQUEST']);
  assert.match(refused.text, /IPv4/);
  assert.equal((await create({ diskBytes: 4 * 1024 ** 2 + 1 })).status, 400);
  const small = await create({ diskBytes: 2 * 1024 ** 2 });
  assert.deepEqual([small.status, small.json['code']], [400, 'BAD_REQUEST']);
  assert.match(small.text, /give at least 3145728/);
  const network = { mode: 'user', forwards: [], isolated: true };
  const made = await create({ diskBytes: 3 * 1024 ** 2, network });
  assert.equal(made.status, 202, made.text);
  assert.deepEqual(made.json['vm']!['network'] as unknown, network);
});

test('a stop that leaves the guest less time says nothing of later ones', async (t) => {
  const api = await startApi(t);
  await addImage(api);
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', type: 'nano', image: { name: 'tiny' } } });
  const grace = async (path: string, body: object): Promise<number> => {
    assert.equal((await api.ask({ method: 'POST', path: `/v1/vms/web-1/${path}`, body })).status, 202);
    return graceSecondsOf((await api.manager.vms.find('default', 'web-1')).record);
  };
  assert.equal(await grace('stop', { graceSeconds: 0 }), 0);
  assert.equal(await grace('reboot', {}), 30);
  assert.equal(await grace('stop', { graceSeconds: 5 }), 5);
  assert.equal(await grace('stop', {}), 30);
});

test('a metadata server is wanted by ways that lead to the VM, and shown with how far its token is', async (t) => {
  const api = await startApi(t);
  const make = (body: object) => api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', ...body } });
  const attached = { kind: 'attached' };
  const managed = { type: 'nano', image: { name: 'tiny' } };
  for (const [body, complaint] of [
    [{ ...attached, metadataServer: { ways: [] } }, 'ways'],
    [{ ...attached, metadataServer: { ways: ['vsock'] } }, 'needs vsock: true'],
    [{ ...attached, metadataServer: { ways: ['network'] } }, 'relay to the way socket'],
    [{ ...managed, network: { mode: 'none' }, metadataServer: { ways: ['network'] } }, 'needs a network'],
    [{ ...managed, metadataServer: { ways: ['socket'] } }, 'is for attached VMs'],
    [{ ...managed, metadataServer: { ways: ['network'], hopLimit: 2 } }, 'hopLimit is for the way network on a tap'],
    [{ ...managed, metadataServer: { ways: ['serial'], facades: ['azure'] } }, 'facades'],
  ] as const) {
    const { status, text } = await make(body);
    assert.equal(status, 400, text);
    assert.ok(text.includes(complaint), text);
  }
  const wish = { ways: ['serial', 'vsock'], facades: ['ec2'], imdsV1: true };
  const made = await make({ ...attached, vsock: true, metadataServer: wish });
  assert.equal(made.status, 202, made.text);
  const { id } = (await api.manager.vms.find('default', 'web-1')).record;
  await report(api, 'web-1', { status: 'compromised', generation: 1, token: { state: 'compromised', claimedAtMs: 0 } });
  const shown = (await api.ask({ path: '/v1/vms/web-1' })).json;
  assert.deepEqual([shown['id'], shown['status']], [id, 'compromised']);
  assert.deepEqual(shown['metadataServer'], {
    ...wish,
    addresses: ['virtio-serial:/dev/virtio-ports/org.porthole.metadata', 'vsock:2:80'],
    token: { state: 'compromised', claimedAt: '1970-01-01T00:00:00.000Z' },
  });
});
