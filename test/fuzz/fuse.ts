/** FUSE requests from random bytes, for fuzzers: whatever a guest sends gets one answer that fits. */
import assert from 'node:assert/strict';
import { abi, FuseSession, operations } from '../../src/fuse/index.ts';
import { ways } from '../../src/tree/index.ts';
import { Client } from '../fuse/client.ts';
import { fieldOf } from '../fuse/fields.ts';
import { World } from '../tree/world.ts';
import { Choices } from './choices.ts';
import { assertHostAccepts } from './mutations.ts';

const MAX_REQUESTS = 64;
const names = ['instance', 'id', 'guest', '.changes', 'a', 'b', '..', '', 'x/y', '\u00e9', 'n'.repeat(256)];
const capacities = [0, 15, 16, 24, 32, 64, 120, 144, 160, 4096, 70_000];
/** What fields are likely to mean something with. */
const numbers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 64, 255, 511, 4096, 65_536, 0x7fff_ffff, 0xffff_ffff, 2 ** 40, 2 ** 63];

function request(client: Client, choose: Choices): Uint8Array {
  const row = choose.of(operations);
  const values: Record<string, number> = {};
  for (const name of row.in?.fields ?? []) {
    const { size } = fieldOf(row.in!, name);
    if (size <= 8) values[name] = choose.of(numbers) % 2 ** (size * 8);
  }
  const parts = { nothing: 0, name: 1, 'two names': 2, 'name and data': 2, data: 1, array: 1 }[row.rest];
  const isText = row.rest === 'name' || row.rest === 'two names';
  const rest = Array.from({ length: parts }, (_, index) =>
    isText || (row.rest === 'name and data' && index === 0) ? choose.of(names) : new Uint8Array(choose.byte()),
  );
  const fixed = row.name === 'SETXATTR' ? {} : values;
  const frame = client.frame(row.name, { nodeid: choose.of(numbers), uid: choose.of([0, 1000]), in: fixed, rest });
  return mutated(frame, choose);
}

/** Leaves most frames as they are; shortens some, and changes single bytes of others. */
function mutated(frame: Uint8Array, choose: Choices): Uint8Array {
  const how = choose.byte();
  if (how >= 240) return frame.subarray(0, choose.byte() % (frame.length + 1));
  if (how >= 200) {
    frame[choose.byte() % frame.length] = choose.byte();
    if (how >= 220) new DataView(frame.buffer).setUint32(0, frame.length, true);
  }
  return frame;
}

/**
 * Plays the requests that `bytes` choose to a new session. Fails on an exception within it, a request without answer, two
 * answers, or an answer that does not fit.
 */
export function fuzzFuse(bytes: Uint8Array): void {
  const choose = new Choices(bytes);
  const world = new World({ content: { instance: { id: 'i-1' }, guest: {} } });
  world.onMutation = assertHostAccepts;
  const transport = choose.of(['virtiofs', 'dev-fuse'] as const);
  const said: string[] = [];
  const session = new FuseSession(world.fileSystem(transport === 'virtiofs' ? ways.virtiofs : ways.mount), {
    transport,
    clock: world.clock,
    notifier: { notify: (message) => assert.ok(message.length >= abi.OutHeader.sizeBytes) },
    log: (message) => said.push(message),
  });
  const client = new Client(session);
  if (choose.byte() !== 0) client.init();
  client.send('LOOKUP', { rest: ['instance'] });
  client.send('LOOKUP', { rest: ['guest'] });
  const answers = [];
  for (let count = 0; count < MAX_REQUESTS && !choose.ended; count++) {
    const frame = request(client, choose);
    answers.push(client.raw(frame, choose.of(capacities)));
    if (choose.byte() === 255) world.load({ content: { instance: { id: `i-${count}` }, guest: {} } });
  }
  assert.equal(session.bugs, 0, said.join('\n'));
  client.init();
  for (const answer of answers) assert.equal(answer.answers, 1, 'every request has one answer in the end');
}
