/** One connection of a guest with the host, and how many bytes either may send (virtio 1.2 §5.10.6.3). */

/** The host's end of a connection: a unix socket, or a service of this process. */
export interface HostEnd {
  /**
   * Takes the first `count` bytes of `bytes`, which came from the guest. Returns how many; after fewer than all it calls
   * `HostEndEvents.writable` once it can take more. A negative errno: nobody will ever read them.
   */
  take(bytes: Uint8Array, count: number): number;
  /**
   * Puts bytes for the guest into `into`, `most` of them at most. Returns how many, 0 at the end of the stream, -EAGAIN when
   * there are none until `HostEndEvents.readable`, another negative errno when the stream was broken off.
   */
  give(into: Uint8Array, most: number): number;
  /** Whether it takes no more bytes either, asked at the end of the stream. */
  isGone(): boolean;
  /** A connection that the host asked for is there, at this end's port. */
  opened(hostPort: number): void;
  /** The guest will send no more, and all was taken. */
  endOfGuest(): void;
  /** The guest wants no more. */
  guestIsDeaf(): void;
  /** It is over; nothing is called after it. */
  over(reason: string): void;
}

/** The host asked for it, and the guest has not answered yet. */
export const CONNECTING = 0;
export const OPEN = 1;
/** Our end is gone, the guest was told, and answers with a reset. */
export const CLOSING = 2;
/** The guest's end is gone, and what it sent waits for the host to read it. */
export const DRAINING = 3;
export const OVER = 4;

/** What is to be sent about a connection, besides data; bits of `todo`, sent in this order. */
export const SEND_REQUEST = 1;
export const SEND_RESPONSE = 2;
export const SEND_CREDIT_UPDATE = 4;
export const SEND_CREDIT_REQUEST = 8;
export const SEND_SHUTDOWN = 16;

export class Connection {
  readonly guestPort: number;
  readonly hostPort: number;
  /** Bytes that the guest may have sent and the host not taken. */
  readonly bufAlloc: number;
  /** Where it stands in the journal; -1 once the guest need not be told of its end. */
  slot: number;
  state: number;
  end: HostEnd | undefined;

  /** As the guest said last. */
  peerBufAlloc = 0;
  peerFwdCnt = 0;
  /** Bytes that we sent, that the guest sent, and that the host took of these; all modulo 2^32. */
  sentCnt = 0;
  receivedCnt = 0;
  fwdCnt = 0;
  /** `fwdCnt` as the guest was told last. */
  toldFwdCnt = 0;
  /** The guest was asked for credit, and has given none since. */
  hasAskedForCredit = false;

  /** SHUTDOWN flags of the guest. */
  guestShut = 0;
  /** Ours, as they were or are to be sent. */
  hostShut = 0;
  /** The host's end may have bytes for the guest. */
  isReadable = false;
  /** Bytes that were read for the guest and that it had no room for any more. */
  parked: Uint8Array | undefined;
  todo = 0;
  /** When it is given up, by `performance.now`. */
  deadlineMs = Number.POSITIVE_INFINITY;

  /** Bytes that the host did not take yet, from `#start` to `#end`. */
  #waiting = NOTHING;
  #start = 0;
  #end = 0;

  /** Links of the lists that it stands in. */
  nextInBucket: Connection | undefined;
  nextReady: Connection | undefined;
  isReady = false;

  constructor(guestPort: number, hostPort: number, bufAlloc: number, slot: number, state: number) {
    this.guestPort = guestPort;
    this.hostPort = hostPort;
    this.bufAlloc = bufAlloc;
    this.slot = slot;
    this.state = state;
  }

  // --- credit ---

  /** How many bytes the guest has room for. One that lies about what it has taken gets nothing more. */
  get credit(): number {
    const outstanding = (this.sentCnt - this.peerFwdCnt) >>> 0;
    return outstanding >= this.peerBufAlloc ? 0 : this.peerBufAlloc - outstanding;
  }

  /** Whether the guest may send `bytes` more. */
  hasRoomFor(bytes: number): boolean {
    return ((this.receivedCnt - this.fwdCnt) >>> 0) + bytes <= this.bufAlloc;
  }

  sent(bytes: number): void {
    this.sentCnt = (this.sentCnt + bytes) >>> 0;
  }

  received(bytes: number): void {
    this.receivedCnt = (this.receivedCnt + bytes) >>> 0;
  }

  /** The host took `bytes`. Returns whether the guest, which knows of no room but what it was told of, has to be told. */
  forwarded(bytes: number): boolean {
    this.fwdCnt = (this.fwdCnt + bytes) >>> 0;
    const known = this.bufAlloc - ((this.receivedCnt - this.toldFwdCnt) >>> 0);
    return this.fwdCnt !== this.toldFwdCnt && known < this.bufAlloc / 2;
  }

  // --- what waits for the host ---

  get waitingBytes(): number {
    return this.#end - this.#start;
  }

  /** Keeps bytes `from` to `to` of `bytes`. There is room: the guest has no credit for more. */
  keep(bytes: Uint8Array, from: number, to: number): void {
    if (this.#waiting.length === 0) this.#waiting = new Uint8Array(this.bufAlloc);
    if (this.#end + to - from > this.#waiting.length) {
      this.#waiting.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    this.#waiting.set(bytes.subarray(from, to), this.#end);
    this.#end += to - from;
  }

  /** Gives the host what waits for it. Returns how much it took, or its negative errno. */
  flush(): number {
    const { end } = this;
    if (end === undefined || this.#end === this.#start) return 0;
    const count = this.#end - this.#start;
    const taken = end.take(this.#waiting.subarray(this.#start, this.#end), count);
    if (taken < 0) return taken;
    this.#start += taken;
    if (this.#start === this.#end) this.#start = this.#end = 0;
    return taken;
  }

  forgetWaiting(): void {
    this.#waiting = NOTHING;
    this.#start = this.#end = 0;
  }
}

const NOTHING = new Uint8Array(0);
