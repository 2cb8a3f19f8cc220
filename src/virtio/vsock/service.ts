/**
 * Services of this process that guests reach by a port. One is given each connection as a `VsockStream` and answers with what
 * hears of it. Back pressure goes both ways: `receive` takes what it can, `write` says when it is enough. Nothing here waits.
 */

/** One connection of a guest, as a service sees it. */
export interface VsockStream {
  /** The port that the guest's program is bound to: below 1024 takes privilege in the guest. */
  readonly sourcePort: number;
  readonly guestCid: number;
  /** The port of the service. */
  readonly port: number;
  /**
   * Sends the first `count` bytes of `bytes` (all by default), which are the caller's again when this returns. False: that is
   * more than the guest has taken by now; go on when `drained` is called. A service that never waits for it is cut off.
   */
  write(bytes: Uint8Array, count?: number): boolean;
  /** What `receive` did not take is given to it again. Not to be called from within `receive`. */
  resume(): void;
  /** Ends the connection when the guest has been sent all that was written. */
  close(): void;
  /** Ends it at once: the guest sees ECONNRESET. */
  reset(): void;
}

/** What a service hears of one of its connections. None of these may throw. */
export interface VsockListener {
  /** Bytes from the guest, valid during the call. Returns how many it took; the others wait for `VsockStream.resume`. */
  receive(bytes: Uint8Array): number;
  /** After `write` said false: the guest has taken enough. */
  drained(): void;
  /** The guest will send no more, and all that it sent was taken. It may still read. */
  ended(): void;
  /** The connection is gone; nothing else is called after it. Not called for `close` and `reset` of the service's own. */
  closed(reason: string): void;
}

/** Answers a connection, or undefined to refuse it. */
export type VsockService = (stream: VsockStream) => VsockListener | undefined;

/** By port. */
export type VsockServices = ReadonlyMap<number, VsockService>;
