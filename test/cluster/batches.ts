/** What tests of requests about many VMs share, on whichever engine. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { pino } from 'pino';
import { Manager } from '../../src/cluster/index.ts';
import { entriesOf } from '../../src/cluster/kit.ts';
import { OperationRecord, VmRecord } from '../../src/records/index.ts';
import type { Store, Stores } from '../../src/store/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import type { Connections } from './connections.ts';
import type { HttpAnswer, Json } from './http.ts';
import { mortal } from './mortal.ts';
import { wish } from './placement.ts';

/** `PORTHOLE_BATCH_ROUNDS` does it more often. */
const rounds = Number(process.env['PORTHOLE_BATCH_ROUNDS'] ?? 1);

export const withImage = async (t: TestContext, stores?: Stores): Promise<TestApi> => {
  const api = await startApi(t, { stores, manager: { takeoverSeconds: 1 } });
  await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
  return api;
};

export const asked = async (api: TestApi, path: string, body: object): Promise<string> => {
  const answer = await api.ask({ method: 'POST', path, body });
  assert.equal(answer.status, 202, answer.text);
  return String(answer.headers['location']);
};

export const ended = async (api: TestApi, operation: string): Promise<Json> => {
  let answer: HttpAnswer | undefined;
  await until('the operation', async () => {
    answer = await api.ask({ path: operation });
    return !/"state":"(pending|running)"/.test(answer.text);
  });
  return answer!.json;
};

/** What every engine passes, with so many VMs; the manager that dies has connections of its own. */
export const completesOnceTest = (open: () => Connections, count: number): void => {
  test('a manager that dies in the middle is followed by another, and the operation completes once', async (t) => {
    const connections = open();
    const api = await withImage(t, await connections.connect());
    t.after(() => connections[Symbol.asyncDispose]());
    const own = await connections.connect();
    const { region } = api.stores;
    const log = pino({ level: 'silent' });
    for (let round = 0; round < rounds; round++) {
      // It alone sees to it; who lives comes later.
      await api.manager.close();
      const died = Promise.withResolvers<void>();
      const dying = { left: Number.MAX_SAFE_INTEGER, before: Math.random() < 0.5, died: () => died.resolve() };
      const stores = mortal(own, dying);
      const doomed = await Manager.open({
        region: stores.region,
        global: stores.global,
        host: api.host,
        images: api.host,
        log,
        takeoverSeconds: 1,
      });
      const commit = async (transaction: Parameters<Store['commit']>[0]) =>
        (await region.commit(transaction)).committed;
      const many = wish(`r${round}`, { image: { name: 'tiny', version: undefined } });
      let id = '';
      await doomed.batches.create('default', undefined, { wish: many, count, firstIndex: 1 }, commit, (operation) => {
        ({ id } = operation);
        return { status: 202, headers: {}, body: '' };
      });
      dying.left = 1 + Math.floor(Math.random() * count * 1.2);
      await died.promise;
      void doomed.close();
      await api.restart();
      const operation = await ended(api, `/v1/operations/${id}`);
      assert.deepEqual([operation['state'], operation['done'], operation['total']], ['succeeded', count, count]);
      const { entries } = await entriesOf(region, 'vm/');
      const vms = entries.map(({ value }) => VmRecord.parse(JSON.parse(new TextDecoder().decode(value))));
      assert.equal(vms.filter(({ name }) => name.startsWith(`r${round}-`)).length, count);
      const operations = (await entriesOf(region, 'operation/')).entries.map(({ value }) =>
        OperationRecord.parse(JSON.parse(new TextDecoder().decode(value))),
      );
      const creations = operations.filter(
        ({ kind, target }) => kind === 'vm.create' && target.name.startsWith(`r${round}-`),
      );
      assert.equal(creations.length, count, 'each VM was asked for once');
      await ended(api, await asked(api, '/v1/vm-actions', { action: 'delete', selector: { prefix: `r${round}-` } }));
    }
  });
};
