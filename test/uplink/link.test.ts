/** Hosts and managers over TLS on this machine. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect } from 'node:tls';
import {
  decodeRecord,
  encodeRecord,
  HostLiveRecord,
  HostRecord,
  hostKey,
  hostLiveKey,
} from '../../src/records/index.ts';
import { openStores, prefixRange } from '../../src/store/index.ts';
import { Authority, certificateRequest, hostDays, keysFromPem, keyToPem, newKeys } from '../../src/uplink/authority.ts';
import { Caller } from '../../src/uplink/calls.ts';
import { dial } from '../../src/uplink/dial.ts';
import { enrolCalls, joinKeyPattern } from '../../src/uplink/enrolment.ts';
import { noHostConnected } from '../../src/uplink/fleet.ts';
import { Uplink } from '../../src/uplink/index.ts';
import { alpnOf } from '../../src/uplink/protocols.ts';
import { storeCalls } from '../../src/uplink/store-calls.ts';
import { TestHost } from '../cluster/host-on-authority.ts';
import { temporaryStore } from '../store/temporary.ts';
import { until } from '../until.ts';
import { at, openRegion, regionName, vmRecord } from './region.ts';

test('a host that has enrolled is given its VMs, and asked about them', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const uplink = await region.uplink(await region.identity('h1', server), { managers: [at(server)] });
  const host = new TestHost();
  uplink.serve(host);
  const { store } = uplink;
  const { revision, entries } = await store.range(prefixRange('vm/'));
  assert.deepEqual(entries, []);
  const watch = store.watch(prefixRange('vm/'), { from: revision + 1 });
  const first = watch.next();
  const [mine, others] = [vmRecord('web-1', 'h1'), vmRecord('web-2', 'h2')];
  await region.assign(others);
  await region.assign(mine);
  const { value: batch } = await first;
  assert.equal(batch!.events.length, 1);
  const [event] = batch!.events;
  assert(event?.type === 'put');
  assert.deepEqual(JSON.parse(Buffer.from(event.entry.value).toString()), mine);
  const status = { id: mine.id, status: 'running' };
  await store.commit({ operations: [{ type: 'put', key: 'vmstatus/web-1', value: encodeRecord(status) }] });
  assert((await region.stores.region.get('vmstatus/web-1')) !== undefined);

  const live = await until('the host to be live', () => region.stores.region.get(hostLiveKey('h1')));
  assert.equal(decodeRecord(HostLiveRecord, 'live', live.value).version, 'test');
  host.make(mine);
  const port = server.hosts;
  await until('the connection for calls', async () => !(await port.status()).warnings.includes(noHostConnected));
  const written = await port.tree(mine).edit([{ op: 'put', path: '/secrets/a', bytes: Buffer.from('1') }], []);
  assert.equal(written.dataRevisions.get('/secrets/a'), written.revision);
  const read = await port.tree(mine).read('/secrets/a', { by: 'test' });
  assert.equal(Buffer.from(read.bytes).toString(), '1');
  await assert.rejects(port.tree(mine).stat('/none'), { code: 'HOST_NOT_FOUND' });
  await assert.rejects(port.tree(others).stat('/'), { code: 'HOST_UNAVAILABLE', message: /"h2".*not connected/ });
  assert.deepEqual(region.troubles, []);
});

test('a join key enrols one host, once, in time and under its name, and no other', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const directory = region.directory();
  const key = await region.joinKey();
  const first = await region.identity('h1', server, key, directory);
  // The answer was lost: the same host asks again.
  const again = await region.identity('h1', server, key, directory);
  assert.equal(again.key, first.key);
  const record = decodeRecord(HostRecord, 'host', (await region.stores.region.get(hostKey('h1')))!.value);
  assert.equal(record.capacity?.vcpus, 8);
  // 256 bits of the secret are nowhere.
  const secret = joinKeyPattern.exec(key)![2]!;
  for (const { value } of (await region.stores.region.range({ start: '' })).entries)
    assert(!Buffer.from(value).includes(secret));
  assert(!readFileSync(join(directory, 'identity.json'), 'utf8').includes(secret));

  const refusals: readonly [string, string, () => Promise<string>, RegExp][] = [
    ['used by another', 'h2', async () => key, /has been used/],
    ['of another name', 'h2', () => region.joinKey('h3'), /for a host "h3" alone, and not for "h2"/],
    ['expired', 'h2', () => region.joinKey(undefined, 0), /too old/],
    ['of a name that is there', 'h1', () => region.joinKey(), /there is a host "h1" already.*porthole host rm h1/],
    ['of the name of the host of porthole up', 'local', () => region.joinKey(), /cannot be the name/],
    [
      'that is none',
      'h2',
      async () => `phj_${'0'.repeat(16)}_${'a'.repeat(43)}_${server.authority.fingerprint}`,
      /is none/,
    ],
    [
      'of another region',
      'h2',
      async () => (await region.joinKey()).slice(0, -43) + 'a'.repeat(43),
      /not of the region/,
    ],
    ['that is not even one', 'h2', async () => 'secret', /begins with "phj_"/],
  ];
  for (const [what, host, make, message] of refusals)
    await assert.rejects(region.identity(host, server, await make()), { code: 'UPLINK_REFUSED', message }, what);
  // Refusals took none of the keys that are good.
  await region.identity('h2', server, await region.joinKey('h2'));
});

test('a host whose first request to enrol comes in while it asks again is given its certificate', async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const joinKey = await region.joinKey();
  const request = await certificateRequest(await newKeys());
  const [first, again] = await Promise.all(
    [0, 1].map(() => server.enrolment.enrol(joinKey, 'h1', request, { version: 'test' })),
  );
  assert(first!.certificate !== '' && again!.certificate !== '');
  const another = await certificateRequest(await newKeys());
  await assert.rejects(server.enrolment.enrol(joinKey, 'h1', another, { version: 'test' }), { code: 'UPLINK_REFUSED' });
});

test('a certificate opens what it is for, and a host that was removed nothing', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const h1 = await region.identity('h1', server);
  const { authority } = h1;
  const others = await openStores(temporaryStore(t));
  t.after(() => others.close());
  const foreign = await Authority.open(others.region, regionName);
  const request = await certificateRequest(await newKeys());
  const withKeys = async (by: Authority, host: string) => {
    const keys = await newKeys();
    const { certificate } = await by.issueHost(host, await certificateRequest(keys));
    return { certificate, key: await keyToPem(keys.privateKey) };
  };
  const elsewhere = await Authority.open(region.stores.region, 'us');
  const hello = { instance: '0'.repeat(16), facts: { version: 'test' } };
  const table: readonly [string, { certificate: string; key: string } | undefined, RegExp][] = [
    ['no certificate', undefined, /ended|closed/],
    ['another authority’s', await withKeys(foreign, 'h1'), /ended|closed/],
    ['a manager’s', await server.authority.issueManager(), /ended|closed/],
    ['another region’s', await withKeys(elsewhere, 'h1'), /ended|closed/],
    ['a host’s with another key', await withKeys(server.authority, 'h1'), /was removed from the region/],
    ['a host’s that is not there', await withKeys(server.authority, 'h9'), /was removed from the region/],
    ['the host’s', h1, /^$/],
  ];
  for (const [whose, credentials, message] of table) {
    const outcome = async (): Promise<string> => {
      try {
        const socket = await dial(at(server), 'store', { region: regionName, authority, credentials });
        const session = connectHttp2('https://m.invalid', { createConnection: () => socket }).on('error', () => {});
        const caller = new Caller(session, socket, storeCalls);
        await caller.ask('hello', hello).finally(() => caller.end());
        return '';
      } catch (error) {
        return (error as Error).message;
      }
    };
    assert.match(await outcome(), message, whose);
  }
  // A host is no manager to another.
  const asServer = connect({
    port: server.port,
    host: '127.0.0.1',
    ALPNProtocols: alpnOf('store'),
    ca: foreign.certificate,
    servername: 'managers.eu.porthole',
  });
  const [refused] = (await once(asServer, 'error')) as [Error];
  assert.match(refused.message, /certificate/);
  // Who may enrol may do nothing else.
  const socket = await dial(at(server), 'enrol', { region: regionName, authority });
  const session = connectHttp2('https://m.invalid', { createConnection: () => socket }).on('error', () => {});
  const stranger = new Caller(session, socket, { ...storeCalls, ...enrolCalls });
  await assert.rejects(stranger.ask('get', { key: new Uint8Array([1]) }), {
    code: 'UPLINK_REFUSED',
    message: 'there is no such call',
  });
  await assert.rejects(stranger.ask('enrol', { joinKey: '', name: 'h2', request, facts: { version: '' } }), {
    code: 'UPLINK_REFUSED',
  });
  stranger.end();

  let ended = '';
  const uplink = await region.uplink(h1, {
    managers: [at(server)],
    onConnection: (is) => (ended = 'lost' in is ? is.lost : ''),
  });
  uplink.store.hurry();
  await region.stores.region.commit({ operations: [{ type: 'delete', key: hostKey('h1') }] });
  await until('the host to be told', () => ended.includes('was removed from the region'));
  await assert.rejects(uplink.store.get('vm/a'), { code: 'STORE_CUT_OFF' });
});

test('a host goes to another manager when one dies, and loses nothing of what it follows', {
  timeout: 60_000,
}, async (t) => {
  const region = await openRegion(t);
  const [one, two] = [await region.manager(), await region.manager()];
  const told: string[] = [];
  const uplink = await region.uplink(await region.identity('h1', one), {
    managers: [at(one), at(two)],
    onConnection: (is) => told.push('lost' in is ? 'lost' : is.manager),
  });
  const host = new TestHost();
  uplink.serve(host);
  const { store } = uplink;
  const { revision } = await store.range(prefixRange('vm/'));
  const watch = store.watch(prefixRange('vm/'), { from: revision + 1 });
  const first = watch.next();
  const vm = vmRecord('web-1', 'h1');
  await region.assign(vm);
  assert.equal((await first).value?.events.length, 1);
  host.make(vm);
  for (const manager of [one, two])
    await until('each manager to reach it', async () => (await manager.hosts.status()).warnings[0] === undefined);
  const [used, other] = told.at(-1)?.endsWith(String(one.port)) === true ? [one, two] : [two, one];
  const second = watch.next();
  await used.close();
  await region.assign({ ...vm, generation: 2 });
  const { value: batch } = await second;
  const [event] = batch!.events;
  assert(event?.type === 'put');
  assert.equal(JSON.parse(Buffer.from(event.entry.value).toString()).generation, 2);
  await store.commit({ operations: [{ type: 'put', key: 'vmstatus/web-1', value: encodeRecord({ id: vm.id }) }] });
  assert.deepEqual(told.slice(-2), ['lost', `127.0.0.1:${other.port}`]);
  await other.hosts.tree(vm).edit([{ op: 'put', path: '/a', bytes: Buffer.from('1') }], []);
});

test('a certificate is renewed for the same key when half of its time is over', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const directory = region.directory();
  const identity = await region.identity('h1', server, undefined, directory);
  const sixtyDaysMs = 60 * 24 * 3_600_000;
  const past = await Authority.open(region.stores.region, regionName, () => Date.now() - sixtyDaysMs);
  const request = await certificateRequest(await keysFromPem(identity.key));
  const old = { ...identity, certificate: (await past.issueHost('h1', request)).certificate };
  await region.uplink(old, { managers: [at(server)], directory });
  const certificate = (): string => JSON.parse(readFileSync(join(directory, 'identity.json'), 'utf8')).certificate;
  await until('another certificate', () => ![old.certificate, identity.certificate].includes(certificate()));
  await region.uplink({ ...identity, certificate: certificate() }, { managers: [at(server)], directory });
});

test('a host whose certificate has ended says so, and what to do', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const directory = region.directory();
  const identity = await region.identity('h1', server, undefined, directory);
  const past = await Authority.open(
    region.stores.region,
    regionName,
    () => Date.now() - (hostDays + 1) * 24 * 3_600_000,
  );
  const request = await certificateRequest(await keysFromPem(identity.key));
  const { certificate } = await past.issueHost('h1', request);
  const told = Promise.withResolvers<string>();
  const stop = new AbortController();
  const opening = Uplink.open(
    {
      managers: [at(server)],
      identity: { ...identity, certificate },
      directory,
      facts: { version: 'test' },
      onConnection: (is) => told.resolve('lost' in is ? is.lost : ''),
      onEnd: () => {},
      onTrouble: () => {},
    },
    stop.signal,
  );
  assert.match(
    await told.promise,
    /certificate of host "h1" ended at .*porthole host rm h1.*identity\.json.*--join-key/,
  );
  stop.abort();
  await assert.rejects(opening, { name: 'AbortError' });
});
