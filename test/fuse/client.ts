/** Plays the kernel towards a session: builds requests from the operation table and keeps the answers, for tests. */
import assert from 'node:assert/strict';
import { abi, type Exchange, type HeldExchange, operations, type RequestHandler } from '../../src/fuse/index.ts';
import type { Field } from '../../src/wire/index.ts';
import { fieldOf } from './fields.ts';

const IN = abi.InHeader.sizeBytes;
const OUT = abi.OutHeader.sizeBytes;
const ROOM = 2 * 1024 * 1024;

/** One answer, filled in when it comes. `errno` undefined: nothing came yet. */
export class Answer {
  readonly capacity: number;
  readonly unique: number;
  errno: number | undefined;
  body = new Uint8Array();
  /** Replies and noReply calls; must end at 1. */
  answers = 0;
  silent = false;
  held = false;

  constructor(capacity: number, unique: number) {
    this.capacity = capacity;
    this.unique = unique;
  }

  accept(head: Uint8Array, headBytes: number, payload: Uint8Array = new Uint8Array()): void {
    this.answers++;
    const total = headBytes + payload.length;
    assert.ok(total <= this.capacity, `a reply of ${total} bytes where ${this.capacity} fit`);
    const bytes = new Uint8Array(total);
    bytes.set(head.subarray(0, headBytes));
    bytes.set(payload, headBytes);
    const view = new DataView(bytes.buffer);
    assert.equal(abi.OutHeader.len.get(view, 0), total, 'fuse_out_header.len');
    this.errno = 0 - abi.OutHeader.error.get(view, 0);
    this.body = bytes.subarray(OUT);
    if (this.errno !== 0) assert.equal(total, OUT, 'an error has no body');
  }

  get(field: Field, base = 0): number {
    return field.get(new DataView(this.body.buffer, this.body.byteOffset), base);
  }

  get text(): string {
    return new TextDecoder().decode(this.body);
  }
}

class TestExchange implements Exchange {
  readonly request = new Uint8Array(ROOM);
  readonly view = new DataView(this.request.buffer);
  requestBytes = 0;
  replyCapacity = 0;
  answer = new Answer(0, 0);

  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void {
    this.answer.accept(head, headBytes, payload);
  }

  noReply(): void {
    this.answer.answers++;
    this.answer.silent = true;
  }

  hold(): HeldExchange {
    const { answer } = this;
    answer.held = true;
    return {
      replyCapacity: answer.capacity,
      reply: (head, headBytes, payload) => answer.accept(head, headBytes, payload),
      noReply: () => {
        answer.answers++;
        answer.silent = true;
      },
    };
  }
}

export interface Send {
  readonly nodeid?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly pid?: number;
  readonly unique?: number;
  readonly capacity?: number;
  /** Fields of the fixed part; others are 0. */
  readonly in?: Readonly<Record<string, number>>;
  /** After the fixed part: each string is ended by NUL. */
  readonly rest?: readonly (string | Uint8Array)[];
}

const encoder = new TextEncoder();

export class Client {
  readonly exchange = new TestExchange();
  readonly session: RequestHandler;
  #unique = 2;

  constructor(session: RequestHandler) {
    this.session = session;
  }

  /** Sends `bytes` as they are. */
  raw(bytes: Uint8Array, capacity = ROOM): Answer {
    const { exchange } = this;
    exchange.request.set(bytes);
    exchange.requestBytes = bytes.length;
    exchange.replyCapacity = capacity;
    exchange.answer = new Answer(capacity, 0);
    const { answer } = exchange;
    this.session.handle(exchange);
    if (!answer.held) assert.equal(answer.answers, 1, 'answers to one request');
    return answer;
  }

  send(name: string, options: Send = {}): Answer {
    return this.raw(this.frame(name, options), options.capacity);
  }

  frame(name: string, options: Send = {}): Uint8Array {
    const row = operations.find((operation) => operation.name === name);
    assert.ok(row, `no operation ${name}`);
    const fixedBytes = name === 'SETXATTR' ? abi.FUSE_COMPAT_SETXATTR_IN_SIZE : (row.in?.sizeBytes ?? 0);
    const rest = (options.rest ?? []).flatMap((part) =>
      typeof part === 'string' ? [...encoder.encode(part), 0] : [...part],
    );
    const bytes = new Uint8Array(IN + fixedBytes + rest.length);
    const view = new DataView(bytes.buffer);
    abi.InHeader.len.set(view, 0, bytes.length);
    abi.InHeader.opcode.set(view, 0, row.opcode);
    abi.InHeader.unique.set(view, 0, options.unique ?? (this.#unique += 2));
    abi.InHeader.nodeid.set(view, 0, options.nodeid ?? 1);
    abi.InHeader.uid.set(view, 0, options.uid ?? 0);
    abi.InHeader.gid.set(view, 0, options.gid ?? options.uid ?? 0);
    abi.InHeader.pid.set(view, 0, options.pid ?? 100);
    for (const [key, value] of Object.entries(options.in ?? {})) fieldOf(row.in!, key).set(view, IN, value);
    bytes.set(rest, IN + fixedBytes);
    return bytes;
  }

  init(flags = 0x7fffffff, minor = 38): Answer {
    return this.send('INIT', { nodeid: 0, in: { major: 7, minor, maxReadahead: 131072, flags, flags2: 0xffff_ffff } });
  }

  lookup(nodeid: number, name: string, uid = 0): Answer {
    return this.send('LOOKUP', { nodeid, uid, rest: [name] });
  }

  /** The nodeid at `path`; fails when a name is not there. */
  walk(path: string, uid = 0): number {
    let nodeid = 1;
    for (const name of path.split('/').filter(Boolean)) {
      const answer = this.lookup(nodeid, name, uid);
      assert.equal(answer.errno, 0, `LOOKUP of ${name} in ${path}`);
      nodeid = answer.get(abi.EntryOut.nodeid);
    }
    return nodeid;
  }

  open(nodeid: number, flags = 0, uid = 0, pid = 100): Answer {
    return this.send('OPEN', { nodeid, uid, pid, in: { flags } });
  }

  read(fh: number, size = 65536, offset = 0, options: Send = {}): Answer {
    return this.send('READ', { ...options, in: { fh, offset, size, ...options.in } });
  }

  release(fh: number): Answer {
    return this.send('RELEASE', { in: { fh } });
  }
}

/** Entries of a READDIR answer. */
export function entriesIn(
  body: Uint8Array,
  plus = false,
): { name: string; ino: number; off: number; nodeid: number }[] {
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  const head = plus ? abi.EntryOut.sizeBytes : 0;
  const entries = [];
  for (let at = 0; at < body.length; ) {
    const length = abi.Dirent.namelen.get(view, at + head);
    const start = at + head + abi.Dirent.sizeBytes;
    entries.push({
      name: new TextDecoder().decode(body.subarray(start, start + length)),
      ino: abi.Dirent.ino.get(view, at + head),
      off: abi.Dirent.off.get(view, at + head),
      nodeid: plus ? abi.EntryOut.nodeid.get(view, at) : 0,
    });
    at += Math.ceil((head + abi.Dirent.sizeBytes + length) / 8) * 8;
  }
  return entries;
}
