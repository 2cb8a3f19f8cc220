import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { pino } from 'pino';
import { temporaryStore } from '../../test/store/temporary.ts';
import { until } from '../../test/until.ts';
import { type AccountRecord, type HostPort, KeyCopyRecord, type KeyRecord } from '../records/index.ts';
import { createKeyFile, type Key, type Operation, openStores, type Store } from '../store/index.ts';
import { Keys } from './keys.ts';
import { getRecord, type Kit, put } from './kit.ts';
import { Outbox } from './outbox.ts';

const dayMs = 24 * 3_600_000;

const kitOf = (region: Store, global: Store, wallMs: () => number = Date.now): Kit => ({
  region,
  global,
  host: {} as HostPort,
  connected: () => new Map(),
  regionName: 'local',
  wallMs,
  randomBytes,
  log: pino({ level: 'silent' }),
});

test('Keys ends what a key opened when its end lies further ahead than a timer reaches, and forgets it later', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let nowMs = 0;
  t.mock.method(performance, 'now', () => 0);
  const account: AccountRecord = { name: 'default', state: 'active', quotas: {}, createdAtMs: 0 };
  const values = new Map<Key, Uint8Array>([['account/default', Buffer.from(JSON.stringify(account))]]);
  // Nothing else is asked of them: `create` commits by what it is given.
  const region = { get: async () => undefined, commit: async () => ({ committed: true }) } as unknown as Store;
  const global = {
    get: async (key: string) => ({ key: Buffer.from(key), value: values.get(key), modRevision: 1 }),
  } as unknown as Store;
  const kit = kitOf(region, global, () => nowMs);
  const keys = new Keys(kit, new Outbox(kit));
  const committed: Operation[] = [];
  const create = (expiresAtMs: number | undefined) =>
    keys.create('default', { name: 'k', role: 'viewer', expiresAtMs }, async ({ operations }) => {
      committed.push(...operations);
      for (const one of operations) if (one.type === 'put') values.set(one.key, one.value);
      return true;
    });
  const { key, text } = await create(60 * dayMs);
  const { ended } = keys.check(text)!;
  for (let day = 1; day <= 59; day++) {
    nowMs += dayMs;
    t.mock.timers.tick(dayMs);
  }
  assert.equal(ended.aborted, false);
  nowMs += dayMs;
  t.mock.timers.tick(dayMs);
  assert.equal(ended.aborted, true);
  const isRemoved = (): boolean => committed.some((one) => one.type === 'delete' && one.key === `key/${key.id}`);
  await create(undefined);
  assert.equal(isRemoved(), false);
  nowMs += 31 * dayMs;
  await create(undefined);
  assert.equal(isRemoved(), true);
});

test('Keys are copied into a region that had none, and a revoked one does not come back by a late copy', async (t) => {
  const { directory, keyFile } = temporaryStore(t);
  createKeyFile(keyFile);
  await using stores = await openStores({ directory, keyFile });
  const { region, global } = stores;
  /** As a manager of another region makes one: nothing of it is in this one. */
  const made = async (id: string): Promise<string> => {
    const secret = randomBytes(32).toString('base64url');
    const secretHash = createHash('sha256').update(secret).digest('hex');
    const record: KeyRecord = { id, account: 'default', name: id, role: 'viewer', secretHash, createdAtMs: 0 };
    await global.commit({ operations: [put(`key/${id}`, record)] });
    return `ph_${id}_${secret}`;
  };
  const [first, late, last] = ['0'.repeat(16), '1'.repeat(16), '2'.repeat(16)] as const;

  const isRead = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  const slowGlobal = new Proxy(global, {
    get: (target, name: keyof Store) => {
      const member = target[name] as unknown;
      if (name !== 'get') return typeof member === 'function' ? (member.bind(target) as unknown) : member;
      return async (key: string) => {
        const entry = await target.get(key);
        if (key === `key/${late}` && entry !== undefined) {
          isRead.resolve();
          await gate.promise;
        }
        return entry;
      };
    },
  });
  const slowKit = kitOf(region, slowGlobal);
  const slow = new Keys(slowKit, new Outbox(slowKit));
  const firstText = await made(first);
  const stop = new AbortController();
  const running = slow.run(stop.signal);
  try {
    await slow.ready;
    assert.equal(slow.check(firstText)?.key.id, first);

    const lateText = await made(late);
    await isRead.promise;
    const kit = kitOf(region, global);
    const other = new Keys(kit, new Outbox(kit));
    const answer = { status: 204, headers: {}, body: '' };
    const commit = async (transaction: Parameters<Store['commit']>[0]) => (await region.commit(transaction)).committed;
    await other.revoke('default', late, commit, answer);
    assert.equal(await global.get(`key/${late}`), undefined);
    gate.resolve();

    // It copies one after the other.
    const lastText = await made(last);
    await until('the copy of the last', () => slow.check(lastText) !== undefined);
    assert.equal(slow.check(lateText), undefined);
    const mark = (await getRecord(region, KeyCopyRecord, `key/${late}`))!;
    assert.equal(mark.record.state, 'revoked');
    assert.equal(mark.modRevision, mark.createRevision, 'it was something else before, or since');
    await assert.rejects(other.revoke('default', late, commit, answer), { code: 'NOT_FOUND' });

    const account: AccountRecord = { name: 'default', state: 'active', quotas: {}, createdAtMs: 0 };
    await global.commit({ operations: [put('account/default', account)] });
    const created = await slow.create('default', { name: 'k', role: 'viewer', expiresAtMs: undefined }, async (one) => {
      await global.commit(one);
      const id = String(one.operations[0]!.key).slice('key/'.length);
      await other.revoke('default', id, commit, answer);
      const heard = await made('3'.repeat(16));
      await until('what came after it', () => slow.check(heard) !== undefined);
      return true;
    });
    assert.equal(slow.check(created.text), undefined, 'it was revoked before its maker knew of it');
  } finally {
    gate.resolve();
    stop.abort();
    await running;
  }
});
