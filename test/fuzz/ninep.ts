/** 9P2000.L streams from random bytes, for fuzzers: whatever a client sends is answered once, or ends its session. */
import assert from 'node:assert/strict';
import { abi, NinepSession, operations } from '../../src/ninep/index.ts';
import { ways } from '../../src/tree/index.ts';
import { fieldOf } from '../fuse/fields.ts';
import { type Fields, frame, frameOf } from '../ninep/client.ts';
import { Symlink, World } from '../tree/world.ts';
import { Choices } from './choices.ts';
import { assertHostAccepts } from './mutations.ts';

const MAX_REQUESTS = 96;
const TVERSION = 100;
const RVERSION = 101;
const TFLUSH = 108;
const HEADER = abi.Header.sizeBytes;
const fids = [1, 2, 3, 4, 5, 6, 7, 8, 99, abi.NOFID];
const names = [
  'instance',
  'id',
  'guest',
  '.changes',
  'link',
  'a',
  'b',
  '..',
  '.',
  '',
  'x/y',
  'é',
  'a\0b',
  'n'.repeat(256),
];
const texts = ['9P2000.L', '9P2000', '/', 'system.porthole.why', 'system.posix_acl_access', 'user.x', ...names];
/** What fields are likely to mean something with. */
const numbers = [
  0,
  1,
  2,
  3,
  4,
  8,
  16,
  64,
  0o200,
  0o644,
  0o755,
  0o1000,
  4095,
  4096,
  65_536,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 63,
];
/** Rows that get anywhere come often. */
const often: ReadonlySet<string> = new Set([
  'Tattach',
  'Twalk',
  'Tlopen',
  'Tlcreate',
  'Tread',
  'Treaddir',
  'Twrite',
  'Tclunk',
  'Tflush',
  'Txattrwalk',
]);
const rows = [...operations, ...operations.filter(({ name }) => often.has(name)), ...operations.slice(0, 4)];
const deep = operations.filter(({ name }) => often.has(name));
const isFid = /fid$/i;

function request(choose: Choices, tag: number): Uint8Array {
  const drawn = choose.of(rows);
  // It ends all that was built up.
  const row = drawn.name === 'Tversion' && choose.byte() < 200 ? choose.of(deep) : drawn;
  const { shape } = row;
  if (shape === undefined) return frameOf(row.type, tag, new Uint8Array(choose.byte()));
  const fields: Record<string, Fields[string]> = {};
  for (const table of [shape.head, shape.tail])
    for (const key of table?.fields ?? []) {
      if ((shape.counted === 'names' && key === 'nwname') || (shape.counted === 'data' && key === 'count')) continue;
      const { size } = fieldOf(table!, key);
      if (key === 'afid') fields[key] = choose.byte() < 250 ? abi.NOFID : 1;
      else if (isFid.test(key)) fields[key] = choose.of(fids);
      else if (key === 'oldtag') fields[key] = choose.byte();
      else if (key === 'msize') fields[key] = choose.of([4096, 8192, 65_536, 2 ** 32 - 1, 100]);
      else fields[key] = choose.of(numbers) % 2 ** (size * 8);
    }
  for (const key of [...shape.strings, ...shape.after]) fields[key] = choose.of(key.endsWith('name') ? names : texts);
  if (row.name === 'Tversion') fields['version'] = choose.byte() < 200 ? '9P2000.L' : choose.of(texts);
  if (shape.counted === 'names') fields['names'] = Array.from({ length: choose.byte() % 5 }, () => choose.of(names));
  if (shape.counted === 'data') fields['data'] = new Uint8Array(choose.byte());
  return mutated(frame(row.name, tag, fields), choose);
}

/** Leaves most frames as they are; shortens some, and changes single bytes of others. */
function mutated(bytes: Uint8Array, choose: Choices): Uint8Array {
  const how = choose.byte();
  if (how >= 254) return bytes.subarray(0, choose.byte() % (bytes.length + 1));
  if (how >= 251) bytes[choose.byte() % bytes.length] = choose.byte();
  return bytes;
}

/** What the client waits for, as it follows from the stream that it sent. */
class Ledger {
  /** How many requests of each tag. */
  readonly #waiting = new Map<number, number>();
  readonly #flushed = new Set<number>();
  msize = abi.MIN_MSIZE;
  #rest = new Uint8Array();

