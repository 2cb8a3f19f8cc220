/** A 9P2000.L client for tests: encodes from the operation table, and holds the server to the protocol. */
import assert from 'node:assert/strict';
import {
  abi,
  NinepSession,
  type NinepSessionOptions,
  type NinepTransport,
  type Operation,
  operations,
} from '../../src/ninep/index.ts';
import type { FileSystem } from '../../src/tree/index.ts';
import { EINTR, type Field } from '../../src/wire/index.ts';
import { fieldOf } from '../fuse/fields.ts';

const HEADER = abi.Header.sizeBytes;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** Fields and strings of a message by name; what is missing is 0 or ''. */
export type Fields = Readonly<Record<string, number | string | Uint8Array | readonly (string | Uint8Array)[]>>;

export const rowNamed = (name: string): Operation => {
  const row = operations.find((operation) => operation.name === name);
  assert.ok(row, `no message ${name}`);
  return row;
};

const fixed = (table: { readonly fields: readonly string[]; readonly sizeBytes: number }, fields: Fields): number[] => {
  const bytes = new Uint8Array(table.sizeBytes);
  const view = new DataView(bytes.buffer);
  for (const name of table.fields) {
    const value = fields[name] ?? 0;
    assert.equal(typeof value, 'number', name);
    fieldOf(table, name).set(view, 0, value as number);
  }
  return [...bytes];
};

const string = (value: Fields[string] | undefined): number[] => {
  const bytes = typeof value === 'string' || value === undefined ? encoder.encode(value ?? '') : (value as Uint8Array);
  return [bytes.length & 0xff, bytes.length >> 8, ...bytes];
};

/** size[4] type[1] tag[2] and the body. */
export function frameOf(type: number, tag: number, body: ArrayLike<number>): Uint8Array {
  const bytes = new Uint8Array(HEADER + body.length);
  const view = new DataView(bytes.buffer);
  abi.Header.size.set(view, 0, bytes.length);
  abi.Header.type.set(view, 0, type);
  abi.Header.tag.set(view, 0, tag);
  bytes.set(body, HEADER);
  return bytes;
}

/** A request as a client would send it. `nwname` and `count` follow from `names` and `data` unless they are given. */
export function frame(name: string, tag: number, fields: Fields = {}): Uint8Array {
  const { type, shape } = rowNamed(name);
  if (shape === undefined) return frameOf(type, tag, []);
  const names = (fields['names'] ?? []) as readonly (string | Uint8Array)[];
  const data = (fields['data'] ?? []) as Uint8Array;
  const counts =
    shape.counted === 'names' ? { nwname: names.length } : shape.counted === 'data' ? { count: data.length } : {};
  return frameOf(type, tag, [
    ...fixed(shape.head, { ...counts, ...fields }),
    ...shape.strings.flatMap((key) => string(fields[key])),
    ...(shape.tail === undefined ? [] : fixed(shape.tail, fields)),
    ...shape.after.flatMap((key) => string(fields[key])),
    ...names.flatMap(string),
    ...(shape.counted === 'data' ? data : []),
  ]);
}

/** What became of one request. */
export class Reply {
  readonly name: string;
  readonly tag: number;
  /** Undefined until it is answered. */
  body: Uint8Array | undefined;
  errno: number | undefined;
  #wake: () => void = () => undefined;

  constructor(name: string, tag: number) {
    this.name = name;
    this.tag = tag;
  }

  answer(type: number, body: Uint8Array): void {
    assert.equal(this.body, undefined, `${this.name} is answered once`);
    this.body = body;
    const view = new DataView(body.buffer, body.byteOffset, body.length);
    this.errno = type === abi.RLERROR ? view.getUint32(0, true) : 0;
    if (type === abi.RLERROR) assert.ok(body.length === 4 && this.errno > 0 && this.errno < 134, 'an errno');
    else assert.equal(type, rowNamed(this.name).type + 1, `${this.name} is answered by its R-message`);
    this.#wake();
  }

  /** It was flushed, and no answer will come. */
  giveUp(): void {
    this.body = new Uint8Array();
    this.errno = EINTR;
    this.#wake();
  }

  get view(): DataView {
    assert.ok(this.body !== undefined, `${this.name} is answered`);
    return new DataView(this.body.buffer, this.body.byteOffset, this.body.length);
  }

  get(field: Field, base = 0): number {
    assert.equal(this.errno, 0, this.name);
    return field.get(this.view, base);
  }

