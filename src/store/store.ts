/**
 * What every store offers, whichever engine keeps it: ordered keys, one revision per transaction, transactions with
 * conditions, watches from a revision, leases. The semantics and the limits are those that SQLite and etcd can both
 * hold to; the suite in `test/store/conformance.ts` says the same as tests, and every implementation passes it.
 *
 * - Keys are byte strings, 1 to `limits.keyBytes` long, and sort by their bytes (memcmp). A key given as text means its
 *   UTF-8 bytes. Keys are not sealed: nothing secret belongs into one.
 * - Values are 0 to 1 MiB of bytes, sealed before they reach a disk, a replica or a backup.
 * - Revisions are whole numbers that only rise, with each transaction that changed something; by one, unless the engine
 *   counts for other things as well. Two revisions may be compared only within one `epoch`.
 * - Every call is linearizable: it sees all that was acknowledged before it was made.
 */

export const limits = {
  /** Operations and conditions of one transaction, together. */
  operations: 100,
  /** Keys and values of one transaction, in its operations and conditions, together. */
  transactionBytes: 1024 * 1024,
  keyBytes: 1024,
  /** Entries of one page; the default as well. */
  pageEntries: 1000,
  /** A page or a reading of the log ends early after so many bytes of values. */
  pageBytes: 4 * 1024 * 1024,
  leaseSeconds: 24 * 3600,
} as const;

export type Key = string | Uint8Array;

/** From `start`, inclusive, to `end`, exclusive; without `end`: to the last key. */
export interface KeyRange {
  readonly start: Key;
  readonly end?: Key | undefined;
}

export interface Entry {
  readonly key: Uint8Array;
  readonly value: Uint8Array;
  /** Of the transaction that made the key, and of the one that last put it. */
  readonly createRevision: number;
  readonly modRevision: number;
  /** Puts since the key was made; 1 for the first. */
  readonly version: number;
  readonly leaseId: number | undefined;
}

/** The key's `modRevision` is the one given; or the key exists, or does not. */
export type Condition =
  | { readonly key: Key; readonly modRevision: number }
  | { readonly key: Key; readonly exists: boolean };

/** A put without `leaseId` frees the key from the lease it had. A delete of a key that is not there changes nothing. */
export type Operation =
  | { readonly type: 'put'; readonly key: Key; readonly value: Uint8Array; readonly leaseId?: number | undefined }
  | { readonly type: 'delete'; readonly key: Key };

/** All of its operations happen, at one revision, when all its conditions hold; else none. No key occurs twice. */
export interface Transaction {
  readonly conditions?: readonly Condition[];
  readonly operations: readonly Operation[];
}

/** `revision`: of the store after the transaction, so also its own if it changed anything. */
export type Outcome =
  | { readonly committed: true; readonly revision: number }
  | { readonly committed: false; readonly revision: number; readonly unmet: readonly number[] };

export interface RangeOptions {
  /** Entries as they were then; the newest when left out. For the second and later pages: that of the first. */
  readonly revision?: number | undefined;
  /** 1 to `limits.pageEntries`. */
  readonly limit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Page {
  /** What the entries are of: they are all of this one moment. */
  readonly revision: number;
  readonly entries: readonly Entry[];
  /** Where the next page starts; undefined when this is the last. A page may be short and not the last. */
  readonly next: Uint8Array | undefined;
}

export type WatchEvent =
  | { readonly type: 'put'; readonly entry: Entry }
  | { readonly type: 'delete'; readonly key: Uint8Array; readonly modRevision: number };

/** What one transaction changed in the range watched, in the order of its operations. Never empty. */
export interface WatchBatch {
  readonly revision: number;
  readonly events: readonly WatchEvent[];
}

export interface WatchOptions {
  /** The first revision to tell of, ≥ 1, which may lie ahead: that of a `range`, plus 1, to miss and repeat nothing. */
  readonly from: number;
  /** Ends the watch: the iteration throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

export interface Lease {
  readonly id: number;
  readonly ttlSeconds: number;
}

export interface CallOptions {
  /** An abort while a change is under way leaves open whether it happens. */
  readonly signal?: AbortSignal | undefined;
}

/** What keeps a store, for people to know it by: no path, no user, nothing secret. */
export type StorePlace =
  | { readonly engine: 'sqlite' }
  | {
      readonly engine: 'etcd';
      /** Each "HOST:PORT". */
      readonly endpoints: readonly string[];
      /** All its keys begin with it and a slash. */
      readonly prefix: string;
    };

/** Errors are `StoreError`, or the reason of an aborted signal. */
export interface Store {
  readonly name: string;
  readonly place: StorePlace;
  /** Rises when the store was restored from a backup: revisions of other epochs mean nothing in this one. */
  readonly epoch: number;

  /** On the disk when it resolves. STORE_INVALID, STORE_LEASE_GONE, STORE_FULL; STORE_UNAVAILABLE: it is open whether it happened. */
  commit(transaction: Transaction, options?: CallOptions): Promise<Outcome>;

  /** Undefined when it is not there. STORE_COMPACTED, as `range`. */
  get(key: Key, options?: RangeOptions): Promise<Entry | undefined>;

  /** STORE_COMPACTED when `revision` is older than the last compaction; STORE_INVALID when it lies ahead. */
  range(range: KeyRange, options?: RangeOptions): Promise<Page>;

  /** How many keys, without a limit and without an entry; else as `range`. */
  count(range: KeyRange, options?: RangeOptions): Promise<{ readonly revision: number; readonly count: number }>;

  /**
   * Every change in the range from a revision on, in order, none lost, none twice. STORE_COMPACTED when history that the
   * watch still needs was compacted, at its start or because its consumer was too slow: list, then watch anew.
   */
  watch(range: KeyRange, options: WatchOptions): AsyncIterableIterator<WatchBatch>;

  /**
   * Keys that were put with the lease are deleted, by one transaction, when it was not kept alive for its time to live
   * (whole seconds, 1 to `limits.leaseSeconds`; the lease says how long it got, which may be more). When the store starts,
   * all leases have their whole time again.
   */
  grantLease(ttlSeconds: number, options?: CallOptions): Promise<Lease>;

  /** STORE_LEASE_GONE when it has run out or was revoked. */
  keepAlive(leaseId: number, options?: CallOptions): Promise<void>;

  /** Deletes the lease's keys at once. STORE_LEASE_GONE. */
  revokeLease(leaseId: number, options?: CallOptions): Promise<void>;

  /** Of the last transaction. */
  revision(options?: CallOptions): Promise<number>;

  /** Forgets what was overwritten or deleted up to a revision: reads of older ones and watches from it or older fail. */
  compact(revision: number, options?: CallOptions): Promise<void>;
}

/** Monotonic, counting on while the machine sleeps where it can. */
export interface Clock {
  nowMs(): number;
  /** @returns cancels it */
  after(delayMs: number, run: () => void): () => void;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  after: (delayMs, run) => {
    const timer = setTimeout(run, delayMs);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
