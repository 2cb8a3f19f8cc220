import assert from 'node:assert/strict';
import { test } from 'node:test';
import { eventStream, type ServerEvent } from './sse.ts';

async function* endless(): AsyncGenerator<ServerEvent> {
  for (let i = 0; ; i++) yield { event: 'x', id: String(i), data: i };
}

const open = (timing: { heartbeatMs: number; stallMs: number }) => {
  const cut = Promise.withResolvers<void>();
  const { signal } = new AbortController();
  const body = eventStream(endless(), {
    requestId: 'r',
    signal,
    cutOff: cut.resolve,
    ended: () => {},
    ...timing,
  }).body!;
  return { reader: body.getReader(), cut: cut.promise };
};

test('eventStream cuts off a client that takes nothing, and none that takes slowly', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  let nowMs = 0;
  t.mock.method(performance, 'now', () => nowMs);
  const { reader, cut } = open({ heartbeatMs: 100, stallMs: 300 });
  const state = { isCut: false };
  const watching = (async () => {
    await cut;
    state.isCut = true;
  })();
  const turn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));
  const pass = async (): Promise<void> => {
    // Its queue is full again.
    await turn();
    nowMs += 100;
    t.mock.timers.tick(100);
    await turn();
  };
  for (let i = 0; i < 20 && !state.isCut; i++) {
    assert.equal((await reader.read()).done, false);
    await pass();
  }
  assert.equal(state.isCut, false);
  for (let i = 0; i < 5; i++) await pass();
  await watching;
});
