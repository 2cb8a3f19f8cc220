import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { pino } from 'pino';
import type { AccountRecord, HostPort } from '../records/index.ts';
import type { Operation, Store } from '../store/index.ts';
import { Keys } from './keys.ts';

const dayMs = 24 * 3_600_000;

test('Keys ends what a key opened when its end lies further ahead than a timer reaches, and forgets it later', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let nowMs = 0;
  t.mock.method(performance, 'now', () => 0);
  const account: AccountRecord = { name: 'default', state: 'active', quotas: {}, createdAtMs: 0 };
  const value = Buffer.from(JSON.stringify(account));
  const keys = new Keys({
    // Nothing else is asked of them: `create` commits by what it is given.
    region: {} as Store,
    global: { get: async () => ({ key: Buffer.from('account/default'), value, modRevision: 1 }) } as unknown as Store,
    host: {} as HostPort,
    regionName: 'local',
    wallMs: () => nowMs,
    randomBytes,
    log: pino({ level: 'silent' }),
  });
  const committed: Operation[] = [];
  const create = (expiresAtMs: number | undefined) =>
    keys.create('default', { name: 'k', role: 'viewer', expiresAtMs }, async ({ operations }) => {
      committed.push(...operations);
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
