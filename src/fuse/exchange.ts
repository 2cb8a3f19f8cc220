/** What a transport gives a session: one request, and the way to answer it. */

/**
 * One request under way. The transport has copied the request out of memory that the guest can change, and reuses this
 * object and its buffer for the next request as soon as `Session.handle` returns, unless the session called `hold`.
 */
export interface Exchange {
  /** Holds the request in its first `requestBytes` bytes: `fuse_in_header` and body. Reused: copy what must outlive the call. */
  readonly request: Uint8Array;
  /** Over the same bytes as `request`. */
  readonly view: DataView;
  readonly requestBytes: number;
  /** An earlier life of this process has begun to answer it, and nobody knows how far it came. */
  readonly isRedone?: boolean;
  /** How many bytes the guest has room for, `fuse_out_header` included. 0: no reply is expected (FORGET). */
  readonly replyCapacity: number;
  /**
   * Answers with the first `headBytes` bytes of `head` (`fuse_out_header`, and whatever of the reply stands there) followed
   * by `payload`. Exactly once an exchange, unless `noReply`. The session guarantees that it fits `replyCapacity`.
   */
  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void;
  /** Finishes a request that has no answer (FORGET, BATCH_FORGET, INTERRUPT). */
  noReply(): void;
  /** Keeps the exchange beyond the call, to be answered later. Only `reply`, `noReply` and `replyCapacity` may be used then. */
  hold(): HeldExchange;
}

/**
 * A request that waits. A transport whose ring was reset meanwhile drops the reply (`reply` is then a no-op): a late
 * completion must never be written into memory that is not ours any more.
 */
export interface HeldExchange {
  readonly replyCapacity: number;
  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void;
  noReply(): void;
}

/** Who is told what becomes of requests, by queue and place in it: a successor must know which effects of theirs count. */
export interface RequestJournal {
  /** The request that is handled from now on; `ends` when its handler has returned. */
  begins(queueIndex: number, place: number): void;
  ends(): void;
  /** A request is being answered: whatever it did to the session holds once the answer is out. */
  gives(queueIndex: number, place: number): void;
  /** All that was given is out. */
  shown(): void;
}

/** What a transport can do for a session beyond answering requests. */
export interface Notifier {
  /** Sends an unsolicited notification (`fuse_out_header` with unique 0 and the code in `error`, then the body). */
  notify(message: Uint8Array): void;
}

/** What a transport drives. */
export interface RequestHandler {
  handle(exchange: Exchange): void;
  /** Drops handles, lookups and held requests: the guest's mount is gone (ring reset with base 0, transport closed). */
  reset(): void;
  /** Answers every waiting reader with a heartbeat now: the ring is about to stop. */
  flushWaiters(): void;
  /** Runs what is due. Called by the loop at least when `nextDeadlineMs` has passed. */
  tick(nowMs: number): void;
  /** Monotonic milliseconds of the next thing due, or Infinity. */
  nextDeadlineMs(): number;
}
