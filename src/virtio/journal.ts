/**
 * What outlives a device process, as the device sees it: memory and descriptors from which a successor goes on (`src/device`
 * keeps them). A device without one works the same and dies with its process.
 */
import type { RegionSpec } from './guest-memory.ts';

/**
 * Memory of one queue that survives this process, by the rules of vhost-user's inflight region for split virtqueues
 * (vhost-user.rst, "Inflight I/O tracking"). Every store is made by one thread, and a kernel stops a thread between two
 * instructions only, so a successor sees all stores up to some point of the program's order and none after it.
 */
export interface RingMemory {
  /** By head: when its chain was taken, counted from 1 over all of the queue's lives; 0 while it is not in flight. */
  readonly orders: Float64Array;
  /** `USED_IDX`, `OFFSET`, `CEILING`. */
  readonly state: Float64Array;
  /** Heads that were given back since the driver was shown the used index last, `BATCH` at most. */
  readonly batch: Uint16Array;
}

/** Fields of `RingMemory.state`: used.idx as the driver was shown it last, */
export const USED_IDX = 0;
/** what the available index has over used.idx and the chains in flight, which never changes while a ring runs, */
export const OFFSET = 1;
/** and an order that was not given out yet. */
export const CEILING = 2;

/** Chains that are given back before the driver sees them, at most. */
export const BATCH = 16;

/** A queue as the control messages left it. Descriptors are named by what `BackEndJournal.keep` answered, 0 for none. */
export interface SavedQueue {
  readonly num: number;
  readonly descAddr: number;
  readonly availAddr: number;
  readonly usedAddr: number;
  readonly isEnabled: boolean;
  readonly isStarted: boolean;
  readonly hasRun: boolean;
  readonly wantsStart: boolean;
  /** As SET_VRING_BASE said, for the next start; -1 for none. */
  readonly base: number;
  readonly kick: number;
  readonly call: number;
  readonly err: number;
}

/** A connection as the control messages left it. */
export interface SavedBackEnd {
  readonly hasProtocolFeatures: boolean;
  readonly hasReplyAck: boolean;
  readonly hasEventIdx: boolean;
  readonly hasIndirect: boolean;
  readonly regions: readonly (RegionSpec & { readonly keptAs: number })[];
  readonly queues: readonly SavedQueue[];
}

export interface BackEndJournal {
  ring(queueIndex: number): RingMemory;
  /** Keeps a copy of a descriptor. Returns its name, above 0, or 0 when that is not possible. */
  keep(fd: number): number;
  drop(name: number): void;
  /**
   * A control message has been answered: this is how it left the connection. `reply` is sent and `takenBytes` are taken from
   * the control socket, once, whatever becomes of this process. False when the peer does not take it.
   */
  commit(saved: SavedBackEnd, reply: Uint8Array, takenBytes: number): boolean;
}

/** What a device asks of it beyond. */
export interface DeviceJournal extends BackEndJournal {
  /** The request that is handled from now on; `ends` when its handler has returned. */
  begins(queueIndex: number, head: number): void;
  ends(): void;
  /** A request is being answered: whatever it did to the session holds once the driver is shown the answer. */
  gives(queueIndex: number, head: number): void;
  /** Its answer waits for its ring, or is given to nobody. */
  postpones(queueIndex: number, head: number): void;
  /** Drivers have been shown all that was given back. */
  shown(): void;
}

/** What a predecessor left. */
export interface Recovered {
  readonly saved: SavedBackEnd;
  /** A descriptor by name, which stays the journal's; -1 where it is not there. */
  fd(name: number): number;
}
