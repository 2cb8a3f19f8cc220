import type { StoreError } from './error.ts';
import { HistorySize } from './history-size.ts';
import { compareKeys, keyAfter, keyBytes } from './keys.ts';
import { Leases } from './leases.ts';
import { type CheckedRange, checkRange, checkRangeOptions, checkTransaction, checkWhole } from './request.ts';
import type { Changed } from './sqlite-engine.ts';
import type { StoreName } from './sqlite-file.ts';
import {
  type CallOptions,
  type Clock,
  type Entry,
  type Key,
  type KeyRange,
  type Lease,
  limits,
  type Outcome,
  type Page,
  type RangeOptions,
  type Store,
  type Transaction,
  type WatchBatch,
  type WatchOptions,
} from './store.ts';
import type { WorkerLink } from './worker-link.ts';

/** A watch that has told all there is. */
interface Idle {
  readonly range: CheckedRange;
  /** The first revision that it does not know of. */
  next: number;
  readonly wake: () => void;
}

const contains = ({ start, end }: CheckedRange, key: Uint8Array): boolean =>
  compareKeys(key, start) >= 0 && (end === undefined || compareKeys(key, end) < 0);

export interface SqliteStoreOptions {
  readonly name: StoreName;
  readonly epoch: number;
  readonly revision: number;
  readonly compacted: number;
  /** Bytes of values that each revision since then put. */
  readonly history: readonly { readonly revision: number; readonly bytes: number }[];
  readonly leases: readonly Lease[];
  readonly link: WorkerLink;
  readonly clock: Clock;
  /** History is kept for at least so many revisions and at most twice as many. */
  readonly retainRevisions: number;
  /** It is kept for fewer where their values have more than twice so many bytes. */
  readonly retainBytes: number;
}

/** One named store in the SQLite file. Made and closed by `openStores`. */
export class SqliteStore implements Store {
  readonly name: StoreName;
  readonly place = { engine: 'sqlite' } as const;
  readonly epoch: number;
  readonly #link: WorkerLink;
  readonly #leases: Leases;
  readonly #retainRevisions: number;
  readonly #history: HistorySize;
  readonly #idle = new Set<Idle>();
  #revision: number;
  #compacted: number;
  #isCompacting = false;
  #ended: StoreError | undefined;

