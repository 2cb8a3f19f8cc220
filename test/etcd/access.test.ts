/** Who may read and write stores in etcd: TLS, users, and keys that values are sealed by. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import {
  createKeyFile,
  type EtcdStoresOptions,
  keyText,
  openEtcdStores,
  StoreError,
  type StoreErrorCode,
  type Stores,
} from '../../src/store/index.ts';
import { temporaryStore } from '../store/temporary.ts';
import { EtcdCluster } from './cluster.ts';

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));
const put = (key: string, value: string) => ({ type: 'put', key, value: bytes(value) }) as const;
const rejectsWith = (promise: Promise<unknown>, code: StoreErrorCode, message: RegExp): Promise<void> =>
  assert.rejects(promise, (error) => {
    assert(error instanceof StoreError, String(error));
    assert.deepEqual([error.code, message.test(error.message)], [code, true], error.message);
    return true;
  });

/** A certificate authority, and a certificate of it for both ends. */
const makeCertificates = (directory: string) => {
  const at = (name: string): string => join(directory, name);
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: directory, stdio: 'pipe' });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  openssl('req', '-x509', ...key, '-subj', '/CN=test authority', '-keyout', 'ca.key', '-out', 'ca.pem');
  for (const name of ['member', 'manager']) {
    const extensions = ['-addext', 'subjectAltName=IP:127.0.0.1', '-addext', 'extendedKeyUsage=serverAuth,clientAuth'];
    const signed = ['-x509', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-addext', 'basicConstraints=CA:FALSE'];
    openssl(
      'req',
      ...signed,
      ...key,
      '-subj',
      `/CN=${name}`,
      ...extensions,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.pem`,
    );
  }
  return {
    ca: at('ca.pem'),
    cert: at('manager.pem'),
    key: at('manager.key'),
    memberCert: at('member.pem'),
    memberKey: at('member.key'),
  };
};

let cluster: EtcdCluster;
let files: ReturnType<typeof makeCertificates>;
let shared: Omit<EtcdStoresOptions, 'keyFile'>;
before(async () => {
  cluster = await EtcdCluster.start({
    members: 1,
    quotaBytes: 16 * 1024 * 1024,
    makeTls: (directory) => {
      files = makeCertificates(directory);
      return { ca: files.ca, cert: files.memberCert, key: files.memberKey };
    },
  });
  for (const command of [
    'user add root:rootpw',
    'user grant-role root root',
    'role add porthole',
    'role grant-permission porthole readwrite --prefix=true main/',
    'user add porthole:secret',
    'user grant-role porthole porthole',
    'auth enable',
  ])
    await cluster.ctl(command.split(' '));
  const tls = { ca: readFileSync(files.ca), client: { cert: readFileSync(files.cert), key: readFileSync(files.key) } };
  shared = { endpoints: cluster.endpoints, prefix: 'main', tls, password: { user: 'porthole', password: 'secret' } };
});
after(() => cluster?.[Symbol.asyncDispose]());

const ctl = (args: readonly string[], input?: Uint8Array): Promise<string> =>
  cluster.ctl(['--user=root:rootpw', ...args], { input });

/** Two managers of one new store. */
const managers = async (t: TestContext): Promise<{ one: Stores; two: Stores; keyFile: string }> => {
  await ctl(['del', '--prefix', 'main/']);
  const { keyFile } = temporaryStore(t);
  const one = await openEtcdStores({ ...shared, keyFile });
  const two = await openEtcdStores({ ...shared, keyFile });
  t.after(async () => {
    await one.close();
    await two.close();
  });
  return { one, two, keyFile };
};

test('openEtcdStores says what to do when etcd does not let it in', { timeout: 60_000 }, async (t) => {
  const { keyFile } = temporaryStore(t);
  const open = (change: Partial<EtcdStoresOptions>): Promise<Stores> =>
    openEtcdStores({ ...shared, keyFile, patienceMs: 300, ...change });
  // etcd takes the name in the certificate for the user then, whom it does not know.
  await rejectsWith(open({ password: undefined }), 'STORE_REFUSED', /etcd's user may not do it/);
  await rejectsWith(
    open({ password: { user: 'porthole', password: 'wrong' } }),
    'STORE_REFUSED',
    /password is another/,
  );
  await rejectsWith(open({ prefix: 'other' }), 'STORE_REFUSED', /grant its role readwrite/);
  await rejectsWith(open({ tls: undefined }), 'STORE_UNAVAILABLE', /See that a majority/);
  await rejectsWith(open({ tls: { ca: readFileSync(files.ca) } }), 'STORE_UNAVAILABLE', /See that a majority/);
  const strange = makeCertificates(dirname(keyFile));
  const { client } = shared.tls!;
  await rejectsWith(open({ tls: { ca: readFileSync(strange.ca), client } }), 'STORE_UNAVAILABLE', /gave no answer/);
});

test('EtcdStore goes on when its token is forgotten with the member that gave it', { timeout: 60_000 }, async (t) => {
  const { one, two } = await managers(t);
  const { revision } = await one.region.commit({ operations: [put('a', '1')] });
  const watch = two.region.watch({ start: 'a' }, { from: revision });
  await watch.next();
  const next = watch.next();
  const { id } = await one.region.grantLease(60);
  const [member] = cluster.members;
  await cluster.kill(member!);
  cluster.restart(member!);
  await one.region.commit({ operations: [put('a', '2')] });
  await one.region.keepAlive(id);
  assert.equal((await next).value!.revision, (await one.region.get('a'))!.modRevision);
});

test('Stores in etcd are sealed anew and read by other managers when the data key is rotated', async (t) => {
  const { one, two, keyFile } = await managers(t);
  const { id } = await one.region.grantLease(60);
  for (let i = 0; i < 60; i++) await one.region.commit({ operations: [put(`k${i}`, `value ${i}`)] });
  await one.global.commit({ operations: [{ ...put('leased', 'x'), leaseId: id }] });
  assert.equal(keyText((await two.region.get('k1'))!.value), 'value 1');
  const progress: number[] = [];
  assert.equal(await one.rotateDataKey({ onProgress: (done, total) => progress.push(done / total) }), 61);
  assert.equal(progress.at(-1), 1);
  assert.equal((await one.global.get('leased'))!.leaseId, id);
  // It has not heard of the new key, and knows one that is gone.
  await two.region.commit({ operations: [put('k0', 'by another')] });
  for (const stores of [one, two]) {
    const { entries } = await stores.region.range({ start: '' });
    assert.equal(entries.length, 60);
    assert.equal(keyText(entries[0]!.value), 'by another');
  }
  const newKeyFile = `${keyFile}.new`;
  createKeyFile(newKeyFile);
  await one.changeKeyFile(newKeyFile);
  await two.region.commit({ operations: [put('k0', 'still')] });
  await rejectsWith(
    openEtcdStores({ ...shared, keyFile }),
    'STORE_KEY_WRONG',
    /is not the key of the prefix "main" of etcd/,
  );
  await using third = await openEtcdStores({ ...shared, keyFile: newKeyFile });
  assert.equal(keyText((await third.region.get('k0'))!.value), 'still');
});

test('Stores in etcd take another data key when one has sealed enough', async (t) => {
  const { one, keyFile } = await managers(t);
  await using stores = await openEtcdStores({ ...shared, keyFile, sealsPerDataKey: 300 });
  for (let i = 0; i < 10; i++) await stores.region.commit({ operations: [put('a', `${i}`)] });
  const meta = JSON.parse(await ctl(['get', '--print-value-only', 'main/meta'])) as { readonly dataKeys: unknown[] };
  assert(meta.dataKeys.length > 2, `${meta.dataKeys.length} data keys`);
  assert.equal(keyText((await one.region.get('a'))!.value), '9');
});

test('EtcdStore refuses a value when it was put in the place of another', async (t) => {
  const { one, two } = await managers(t);
  await one.region.commit({ operations: [put('a', 'first'), put('b', 'other')] });
  await one.region.commit({ operations: [put('a', 'second')] });
  /** As who may write to etcd, but has no key. */
  const replay = async (from: string, to: string, revision = 0): Promise<void> => {
    const found = JSON.parse(await ctl(['get', '--write-out=json', `--rev=${revision}`, from])) as {
      readonly kvs: readonly { readonly value: string }[];
    };
    await ctl(['put', to], Buffer.from(found.kvs[0]!.value, 'base64'));
  };
  const { modRevision } = (await one.region.get('a'))!;
  await replay('main/region/b', 'main/region/a');
  await rejectsWith(
    two.region.get('a'),
    'STORE_DAMAGED',
    /"a" at version .* was changed, or put in the place of another/,
  );
  await replay('main/region/a', 'main/region/a', modRevision);
  await rejectsWith(two.region.get('a'), 'STORE_DAMAGED', /put in the place of another/);
  await replay('main/region/b', 'main/global/b');
  await rejectsWith(two.global.get('b'), 'STORE_DAMAGED', /put in the place of another/);
});

test('EtcdStore says what to do when etcd is full, and goes on when that was done', { timeout: 120_000 }, async (t) => {
  const { one } = await managers(t);
  const value = new Uint8Array(1_000_000);
  const fill = async (): Promise<void> => {
    for (let i = 0; i < 40; i++) await one.region.commit({ operations: [{ type: 'put', key: 'large', value }] });
  };
  await rejectsWith(fill(), 'STORE_FULL', /reached its quota; compact and defragment it.*etcdctl alarm disarm/);
  assert.equal((await one.region.get('large'))!.value.length, value.length);
  await one.region.compact(await one.region.revision());
  await ctl(['defrag']);
  await ctl(['alarm', 'disarm']);
  const { committed } = await one.region.commit({ operations: [put('small', 'x')] });
  assert.equal(committed, true);
});
