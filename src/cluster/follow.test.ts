import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { z } from 'zod';
import { createKeyFile, openStores, type Store } from '../store/index.ts';
import { follow } from './follow.ts';
import { put } from './kit.ts';

test('follow holds no page of large records while it reads the next', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-follow-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const keyFile = join(directory, 'key');
  createKeyFile(keyFile);
  const stores = await openStores({ directory: join(directory, 'stores'), keyFile });
  t.after(() => stores.close());
  for (let id = 0; id < 8; id++)
    await stores.region.commit({ operations: [put(`batch/${id}`, { id, more: 'x'.repeat(900_000) })] });
  let pages = 0;
  let page: Awaited<ReturnType<Store['range']>> | undefined;
  const store = new Proxy(stores.region, {
    get: (target, name: keyof Store) => {
      if (name !== 'range') return (target[name] as () => unknown).bind(target);
      return async (...args: Parameters<Store['range']>) => {
        // Whoever still needs it finds nothing that makes sense.
        for (const { value } of page?.entries ?? []) value.fill(0);
        pages++;
        page = await target.range(...args);
        return page;
      };
    },
  });
  const stop = new AbortController();
  const told: object[] = [];
  await follow(
    { log: pino({ level: 'silent' }) },
    { store, prefix: 'batch/', schema: z.object({ id: z.int() }), signal: stop.signal },
    {
      all: (records) => {
        told.push(...records.map(({ record }) => record));
        stop.abort();
      },
      put: () => {},
      removed: () => {},
    },
  );
  assert.ok(pages > 1);
  assert.deepEqual(
    told,
    Array.from({ length: 8 }, (_, id) => ({ id })),
  );
});
