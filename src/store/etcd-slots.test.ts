import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EtcdClient, Patience } from './etcd-client.ts';
import { EtcdSlots, type Slot } from './etcd-slots.ts';

test('EtcdSlots.take ends with the patience or the signal of who waits, and wakes the next', async (t) => {
  const client = new EtcdClient({ endpoints: ['127.0.0.1:1'] });
  t.after(() => client.close());
  const slots = new EtcdSlots(client, 'p/');
  const patient = (): Patience => new Patience(60_000);
  const taken: Slot[] = [];
  for (let i = 0; i < 64; i++) taken.push(await slots.take(patient()));
  await assert.rejects(slots.take(new Patience(1)), { code: 'STORE_UNAVAILABLE' });
  const stop = new AbortController();
  const stopped = slots.take(patient(), stop.signal);
  const next = slots.take(patient());
  stop.abort(new Error('nobody waits for it'));
  slots.release(taken[0]!, true);
  await assert.rejects(stopped, /nobody waits for it/);
  assert.equal(await next, taken[0]);
});
