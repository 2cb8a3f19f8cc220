import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { pino } from 'pino';
import { temporaryStore } from '../../test/store/temporary.ts';
import type { HostPort, ImagePort } from '../records/index.ts';
import { createKeyFile, keyText, openStores, type Store } from '../store/index.ts';
import type { Kit } from './kit.ts';
import { Outbox, outboxEntry } from './outbox.ts';

/** A store in which the n-th commit crashes its process: before it happens, or after. */
const crashing = (store: Store, at: { left: number; after: boolean }): Store =>
  new Proxy(store, {
    get: (target, name: keyof Store) => {
      const member = target[name] as unknown;
      if (name !== 'commit') return typeof member === 'function' ? (member.bind(target) as unknown) : member;
      return async (...args: Parameters<Store['commit']>) => {
        if (at.left < 0) throw new Error('crashed');
        const isLast = at.left-- === 0;
        if (isLast && !at.after) throw new Error('crashed');
        const outcome = await target.commit(...args);
        if (isLast) throw new Error('crashed');
        return outcome;
      };
    },
  });

const kitOf = (region: Store, global: Store): Kit => ({
  region,
  global,
  host: {} as HostPort,
  images: {} as ImagePort,
  connected: () => new Map(),
  regionName: 'local',
  wallMs: Date.now,
  randomBytes,
  log: pino({ level: 'silent' }),
});

test('Outbox applies what waits when the store that it goes to was restored', async (t) => {
  const { directory, keyFile } = temporaryStore(t);
  createKeyFile(keyFile);
  await using stores = await openStores({ directory, keyFile });
  const { region, global } = stores;
  const kit = kitOf(region, global);
  const read = { epoch: region.epoch, globalEpoch: global.epoch - 1, revision: 1_000_000 };
  await global.commit({
    operations: [{ type: 'put', key: 'outboxread/local', value: Buffer.from(JSON.stringify(read)) }],
  });
  await region.commit({ operations: [outboxEntry(kit, [{ type: 'put', key: 'a', value: 'waits' }])] });
  await new Outbox(kit).drain();
  assert.equal(Buffer.from((await global.get('a'))!.value).toString(), 'waits');
});

test('Outbox brings every change over once and in order, wherever it crashes', async (t) => {
  const { directory, keyFile } = temporaryStore(t);
  createKeyFile(keyFile);
  await using stores = await openStores({ directory, keyFile });
  const change = fc.record({ key: fc.constantFrom('a', 'b', 'c'), value: fc.option(fc.nat(999), { nil: undefined }) });
  const crash = fc.record({ left: fc.nat(4), after: fc.boolean() });
  let run = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ changes: fc.array(change, { maxLength: 30 }), crash, other: fc.boolean() }), {
        minLength: 1,
        maxLength: 6,
      }),
      async (rounds) => {
        const prefix = `index/${run++}/`;
        const model = new Map<string, string>();
        for (const { changes, crash: at, other } of rounds) {
          for (const { key, value } of changes) {
            const operation =
              value === undefined
                ? ({ type: 'delete', key: `${prefix}${key}` } as const)
                : ({ type: 'put', key: `${prefix}${key}`, value: String(value) } as const);
            await stores.region.commit({ operations: [outboxEntry(kitOf(stores.region, stores.global), [operation])] });
            if (value === undefined) model.delete(key);
            else model.set(key, String(value));
          }
          const shared = { ...at };
          const outbox = new Outbox(kitOf(crashing(stores.region, shared), crashing(stores.global, shared)));
          const second = new Outbox(kitOf(stores.region, stores.global));
          await Promise.allSettled([outbox.drain(), ...(other ? [second.drain()] : [])]);
        }
        await new Outbox(kitOf(stores.region, stores.global)).drain();
        const { entries } = await stores.global.range({ start: prefix, end: `${prefix}\xff` });
        const found = entries.map(({ key, value }) => [
          keyText(key).slice(prefix.length),
          new TextDecoder().decode(value),
        ]);
        assert.deepEqual(Object.fromEntries(found), Object.fromEntries(model));
        const left = await stores.region.count({ start: 'outbox/', end: 'outbox0' });
        assert.equal(left.count, 0);
      },
    ),
    { numRuns: 40 },
  );
});
