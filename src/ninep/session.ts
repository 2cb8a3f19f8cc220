/** One 9P2000.L session: a stream of bytes in, frames out, decisions of the file system between. Knows no transport. */
import type { FileSystem } from '../tree/index.ts';
import { EIO, EOPNOTSUPP } from '../wire/index.ts';
import * as abi from './abi.ts';
import { operations, refusalOf, rowOf } from './operations.ts';
import { type AttachRequest, BODY, SessionState } from './state.ts';

/** What a session asks of who carries its bytes. */
export interface NinepTransport {
  /**
   * Sends the first `frameBytes` bytes of `frame`, which is written over when this returns. False: the client has not taken
   * enough of what was sent before, and no further request is looked at until `NinepSession.drained`.
   */
  send(frame: Uint8Array, frameBytes: number): boolean;
  /** What `receive` did not take may be given to it again. Not called from within `receive`. */
  resume(): void;
  /** The client broke the protocol: the connection is to be closed. Nothing is sent after it. */
  close(reason: string): void;
}

export interface NinepSessionOptions {
  readonly transport: NinepTransport;
  /** Its handles are this session's alone: they end with it. */
  readonly fileSystem: FileSystem;
  /** Who may attach: 0, or the errno to refuse with. Default: everybody. */
  readonly attach?: (request: AttachRequest) => number;
  /** Whether the policy knows a uid; all others are nobody (65534). */
  readonly isUser: (uid: number) => boolean;
  /** Who an attach is that names no uid, as that of mount(8), from now on; undefined: nobody. Default: nobody. */
  readonly uidOfMount?: () => number | undefined;
  /** For people: bugs, the first of each session. */
  readonly log?: (message: string) => void;
  readonly maxMsizeBytes?: number;
  readonly maxFids?: number;
  /** Requests that are under way. Beyond it, the client's next ones wait. */
  readonly maxRequests?: number;
  /** Bytes of their frames, with the same effect. */
  readonly maxRequestBytes?: number;
  /** Bytes of extended attributes that fids hold. */
  readonly maxXattrBytes?: number;
}

const mebibyte = 1024 * 1024;
const MAX_MSIZE = mebibyte / 4;
/** A frame carries a value of 1 MiB at most, which is what a link to the host takes. */
const GREATEST_MSIZE = mebibyte;
const MAX_FIDS = 32_768;
const MAX_REQUESTS = 256;
const MAX_REQUEST_BYTES = 4 * mebibyte;
const MAX_XATTR_BYTES = 4 * mebibyte;

/** What can be wrong with a frame: the session ends, because nobody knows where the next one begins or whom it is for. */
const malformations = {
  'a frame is shorter than its header': 'short',
  'a frame is longer than msize': 'long',
  'the parts of a message do not fill its frame': 'body',
  'a tag is used again before its request is answered': 'tag',
  'a request other than Tversion has no tag': 'notag',
  'a request came before Tversion': 'version',
} as const;
type Malformation = keyof typeof malformations;

/** A transport gives `receive` what it reads, and calls `tick` when `nextDeadlineMs` has come. */
export class NinepSession {
  readonly #state: SessionState;
  readonly #transport: NinepTransport;
  readonly #log: (message: string) => void;
  readonly #maxRequests: number;
  readonly #maxRequestBytes: number;
  /** Requests by row; the last one counts unknown types. */
  readonly #counts = new Float64Array(operations.length + 1);
  readonly #refusals = operations.map(refusalOf);
  #bytes = new Uint8Array(abi.MIN_MSIZE);
  /** What was received and not handled. */
  #start = 0;
  #end = 0;
  #isHandling = false;
  #isClogged = false;
  /** `receive` left bytes with the transport. */
  #owesResume = false;
  #ended = false;
  #malformation: Malformation | undefined;
  #bugs = 0;

