import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as pause, setImmediate as turn } from 'node:timers/promises';
import { Client, ClientError, type StreamEvent } from '../../src/cluster/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';

/** Stands between client and server, and cuts connections after a number of bytes. */
const startCutter = async (t: TestContext, api: TestApi) => {
  const path = join(api.directory, 'cut.sock');
  const open = new Set<Socket>();
  /** Bytes that the next connections carry back before they are cut. */
  const cuts: number[] = [];
  let cut = 0;
  const server = createServer((client) => {
    const upstream = connect(api.socketPath);
    let left = cuts.shift() ?? Number.POSITIVE_INFINITY;
    for (const socket of [client, upstream]) {
      open.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        open.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.pipe(upstream);
    upstream.on('data', (chunk: Buffer) => {
      client.write(chunk.subarray(0, left));
      left -= chunk.length;
      if (left > 0) return;
      cut++;
      client.destroySoon();
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return { path, cuts, count: () => cut };
};

const withVm = async (api: TestApi): Promise<void> => {
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web-1', kind: 'attached' } });
  await until('the VM', () => api.host.vms.has('web-1'));
};

/** A sequence that is different each time and the same for a seed. */
const random =
  (seed: number) =>
  (below: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };

test('streams that are cut at random points lose nothing and repeat nothing', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const cutter = await startCutter(t, api);
  const seed = Number(process.env['PORTHOLE_SEED'] ?? Date.now() % 1e9);
  t.diagnostic(`PORTHOLE_SEED=${seed}`);
  const below = random(seed);
  cutter.cuts.push(...Array.from({ length: 40 }, () => 1 + below(below(2) === 0 ? 600 : 6_000)));
  using client = new Client({ socketPath: cutter.path });
  const { tree, console } = api.host.vms.get('web-1')!;
  const writes = 150;
  const record = {
    timeMs: 1_777_593_600_000,
    vm: 'web-1',
    way: 'virtiofs',
    operation: 'open',
    path: '/a',
    uid: 5,
    gid: 5,
    pid: 7,
    revision: 3,
    verdict: 'denied' as const,
    rule: 'default',
  };
  const from = tree.authority.snapshot.revision;
  const collect = async (events: AsyncIterable<StreamEvent>, wanted: string): Promise<StreamEvent[]> => {
    const found: StreamEvent[] = [];
    for await (const event of events) if (event.event === wanted) found.push(event);
    return found;
  };
  const params = { name: 'web-1' };
  const last = (id: string) => ({ isLast: (event: StreamEvent) => event.id === id });
  api.host.recorded(record);
  const bytes = Array.from({ length: writes }, (_, i) => `line ${i}\n`).join('');
  const streams = [
    collect(
      client.events('watchMetadata', { params, query: { from: `1.${from}` }, ...last(`1.${from + writes}`) }),
      'commit',
    ),
    collect(client.events('followAudit', { lastEventId: '1', ...last(String(writes + 1)) }), 'audit'),
    collect(client.events('streamConsole', { params, query: { offset: 0 }, ...last(String(bytes.length)) }), 'output'),
  ] as const;
  for (let i = 0; i < writes; i++) {
    await tree.edit([{ op: 'put', path: '/a', bytes: new TextEncoder().encode(String(i)) }], []);
    api.host.recorded(record);
    console.print(`line ${i}\n`);
    if (below(4) === 0) await turn();
    if (below(20) === 0) await api.ask({ path: '/healthz' });
  }
  const [commits, audits, output] = await Promise.all(streams);
  assert.deepEqual(
    commits.map(({ id }) => id),
    Array.from({ length: writes }, (_, i) => `1.${from + 1 + i}`),
  );
  assert.deepEqual(
    audits.map(({ id }) => id),
    Array.from({ length: writes }, (_, i) => String(i + 2)),
  );
  const text = output.map(({ data }) => Buffer.from((data as { base64: string }).base64, 'base64').toString()).join('');
  assert.equal(text, bytes);
  assert.ok(cutter.count() >= 10, `only ${cutter.count()} connections were cut`);
});

test('a stream goes on over a restart of the manager', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  using client = new Client({ socketPath: api.socketPath });
  const seen: (string | undefined)[] = [];
  const from = api.host.vms.get('web-1')!.tree.authority.snapshot.revision;
  const reading = (async () => {
    for await (const { event, id } of client.events('watchMetadata', {
      params: { name: 'web-1' },
      query: { from: `1.${from}` },
      isLast: (one) => one.id === `1.${from + 6}`,
    }))
      if (event === 'commit') seen.push(id);
  })();
  for (let i = 0; i < 6; i++) {
    await client.raw('writeMetadata', { params: { name: 'web-1', path: '/a' }, body: Buffer.from(`${i}`) });
    if (i % 2 === 1) await api.restart();
  }
  await reading;
  assert.deepEqual(
    seen,
    [1, 2, 3, 4, 5, 6].map((i) => `1.${from + i}`),
  );
});

test('a stream whose history is gone says so, at its start and in the middle', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const cutter = await startCutter(t, api);
  const { tree } = api.host.vms.get('web-1')!;
  using client = new Client({ socketPath: cutter.path });
  cutter.cuts.push(900);
  const events = client.events('watchMetadata', { params: { name: 'web-1' } });
  assert.equal((await events.next()).value?.event, 'start');
  tree.remembered = 1;
  const reading = (async () => {
    for (let next = await events.next(); next.done !== true; next = await events.next());
  })();
  const ended = assert.rejects(reading, (error) => error instanceof ClientError && error.code === 'COMPACTED');
  // Until the connection is cut; what comes before the client is back is forgotten.
  for (let i = 0; cutter.count() === 0; i++) {
    await tree.edit([{ op: 'put', path: `/b${i}`, bytes: new Uint8Array() }], []);
    await api.ask({ path: '/healthz' });
  }
  for (let i = 0; i < 20; i++) await tree.edit([{ op: 'put', path: `/c${i}`, bytes: new Uint8Array() }], []);
  await ended;
});

test('a watch of a path tells of that path alone, and of what lies below', async (t) => {
  const api = await startApi(t);
  await withVm(api);
  const { tree } = api.host.vms.get('web-1')!;
  using client = new Client({ socketPath: api.socketPath });
  const from = tree.authority.snapshot.revision;
  for (const path of ['/a', '/ab', '/a2/x', '/b/a', '/b/c/d'])
    await tree.edit([{ op: 'put', path, bytes: new Uint8Array() }], []);
  const paths: string[] = [];
  for await (const { event, data } of client.events('watchMetadata', {
    params: { name: 'web-1' },
    query: { path: '/b', from: `1.${from}` },
    isLast: ({ id }) => id === `1.${from + 5}`,
  }))
    if (event === 'commit')
      paths.push(...(data as { changes: { path: string }[] }).changes.map((change) => change.path));
  assert.deepEqual(paths.toSorted(), ['/b', '/b/a', '/b/c', '/b/c/d']);
});

test('the client waits for an operation, telling what it says', async (t) => {
  const api = await startApi(t);
  using client = new Client({ socketPath: api.socketPath });
  const gate = Promise.withResolvers<void>();
  api.host.addImageWith = async (_request, { progress }) => {
    progress({ step: 'converting', done: 1, total: 4 });
    await gate.promise;
    return { digest: `sha256:${'1'.repeat(64)}`, sizeBytes: 5, virtualSizeBytes: 10 };
  };
  const { id } = await client.call('addImage', { body: { name: 'tiny', recipe: 'tiny' } });
  const steps: string[] = [];
  const operation = await client.finished(id, {
    told: ({ step, state }) => {
      steps.push(`${state} ${step}`);
      if (step === 'converting') gate.resolve();
    },
  });
  assert.equal(operation.state, 'succeeded');
  assert.ok(steps.includes('running converting'), steps.join());
  assert.deepEqual((await client.call('getImage', { params: { image: 'tiny', version: '1' } })).sizeBytes, 5);
});

test('a backup arrives when making it takes longer than a connection may be idle', async (t) => {
  const idleMs = 1_000;
  const directory = mkdtempSync(join(tmpdir(), 'porthole-api-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const api: TestApi = await startApi(t, {
    listen: { limits: { idleMs } },
    manager: {
      upkeep: {
        stores: {
          backup: async (file) => {
            await pause(3 * idleMs);
            await api.stores.backup(file);
          },
          rotateDataKey: async () => 0,
          changeKeyFile: async () => {},
        },
        outgoingFile: join(directory, 'outgoing'),
      },
    },
  });
  using client = new Client({ socketPath: api.socketPath }, { idleMs });
  const { sizeBytes, chunks } = await client.download('createBackup');
  let bytes = 0;
  for await (const chunk of chunks) bytes += chunk.length;
  assert.equal(bytes, sizeBytes);
});
