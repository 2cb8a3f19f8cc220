import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { etcdOptions } from './store-flags.ts';

test('etcdOptions takes members, ports and a prefix when they are written as documented', () => {
  assert.deepEqual(etcdOptions('etcd://127.0.0.1,localhost:1,[::1]:2/eu/west', { globalStore: 'etcd://127.0.0.1/' }), {
    endpoints: ['127.0.0.1:2379', 'localhost:1', '[::1]:2'],
    prefix: 'eu/west',
    global: { endpoints: ['127.0.0.1:2379'], prefix: 'porthole', patienceMs: 10_000 },
  });
});

test('etcdOptions says what is wrong when it cannot be meant', (t) => {
  for (const url of ['http://a', 'etcd://', 'etcd://a,,b', 'etcd://a:70000', 'etcd://a/b c'])
    assert.throws(() => etcdOptions(url, {}), /names no etcd; write etcd:/, url);
  assert.throws(
    () => etcdOptions('etcd://127.0.0.1,10.0.0.1', {}),
    /"10.0.0.1:2379" is not on this machine.*--store-ca/,
  );
  assert.throws(
    () => etcdOptions('etcd://127.0.0.1', { globalStore: 'etcd://db' }),
    /"db:2379" is not on this machine/,
  );
  assert.throws(() => etcdOptions('etcd://127.0.0.1', { storeCert: 'c' }), /belong together/);
  const directory = mkdtempSync(join(tmpdir(), 'porthole-flags-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const storeCredentials = join(directory, 'credentials');
  writeFileSync(storeCredentials, 'porthole:pass:word\n', { mode: 0o600 });
  const { password } = etcdOptions('etcd://127.0.0.1', { storeCredentials });
  assert.deepEqual(password, { user: 'porthole', password: 'pass:word' });
  chmodSync(storeCredentials, 0o640);
  assert.throws(() => etcdOptions('etcd://127.0.0.1', { storeCredentials }), /may be read by others.*chmod 600/);
  chmodSync(storeCredentials, 0o600);
  writeFileSync(storeCredentials, 'porthole\n');
  assert.throws(() => etcdOptions('etcd://127.0.0.1', { storeCredentials }), /one line, USER:PASSWORD/);
});