  constructor(options: SqliteStoreOptions) {
    this.name = options.name;
    this.epoch = options.epoch;
    this.#link = options.link;
    this.#revision = options.revision;
    this.#compacted = options.compacted;
    this.#retainRevisions = options.retainRevisions;
    this.#history = new HistorySize(options.retainBytes);
    for (const { revision, bytes } of options.history) this.#history.add(revision, bytes);
    this.#leases = new Leases(options.clock, (leaseId) =>
      this.#link.ask({ kind: 'revoke', store: this.name, leaseId }),
    );
    for (const { id, ttlSeconds } of options.leases) this.#leases.add(id, ttlSeconds);
  }

  async commit(transaction: Transaction, { signal }: CallOptions = {}): Promise<Outcome> {
    const checked = checkTransaction(transaction);
    return this.#link.ask({ kind: 'commit', store: this.name, transaction: checked }, signal);
  }

  async get(key: Key, options: RangeOptions = {}): Promise<Entry | undefined> {
    const start = keyBytes(key);
    return (await this.range({ start, end: keyAfter(start) }, options)).entries[0];
  }

  async range(range: KeyRange, options: RangeOptions = {}): Promise<Page> {
    const { revision, limit } = checkRangeOptions(options);
    const request = { kind: 'range', store: this.name, range: checkRange(range), revision, limit } as const;
    return this.#link.ask(request, options.signal);
  }

  async count(range: KeyRange, options: RangeOptions = {}): Promise<{ revision: number; count: number }> {
    const { revision } = checkRangeOptions(options);
    return this.#link.ask({ kind: 'count', store: this.name, range: checkRange(range), revision }, options.signal);
  }

  async *watch(range: KeyRange, { from, signal }: WatchOptions): AsyncGenerator<WatchBatch, never> {
    checkWhole(from, 'the revision to watch from', 1);
    const checked = checkRange(range);
    let next = from;
    for (;;) {
      signal?.throwIfAborted();
      // Asked at least once, so that a watch from before the last compaction is told so at once.
      const { batches, next: after } = await this.#link.ask(
        { kind: 'log', store: this.name, range: checked, from: next },
        signal,
      );
      next = after;
      yield* batches;
      if (next > this.#revision) next = await this.#waitForChange(checked, next, signal);
    }
  }

  /** @returns where to read on; everything before is known to hold nothing of the range */
  async #waitForChange(range: CheckedRange, next: number, signal: AbortSignal | undefined): Promise<number> {
    signal?.throwIfAborted();
    if (this.#ended) throw this.#ended;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const abort = (): void => reject(signal?.reason);
    const idle: Idle = { range, next, wake: resolve };
    this.#idle.add(idle);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      await promise;
    } finally {
      this.#idle.delete(idle);
      signal?.removeEventListener('abort', abort);
    }
    return idle.next;
  }

  /** For `openStores`: in the order of revisions, before the change is acknowledged. */
  noteChange({ revision, keys, bytes }: Changed): void {
    this.#revision = revision;
    for (const idle of this.#idle) {
      if (revision < idle.next) continue;
      if (keys.some((key) => contains(idle.range, key))) {
        this.#idle.delete(idle);
        idle.wake();
      } else {
        idle.next = revision + 1;
      }
    }
    this.#history.add(revision, bytes);
    if (this.#isCompacting) return;
    const byCount = revision - this.#compacted >= 2 * this.#retainRevisions ? revision - this.#retainRevisions : 0;
    const upTo = Math.max(byCount, this.#history.due() ?? 0);
    // A failure is met again at the next change, and by whoever writes meanwhile.
    if (upTo > this.#compacted) this.compact(upTo).catch(() => {});
  }

  async grantLease(ttlSeconds: number, { signal }: CallOptions = {}): Promise<Lease> {
    checkWhole(ttlSeconds, 'a time to live in seconds', 1, limits.leaseSeconds);
    const id = await this.#link.ask({ kind: 'grant', store: this.name, ttlSeconds }, signal);
    this.#leases.add(id, ttlSeconds);
    return { id, ttlSeconds };
  }

  async keepAlive(leaseId: number, { signal }: CallOptions = {}): Promise<void> {
    signal?.throwIfAborted();
    if (this.#ended) throw this.#ended;
    this.#leases.keepAlive(leaseId);
  }

  async revokeLease(leaseId: number, { signal }: CallOptions = {}): Promise<void> {
    await this.#link.ask({ kind: 'revoke', store: this.name, leaseId }, signal);
    this.#leases.remove(leaseId);
  }

  async revision({ signal }: CallOptions = {}): Promise<number> {
    signal?.throwIfAborted();
    if (this.#ended) throw this.#ended;
    return this.#revision;
  }

  async compact(revision: number, { signal }: CallOptions = {}): Promise<void> {
    checkWhole(revision, 'a revision', 0);
    this.#isCompacting = true;
    try {
      while (!(await this.#link.ask({ kind: 'compact', store: this.name, revision }, signal)));
      this.#compacted = Math.max(this.#compacted, revision);
      this.#history.compacted(revision);
    } finally {
      this.#isCompacting = false;
    }
  }

  /** For `openStores`: ends watches and leases; what is asked later fails with `error`. */
  end(error: StoreError): void {
    if (this.#ended) return;
    this.#ended = error;
    this.#leases.close();
    // They read on and meet the same end.
    for (const idle of this.#idle) idle.wake();
    this.#idle.clear();
  }
}