  /** Resolves when it is answered. */
  async answered(): Promise<this> {
    if (this.body === undefined) await new Promise<void>((wake) => (this.#wake = wake));
    return this;
  }

  /** Bytes after `count[4]`. */
  get data(): Uint8Array {
    assert.equal(this.get(abi.Count.count), this.body!.length - 4, 'count');
    return this.body!.subarray(4);
  }
}

export type ClientOptions = Partial<Omit<NinepSessionOptions, 'transport' | 'fileSystem'>>;

/** What takes the client's bytes: a session in this process, or a line to one elsewhere. */
export interface Server {
  receive(bytes: Uint8Array): number;
}

export abstract class AnyClient<S extends Server> implements NinepTransport {
  readonly session: S;
  readonly #waiting = new Map<number, Reply>();
  /** Tags in the order in which they were answered. */
  readonly order: number[] = [];
  msize = abi.MIN_MSIZE;
  closedBy: string | undefined;
  /** What `send` answers: false is a client that does not read. */
  reads = true;
  resumed = 0;
  #tag = 0;
  #fid = 0;

  constructor(session: (client: NinepTransport) => S) {
    this.session = session(this);
  }

  send(bytes: Uint8Array, frameBytes: number): boolean {
    assert.equal(this.closedBy, undefined, 'nothing is sent after the end');
    const reply = bytes.slice(0, frameBytes);
    const view = new DataView(reply.buffer);
    assert.equal(abi.Header.size.get(view, 0), frameBytes, 'size');
    assert.ok(frameBytes < this.msize, `a frame of ${frameBytes} bytes is shorter than msize ${this.msize}`);
    const tag = abi.Header.tag.get(view, 0);
    const waiting = this.#waiting.get(tag);
    assert.ok(waiting !== undefined, `tag ${tag} waits for an answer`);
    this.#waiting.delete(tag);
    this.order.push(tag);
    waiting.answer(abi.Header.type.get(view, 0), reply.subarray(HEADER));
    return this.reads;
  }

  resume(): void {
    this.resumed++;
  }

  close(reason: string): void {
    assert.equal(this.closedBy, undefined, 'closed once');
    this.closedBy = reason;
  }

  /** How many requests have no answer. */
  get unanswered(): number {
    return this.#waiting.size;
  }

  newFid(): number {
    return ++this.#fid;
  }

  newTag(): number {
    do this.#tag = (this.#tag + 1) % abi.NOTAG;
    while (this.#waiting.has(this.#tag));
    return this.#tag;
  }

  /** The reply to whatever is sent with that tag. */
  expect(name: string, tag: number): Reply {
    const reply = new Reply(name, tag);
    this.#waiting.set(tag, reply);
    return reply;
  }

  /** Sends a request, and waits for nothing. */
  start(name: string, fields: Fields = {}, tag = this.newTag()): Reply {
    const reply = this.expect(name, tag);
    const bytes = frame(name, tag, fields);
    assert.equal(this.session.receive(bytes), bytes.length, 'all of it was taken');
    return reply;
  }

  /** A request that is answered when this returns, where the server does so at once. */
  call(name: string, fields: Fields = {}, tag = this.newTag()): Reply {
    return this.start(name, fields, tag);
  }

  /** A call that succeeds at once. */
  ok(name: string, fields: Fields = {}): Reply {
    const reply = this.call(name, fields);
    assert.equal(reply.errno, 0, name);
    return reply;
  }

  version(msize = 65_536, version = '9P2000.L'): Reply {
    this.#waiting.clear();
    const reply = this.call('Tversion', { msize, version }, abi.NOTAG);
    if (reply.errno === 0) this.msize = reply.get(abi.Rversion.msize);
    return reply;
  }

  /** A fid of the root, for a uid. */
  attach(uid: number = abi.NONUNAME, fid = this.newFid()): number {
    this.ok('Tattach', { fid, afid: abi.NOFID, nUname: uid, aname: '/' });
    return fid;
  }

  /** A new fid of what `path` names, from another fid. */
  walk(fid: number, path: string): number {
    const newfid = this.newFid();
    const names = path.split('/').filter(Boolean);
    const reply = this.ok('Twalk', { fid, newfid, names });
    assert.equal(reply.get(abi.Rwalk.nwqid), names.length, path);
    return newfid;
  }

  open(root: number, path: string, flags = 0): number {
    const fid = this.walk(root, path);
    this.ok('Tlopen', { fid, flags });
    return fid;
  }

  /** Gives a request up, as a signal makes Linux do: when it is not answered before Rflush, it ends with EINTR. */
  flush(oldtag: number): Reply {
    const flushed = this.#waiting.get(oldtag);
    const reply = this.call('Tflush', { oldtag });
    if (flushed?.body === undefined && reply.errno === 0) {
      this.#waiting.delete(oldtag);
      flushed?.giveUp();
    }
    return reply;
  }

  clunk(fid: number): Reply {
    return this.call('Tclunk', { fid });
  }
}

/** Of a session in this process. */
export class Client extends AnyClient<NinepSession> {
  constructor(fileSystem: FileSystem, options: ClientOptions = {}) {
    super((transport) => new NinepSession({ transport, fileSystem, isUser: () => true, ...options }));
  }
}

export interface Entry {
  readonly name: string;
  readonly ino: number;
  readonly offset: number;
  readonly type: number;
}

/** Entries of an Rreaddir. */
export function entriesIn(bytes: Uint8Array): Entry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const entries: Entry[] = [];
  for (let at = 0; at < bytes.length; ) {
    const start = at + abi.Dirent.sizeBytes;
    const end = start + abi.Dirent.nameBytes.get(view, at);
    entries.push({
      name: decoder.decode(bytes.subarray(start, end)),
      ino: abi.Qid.path.get(view, at),
      offset: abi.Dirent.offset.get(view, at),
      type: abi.Dirent.type.get(view, at),
    });
    at = end;
  }
  return entries;
}
