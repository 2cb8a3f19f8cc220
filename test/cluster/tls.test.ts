import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Client, ConnectionError } from '../../src/cluster/index.ts';
import { startApi } from './api.ts';

test('the API speaks TLS to clients that know its certificate, on any address', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-tls-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const [cert, key] = [join(directory, 'cert.pem'), join(directory, 'key.pem')];
  const words = `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=porthole -addext subjectAltName=IP:127.0.0.1 -keyout ${key} -out ${cert}`;
  const made = spawnSync('openssl', words.split(' '), { encoding: 'utf8' });
  assert.equal(made.status, 0, made.error?.message ?? made.stderr);
  const tls = { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') };
  const api = await startApi(t, { listen: { tcp: { host: '0.0.0.0', port: 0, tls } } });
  const { json } = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', role: 'viewer' } });
  const url = api.server.url!.replace('0.0.0.0', '127.0.0.1');
  assert.match(url, /^https:/);
  using client = new Client({ url, key: String(json['text']), ca: tls.cert });
  assert.equal((await client.call('whoAmI')).role, 'viewer');
  using stranger = new Client({ url, key: String(json['text']) }, { patienceMs: 0 });
  await assert.rejects(stranger.call('whoAmI'), ConnectionError);
  using wrong = new Client({ url, key: `ph_${'0'.repeat(16)}_${'A'.repeat(43)}`, ca: tls.cert });
  await assert.rejects(wrong.call('whoAmI'), { code: 'BAD_KEY', status: 401 });
});
