/** Requests whose answer has not gone out, by tag, and the Tflushes that wait for them. */
import type { Fid } from './fids.ts';

/** How a request is answered; what a session gives to those that wait. */
export interface Answerer {
  /** Rises when all that began before has nobody to answer to any more. */
  readonly life: number;
  /** Answers the request of `tag` with `bodyBytes` bytes of the reply under construction. */
  send(replyType: number, tag: number, bodyBytes: number): void;
  sendError(tag: number, errno: number): void;
  /** An answer came when nobody could be told. */
  dropped(): void;
}

/** The answer of a request that may outlast its handler. Answers once; what comes later is dropped. */
export class Pending {
  readonly tag: number;
  readonly frameBytes: number;
  /** A read that waits: how to give it up. Called only once it is settled, so nothing is answered by it. */
  cancel: (() => void) | undefined;
  /** That fid's end ends the read. */
  fid: Fid | undefined;
  readonly #replyType: number;
  readonly #to: Answerer;
  readonly #requests: Requests;
  readonly #life: number;
  #flushes: Pending[] | undefined;
  #settled = false;

  constructor(to: Answerer, requests: Requests, tag: number, replyType: number, frameBytes: number) {
    this.#to = to;
    this.#requests = requests;
    this.tag = tag;
    this.#replyType = replyType;
    this.frameBytes = frameBytes;
    this.#life = to.life;
  }

  get settled(): boolean {
    return this.#settled;
  }

  /** False once the session began anew: its fids are others. */
  get live(): boolean {
    return this.#life === this.#to.life;
  }

  /** Writes the body at the reply under construction in the same turn before it calls this. */
  finish(bodyBytes: number): void {
    if (!this.#settle()) return;
    this.#to.send(this.#replyType, this.tag, bodyBytes);
    this.#flushed();
  }

  fail(errno: number): void {
    if (!this.#settle()) return;
    this.#to.sendError(this.tag, errno);
    this.#flushed();
  }

  /** For `Done` callbacks of operations that answer with nothing. */
  settle(errno: number): void {
    if (errno === 0) this.finish(0);
    else this.fail(errno);
  }

  /** Nothing will be answered by this: the handler's caller answered already. */
  abandon(): void {
    this.#settled = true;
  }

  /** Gives up a read that waits, answering it with `errno`; 0: not at all. */
  giveUp(errno: number): void {
    const { cancel } = this;
    if (errno !== 0) this.fail(errno);
    else if (this.#settle()) this.#flushed();
    cancel?.();
  }

  /** `flush` is answered after this one is. */
  flushedBy(flush: Pending): void {
    (this.#flushes ??= []).push(flush);
  }

  #flushed(): void {
    for (const flush of this.#flushes ?? []) flush.finish(0);
  }

  #settle(): boolean {
    if (this.#settled) return false;
    this.#settled = true;
    this.#requests.remove(this);
    if (this.live) return true;
    this.#to.dropped();
    return false;
  }
}

export class Requests {
  readonly #byTag = new Map<number, Pending>();
  #bytes = 0;

  get size(): number {
    return this.#byTag.size;
  }

  /** Bytes of their frames. */
  get bytes(): number {
    return this.#bytes;
  }

  get(tag: number): Pending | undefined {
    return this.#byTag.get(tag);
  }

  add(pending: Pending): void {
    this.#byTag.set(pending.tag, pending);
    this.#bytes += pending.frameBytes;
  }

  remove(pending: Pending): void {
    if (this.#byTag.get(pending.tag) !== pending) return;
    this.#byTag.delete(pending.tag);
    this.#bytes -= pending.frameBytes;
  }

  /** Ends the reads that wait on a fid. */
  interrupt(fid: Fid, errno: number): void {
    for (const pending of [...this.#byTag.values()]) if (pending.fid === fid) pending.giveUp(errno);
  }

  clear(): void {
    this.#byTag.clear();
    this.#bytes = 0;
  }
}