  sent(bytes: Uint8Array): void {
    let stream = Uint8Array.from([...this.#rest, ...bytes]);
    for (;;) {
      const view = new DataView(stream.buffer, stream.byteOffset, stream.length);
      const size = stream.length < 4 ? Number.POSITIVE_INFINITY : abi.Header.size.get(view, 0);
      if (size < HEADER || size > stream.length) break;
      const tag = abi.Header.tag.get(view, 0);
      const type = abi.Header.type.get(view, 0);
      // Nothing of before is answered any more.
      if (type === TVERSION) this.#forget();
      if (type === TFLUSH && size === HEADER + 2) this.#flushed.add(abi.Tflush.oldtag.get(view, HEADER));
      this.#waiting.set(tag, (this.#waiting.get(tag) ?? 0) + 1);
      stream = stream.subarray(size);
    }
    this.#rest = Uint8Array.from(stream);
  }

  answered(bytes: Uint8Array, frameBytes: number): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, frameBytes);
    assert.equal(abi.Header.size.get(view, 0), frameBytes);
    if (abi.Header.type.get(view, 0) === RVERSION) this.msize = abi.Rversion.msize.get(view, HEADER);
    assert.ok(frameBytes < this.msize, `${frameBytes} bytes in a session of msize ${this.msize}`);
    const tag = abi.Header.tag.get(view, 0);
    const count = this.#waiting.get(tag) ?? 0;
    assert.ok(count > 0, 'one answer to each request');
    if (count === 1) this.#waiting.delete(tag);
    else this.#waiting.set(tag, count - 1);
  }

  /** Of those that were flushed nothing may be said. */
  get unanswered(): number {
    return [...this.#waiting.keys()].filter((tag) => !this.#flushed.has(tag)).length;
  }

  #forget(): void {
    this.#waiting.clear();
    this.#flushed.clear();
  }
}

/**
 * Plays the stream that `bytes` choose to a new session. Fails on an exception within it, a request without answer, two
 * answers, a frame that is too long, or anything left open when it has ended. Returns whether the session broke it off.
 */
export function fuzzNinep(bytes: Uint8Array): boolean {
  const choose = new Choices(bytes);
  const world = new World({ content: { instance: { id: 'i-1', link: new Symlink('id') }, guest: {} } });
  world.onMutation = assertHostAccepts;
  const said: string[] = [];
  const ledger = new Ledger();
  const fileSystem = world.fileSystem(ways.ninep);
  let closed = false;
  const session = new NinepSession({
    fileSystem,
    isUser: (uid) => uid < 5000,
    log: (message) => said.push(message),
    maxMsizeBytes: 65_536,
    maxFids: 8,
    transport: {
      send: (reply, frameBytes) => {
        assert.ok(!closed, 'nothing is sent after the end');
        ledger.answered(reply, frameBytes);
        return true;
      },
      resume: () => undefined,
      close: () => {
        closed = true;
      },
    },
  });
  let tag = 0;
  const send = (message: Uint8Array) => {
    ledger.sent(message);
    assert.equal(session.receive(message), message.length);
  };
  if (choose.byte() !== 0) {
    send(frame('Tversion', abi.NOTAG, { msize: 65_536, version: '9P2000.L' }));
    send(frame('Tattach', ++tag, { fid: 1, afid: abi.NOFID, nUname: choose.of([0, 1000, abi.NONUNAME]) }));
    send(frame('Twalk', ++tag, { fid: 1, newfid: 2, names: ['guest'] }));
    send(frame('Twalk', ++tag, { fid: 1, newfid: 3, names: ['.changes'] }));
  }
  for (let count = 0; count < MAX_REQUESTS && !choose.ended && !session.ended; count++) {
    send(request(choose, choose.byte() === 255 ? choose.byte() : ++tag));
    if (choose.byte() === 255) world.load({ content: { instance: { id: `i-${count}` }, guest: {} } });
  }
  assert.equal(session.bugs, 0, said.join('\n'));
  assert.equal(closed, session.ended);
  if (!closed) {
    session.flushWaiters();
    assert.equal(session.held.requests, 0, 'nothing waits for anything else');
    assert.equal(ledger.unanswered, 0, 'every request has one answer in the end');
  }
  session[Symbol.dispose]();
  assert.equal(fileSystem.openHandles, 0);
  return closed;
}