  constructor(options: NinepSessionOptions) {
    this.#transport = options.transport;
    this.#log = options.log ?? (() => undefined);
    this.#maxRequests = options.maxRequests ?? MAX_REQUESTS;
    this.#maxRequestBytes = options.maxRequestBytes ?? MAX_REQUEST_BYTES;
    const maxMsize = options.maxMsizeBytes ?? MAX_MSIZE;
    if (!(maxMsize >= abi.MIN_MSIZE && maxMsize <= GREATEST_MSIZE))
      throw new RangeError(`maxMsizeBytes is ${maxMsize}; give ${abi.MIN_MSIZE} to ${GREATEST_MSIZE}`);
    this.#state = new SessionState({
      fileSystem: options.fileSystem,
      maxMsize,
      maxFids: options.maxFids ?? MAX_FIDS,
      maxXattrBytes: options.maxXattrBytes ?? MAX_XATTR_BYTES,
      attach: options.attach ?? (() => 0),
      isUser: options.isUser,
      uidOfMount: options.uidOfMount ?? (() => undefined),
      send: (frame, frameBytes) => this.#send(frame, frameBytes),
    });
    this.#look();
  }

  /** Requests handled so far of one message, by its name in the table; `UNKNOWN` for types that are not in it. */
  requests(name: string): number {
    const row = name === 'UNKNOWN' ? operations.length : operations.findIndex((operation) => operation.name === name);
    if (row < 0) throw new TypeError(`no 9P message is named "${name}"`);
    return this.#counts[row]!;
  }

  /** Every counter by name, for metrics: requests by message (only those that came), what is held, how it ended. */
  counters(): [name: string, value: number][] {
    const rows = operations.map(({ name }, index): [string, number] => [`9p.${name}`, this.#counts[index]!]);
    return [
      ...rows.filter(([, value]) => value > 0),
      ['9p.UNKNOWN', this.#counts[operations.length]!],
      ...Object.entries(malformations).map(([reason, name]): [string, number] => [
        `9p.malformed.${name}`,
        reason === this.#malformation ? 1 : 0,
      ]),
      ['9p.droppedReplies', this.#state.droppedReplies],
      ['9p.bugs', this.#bugs],
      ['9p.fids', this.held.fids],
      ['9p.requests', this.held.requests],
      ['9p.requestBytes', this.#state.requests.bytes],
      ['9p.xattrBytes', this.#state.fids.xattrBytes],
    ];
  }

  /** Fids that the client holds, and requests that are not answered. */
  get held(): { readonly fids: number; readonly requests: number } {
    return { fids: this.#state.fids.size, requests: this.#state.requests.size };
  }

  /** Requests that were answered EIO because our code threw. */
  get bugs(): number {
    return this.#bugs;
  }

  /** Why the session ended by itself. */
  get malformation(): string | undefined {
    return this.#malformation;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /**
   * Takes bytes of the stream and answers the requests in them. Returns how many it took: fewer than all while the client
   * has too much under way or does not read; `resume` tells when to give the rest. Bytes after the end are taken and dropped.
   */
  receive(bytes: Uint8Array): number {
    if (this.#isHandling) throw new Error('receive was called from within a request of the same session');
    let taken = 0;
    while (!this.#ended) {
      this.#makeRoom();
      const part = Math.min(bytes.length - taken, this.#bytes.length - this.#end);
      this.#bytes.set(bytes.subarray(taken, taken + part), this.#end);
      this.#end += part;
      taken += part;
      this.#handleAll();
      if (taken === bytes.length) return taken;
      if (this.#isBlocked && this.#end - this.#start > 0 && !this.#hasRoom) {
        this.#owesResume = !this.#ended;
        return this.#ended ? bytes.length : taken;
      }
    }
    return bytes.length;
  }

  /** The client has taken what it was sent. */
  drained(): void {
    this.#isClogged = false;
    this.#goOn();
  }

  /** Gives every waiting reader a heartbeat now. */
  flushWaiters(): void {
    this.#state.fileSystem.flushWaiters();
  }

  tick(nowMs: number): void {
    this.#state.fileSystem.tick(nowMs);
  }

  nextDeadlineMs(): number {
    return this.#state.fileSystem.nextDeadlineMs();
  }

  /** The connection is gone: nothing is answered any more, and all that was open is closed. */
  [Symbol.dispose](): void {
    this.#finish();
  }

  get #isBlocked(): boolean {
    const { requests } = this.#state;
    return this.#isClogged || requests.size >= this.#maxRequests || requests.bytes >= this.#maxRequestBytes;
  }

  get #hasRoom(): boolean {
    return this.#start > 0 || this.#end < this.#bytes.length;
  }

  /** Bytes of a frame at most. Before a version is agreed on, nothing but Tversion makes sense. */
  get #frameLimit(): number {
    return this.#state.msize === 0 ? abi.MIN_MSIZE : this.#state.msize;
  }

  /** The buffer holds a whole frame, and begins with what is not handled. */
  #makeRoom(): void {
    const limit = this.#frameLimit;
    if (this.#bytes.length < limit) {
      const larger = new Uint8Array(limit);
      larger.set(this.#bytes.subarray(this.#start, this.#end));
      this.#bytes = larger;
      this.#look();
    } else if (this.#start > 0) this.#bytes.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
  }

  #look(): void {
    this.#state.bytes = this.#bytes;
    this.#state.view = new DataView(this.#bytes.buffer);
  }

  /** Handles what was received as far as it may go on. */
  #handleAll(): void {
    this.#isHandling = true;
    try {
      while (!this.#ended && !this.#isBlocked) {
        const held = this.#end - this.#start;
        if (held < 4) break;
        const frameBytes = abi.Header.size.get(this.#state.view, this.#start);
        if (frameBytes < BODY) return this.#break('a frame is shorter than its header');
        if (frameBytes > this.#frameLimit) return this.#break('a frame is longer than msize');
        if (held < frameBytes) break;
        const start = this.#start;
        this.#start += frameBytes;
        this.#handle(start, frameBytes);
      }
    } finally {
      this.#isHandling = false;
    }
    return undefined;
  }

  /** What waited may go on: the client took its answers, or one of its requests ended. */
  #goOn(): void {
    if (this.#isHandling || this.#ended || this.#isBlocked) return;
    this.#handleAll();
    if (this.#ended || this.#isBlocked || !this.#owesResume) return;
    this.#owesResume = false;
    this.#transport.resume();
  }

  #handle(start: number, frameBytes: number): void {
    const state = this.#state;
    const { view } = state;
    state.body = start + BODY;
    state.end = start + frameBytes;
    state.type = abi.Header.type.get(view, start);
    state.tag = abi.Header.tag.get(view, start);
    state.answered = false;
    state.pending = undefined;
    const row = rowOf[state.type] ?? operations.length;
    this.#counts[row]!++;
    const operation = operations[row];
    const isVersion = operation?.name === 'Tversion';
    if (state.msize === 0 && !isVersion) return this.#break('a request came before Tversion');
    if (state.tag === abi.NOTAG && !isVersion) return this.#break('a request other than Tversion has no tag');
    if (state.requests.get(state.tag) !== undefined && !isVersion)
      return this.#break('a tag is used again before its request is answered');
    const shape = operation?.shape;
    if (shape !== undefined && !state.parts.measure(shape, view, state.body, state.end))
      return this.#break('the parts of a message do not fill its frame');
    try {
      const refusal = this.#refusals[row] ?? EOPNOTSUPP;
      const errno = refusal === 0 ? operation!.handler!(state) : refusal;
      if (errno > 0) this.#refuse(errno);
      else if (!state.answered && !this.#holds()) throw new Error('the handler neither answered nor kept the request');
    } catch (error) {
      this.#bug(operation?.name ?? 'a request', error);
    }
    return undefined;
  }

  #refuse(errno: number): void {
    this.#state.pending?.abandon();
    this.#state.error(errno);
  }

  /** True when the answer comes, or came, through a pending reply; one that has not come yet keeps its tag. */
  #holds(): boolean {
    const { pending, requests } = this.#state;
    if (pending === undefined) return false;
    if (!pending.settled) requests.add(pending);
    return true;
  }

  #bug(name: string, error: unknown): void {
    this.#bugs++;
    if (this.#bugs === 1)
      this.#log(
        `9P: ${name} failed by a bug and was answered EIO: ${error instanceof Error ? error.stack : String(error)}`,
      );
    if (this.#ended || this.#state.answered || this.#state.pending?.settled === true) return;
    this.#refuse(EIO);
  }

  #send(frame: Uint8Array, frameBytes: number): void {
    if (this.#ended) return;
    if (!this.#transport.send(frame, frameBytes)) this.#isClogged = true;
    this.#goOn();
  }

  #break(malformation: Malformation): undefined {
    this.#malformation = malformation;
    this.#finish();
    this.#transport.close(malformation);
  }

  #finish(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#start = this.#end = 0;
    this.#state.forgetEverything();
  }
}
