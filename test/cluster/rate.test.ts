import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import type { TreePort } from '../../src/records/index.ts';
import { until } from '../until.ts';
import { startApi } from './api.ts';
import { keptTree } from './kept-tree.ts';

const writes = 640;
const vms = 32;
const value = Buffer.alloc(200, 'x');
/** Another one each time: writing what is there already changes nothing. */
let written = 0;
const next = (): Buffer => Buffer.from(String(written++).padEnd(value.length));

/** @returns how many a second */
const timed = async (
  t: TestContext,
  what: string,
  lanes: number,
  one: (lane: number, i: number) => unknown,
): Promise<number> => {
  const timesMs: number[] = [];
  const startMs = performance.now();
  const cpuBefore = process.cpuUsage();
  const lane = async (name: number): Promise<void> => {
    for (let i = 0; i < writes / lanes; i++) {
      const beforeMs = performance.now();
      await one(name, i);
      timesMs.push(performance.now() - beforeMs);
    }
  };
  await Promise.all(Array.from({ length: lanes }, (_, name) => lane(name)));
  const rate = (timesMs.length * 1000) / (performance.now() - startMs);
  const { user, system } = process.cpuUsage(cpuBefore);
  const cpuMs = ((user + system) / 1000 / timesMs.length).toFixed(2);
  const sorted = timesMs.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(sorted.length * share)]!.toFixed(2);
  t.diagnostic(`${what}: ${Math.round(rate)}/s, p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, CPU of both sides ${cpuMs} ms`);
  return rate;
};

test('writes of metadata through the API, each durable, beside raw commits of SQLite', async (t) => {
  const api = await startApi(t);
  const raw = join(api.directory, 'raw');
  mkdirSync(raw);
  using database = new DatabaseSync(join(raw, 'raw.db'));
  database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (k TEXT PRIMARY KEY, v BLOB)');
  const insert = database.prepare('INSERT INTO t VALUES (?, ?)');
  const names = Array.from({ length: vms }, (_, i) => `vm-${i}`);
  for (const name of names) await api.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached' } });
  await until('the VMs', () => names.every((name) => api.host.vms.has(name)));
  const ports = new Map<string, TreePort>();
  for (const [name, { id }] of api.host.vms) ports.set(name, await keptTree(api.stores.region, id));
  api.host.portOf = ({ name }) => ports.get(name);
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  t.after(() => agent.destroy());
  const send = (method: string, path: string, body?: Buffer): Promise<void> => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const headers = body && { 'content-length': String(body.length) };
    request({ socketPath: api.socketPath, agent, method, path, ...(headers && { headers }) }, (answer) => {
      answer
        .resume()
        .on('end', () => (answer.statusCode === 200 ? resolve() : reject(new Error(`${answer.statusCode}`))));
    })
      .on('error', reject)
      .end(body);
    return promise;
  };
  const get = (path: string) => send('GET', path);
  const put = (path: string) => send('PUT', path, next());
  const before = await timed(t, 'raw SQLite, 1 writer', 1, (_, i) => insert.run(`a${i}`, value));
  const key = (i: number) => `raw/${i}`;
  await timed(t, 'store, 1 writer', 1, (_, i) =>
    api.stores.region.commit({ operations: [{ type: 'put', key: key(i), value }] }),
  );
  await timed(t, 'GET, 1 client', 1, () => get('/v1/self'));
  const one = await timed(t, 'PUT, 1 client', 1, (_, i) => put(`/v1/vms/vm-0/metadata/k${i % 50}`));
  const same = await timed(t, 'PUT, 32 clients, one VM', 32, (lane, i) =>
    put(`/v1/vms/vm-0/metadata/l${lane}-${i % 9}`),
  );
  const spread = await timed(t, 'PUT, 32 clients, 32 VMs', 32, (lane, i) =>
    put(`/v1/vms/vm-${lane}/metadata/k${i % 9}`),
  );
  const after = await timed(t, 'raw SQLite, 1 writer', 1, (_, i) => insert.run(`b${i}`, value));
  const sqlite = (before + after) / 2;
  const ratio = (rate: number) => (rate / sqlite).toFixed(2);
  t.diagnostic(`against raw SQLite: 1 client ${ratio(one)}, 32 clients ${ratio(same)}, over 32 VMs ${ratio(spread)}`);
  assert.equal((await ports.get('vm-0')!.stat('/k0')).entry.sizeBytes, value.length);
});
