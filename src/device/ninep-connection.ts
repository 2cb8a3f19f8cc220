/** One 9P client: a stream of bytes that carries one session, with back pressure both ways. */
import { NinepSession } from '../ninep/index.ts';
import type { TreeFileSystem } from '../tree/index.ts';
import { Admission, type BootToken, type NinepPeer } from './ninep-admission.ts';

/** What carries the bytes of a connection; it never waits. */
export interface ByteStream {
  /** Sends the first of `bytes`; returns how many, 0 when it takes none now, or the negative errno when it is over. */
  write(bytes: Uint8Array): number;
  /** Whether `NinepConnection.receive` is to be called with what comes, and `writable` when `write` takes bytes again. */
  want(reading: boolean, writing: boolean): void;
  close(): void;
}

export interface NinepConnectionOptions {
  readonly stream: ByteStream;
  readonly peer: NinepPeer;
  readonly token: BootToken;
  /** Ends with the connection. */
  readonly fileSystem: TreeFileSystem;
  readonly isUser: (uid: number) => boolean;
  readonly uidOfMount: () => number | undefined;
  readonly log: (message: string) => void;
  /** The connection is over. `malformation`: what the client did wrong; undefined: it hung up. */
  readonly onClosed: (malformation: string | undefined) => void;
}

/** Answers that a client has not read; beyond it, none of its requests is looked at. */
const UNREAD_BYTES = 256 * 1024;
/** Those that were under way then are still answered: 256 requests, of which few have long answers. */
const MOST_UNREAD_BYTES = 16 * 1024 * 1024;
const FIRST_BYTES = 16 * 1024;
/** Larger than that, the memory for answers is given back when they have been read. */
const KEPT_BYTES = 512 * 1024;

export class NinepConnection {
  readonly session: NinepSession;
  readonly admission: Admission;
  readonly #options: NinepConnectionOptions;
  /** Answers that are not sent: `start` to `end`. */
  #out = new Uint8Array(new ArrayBuffer(FIRST_BYTES));
  #start = 0;
  #end = 0;
  /** What the session did not take. */
  #left: Uint8Array | undefined;
  #isReceiving = false;
  #isClogged = false;
  /** The stream is over; noticed while a request was being answered, so it is closed later. */
  #isBroken = false;
  #isClosed = false;
  #wantsReading = true;
  #wantsWriting = false;

  constructor(options: NinepConnectionOptions) {
    this.#options = options;
    const { fileSystem, isUser, uidOfMount, log, peer, token } = options;
    this.admission = new Admission(peer, token, () => this.close());
    this.session = new NinepSession({
      fileSystem,
      isUser,
      uidOfMount,
      log,
      attach: this.admission.attach,
      transport: {
        send: (frame, frameBytes) => this.#send(frame, frameBytes),
        resume: () => this.#resume(),
        close: (reason) => this.#close(reason),
      },
    });
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Bytes of answers that the client has not read. */
  get unreadBytes(): number {
    return this.#end - this.#start;
  }

  /** Monotonic milliseconds of the next thing due, or Infinity. */
  nextDeadlineMs(): number {
    return this.#isBroken ? 0 : this.session.nextDeadlineMs();
  }

  tick(nowMs: number): void {
    if (this.#isBroken) this.#close(undefined);
    else if (this.session.nextDeadlineMs() <= nowMs) this.session.tick(nowMs);
  }

  /** Bytes came. They may be reused after the call. Nothing more is to come until the stream is wanted for reading again. */
  receive(bytes: Uint8Array): void {
    if (this.#isClosed) return;
    this.#isReceiving = true;
    const taken = this.session.receive(bytes);
    this.#isReceiving = false;
    if (this.#isClosed) return;
    if (taken < bytes.length) this.#left = bytes.slice(taken);
    this.#write();
    this.#want();
  }

  /** The stream takes bytes again. */
  writable(): void {
    if (this.#isClosed) return;
    this.#write();
    if (this.#isClogged && this.unreadBytes === 0) {
      this.#isClogged = false;
      this.session.drained();
    }
    this.#want();
  }

  /** The stream is over, or is to end. */
  close(): void {
    this.#close(undefined);
  }

  #close(malformation: string | undefined): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#options.stream.close();
    this.session[Symbol.dispose]();
    this.#options.fileSystem.close();
    this.#options.onClosed(malformation);
  }

  #resume(): void {
    const bytes = this.#left;
    if (bytes === undefined) return;
    this.#left = undefined;
    this.receive(bytes);
  }

  /** Answers of the requests that came together leave together. */
  #send(frame: Uint8Array, frameBytes: number): boolean {
    if (this.#isClosed || this.#isBroken) return true;
    this.#makeRoom(frameBytes);
    this.#out.set(frameBytes === frame.length ? frame : frame.subarray(0, frameBytes), this.#end);
    this.#end += frameBytes;
    if (!this.#isReceiving || this.unreadBytes > UNREAD_BYTES) this.#write();
    if (!this.#isReceiving) this.#want();
    if (this.unreadBytes > UNREAD_BYTES) this.#isClogged = true;
    if (this.unreadBytes > MOST_UNREAD_BYTES) this.#break();
    return !this.#isClogged;
  }

  #makeRoom(bytes: number): void {
    if (this.#end + bytes <= this.#out.length) return;
    const held = this.unreadBytes;
    let room = this.#out.length;
    while (room < held + bytes) room *= 2;
    const next = room === this.#out.length ? this.#out : new Uint8Array(new ArrayBuffer(room));
    next.set(this.#out.subarray(this.#start, this.#end));
    this.#out = next;
    this.#start = 0;
    this.#end = held;
  }

  /** As much as the stream takes. */
  #write(): void {
    while (this.#start < this.#end) {
      const wrote = this.#options.stream.write(this.#out.subarray(this.#start, this.#end));
      if (wrote < 0) return this.#break();
      if (wrote === 0) return;
      this.#start += wrote;
    }
    this.#start = this.#end = 0;
    if (this.#out.length > KEPT_BYTES) this.#out = new Uint8Array(new ArrayBuffer(FIRST_BYTES));
  }

  #break(): void {
    this.#isBroken = true;
    this.#start = this.#end = 0;
  }

  #want(): void {
    if (this.#isClosed) return;
    const reading = this.#left === undefined && !this.#isClogged;
    const writing = this.unreadBytes > 0 || this.#isClogged;
    if (reading === this.#wantsReading && writing === this.#wantsWriting) return;
    this.#wantsReading = reading;
    this.#wantsWriting = writing;
    this.#options.stream.want(reading, writing);
  }
}
