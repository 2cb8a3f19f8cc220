/**
 * The region's store, as a host has it: over the uplink, whichever manager is at its other end, and limited there to what is
 * assigned to the host (`host-store.ts`).
 *
 * While there is no connection, calls wait a short while for one, then fail with STORE_CUT_OFF. A commit whose answer was
 * lost, or was that the manager does not know either (STORE_UNAVAILABLE), waits for the next connection, where the marks say
 * whether it happened (`store-service.ts`): it is told as committed, or made again, or failed as one that had no effect.
 */
import { randomBytes } from 'node:crypto';
import {
  type CallOptions,
  checkRange,
  checkRangeOptions,
  checkTransaction,
  checkWhole,
  type Entry,
  hostLimits,
  type Key,
  type KeyRange,
  keyBytes,
  type Lease,
  type Outcome,
  type Page,
  type RangeOptions,
  type Store,
  StoreError,
  type Transaction,
  type WatchBatch,
  type WatchOptions,
} from '../store/index.ts';
import type { AnswerOf, ArgsOf, Caller } from './calls.ts';
import { type StoreCalls, slots } from './store-calls.ts';
import { UplinkError } from './uplink-error.ts';

export type Hello = AnswerOf<StoreCalls, 'hello'>;

interface Connection {
  readonly caller: Caller<StoreCalls>;
  readonly hello: Hello;
  /** Counts connections, from 1. */
  readonly number: number;
}

interface Slot {
  readonly number: number;
  /** Revision of its mark. */
  known: number;
}

export interface RemoteStoreOptions {
  /** How long calls wait for a connection before they say that there is none, once `hurry` was called. */
  readonly patienceMs?: number | undefined;
}

const patienceMsDefault = 3_000;

export class RemoteStore implements Store {
  readonly name = 'region';
  readonly place = { engine: 'managers' } as const;
  /** Of this process, in its marks. */
  readonly instance = randomBytes(8).toString('hex');
  readonly #hurriedMs: number;
  /** Undefined: for as long as it takes. */
  #patienceMs: number | undefined;
  #epoch = 0;
  #connection: Connection | undefined;
  #connections = 0;
  #lostAtMs = performance.now();
  #closed: StoreError | undefined;
  /** Who waits for a connection, or for the end. */
  #waiting = new Set<() => void>();
  #commits = 0;
  readonly #slots: Slot[] = Array.from({ length: slots }, (_, number) => ({ number, known: 0 }));
  readonly #free: Slot[] = [...this.#slots];
  readonly #forSlot: ((slot: Slot) => void)[] = [];

  constructor({ patienceMs = patienceMsDefault }: RemoteStoreOptions = {}) {
    this.#hurriedMs = patienceMs;
  }

  /** Until now calls waited for a connection for as long as it took; from now on somebody waits for them. */
  hurry(): void {
    this.#patienceMs = this.#hurriedMs;
  }

  get epoch(): number {
    return this.#epoch;
  }

  /** Since when (`performance.now`) no manager can be asked; undefined while one can. */
  get lostAtMs(): number | undefined {
    return this.#connection === undefined ? this.#lostAtMs : undefined;
  }

  /**
   * There is a connection. STORE_CLOSED, and the store is closed by it: another process has said hello as this host, or the
   * store was restored from a backup.
   */
  connect(caller: Caller<StoreCalls>, hello: Hello): void {
    if (this.#closed !== undefined) throw this.#closed;
    if (this.#connections > 0) {
      if (hello.epoch !== this.#epoch)
        throw this.close("the region's store was restored from a backup: this daemon begins anew");
      if (hello.marks.some(({ id }) => !id.startsWith(`${this.instance}.`)))
        throw this.close(
          `another process is the host "${hello.host}" now: two have the same certificate; end one of them, and enrol it as another host`,
        );
    }
    this.#epoch = hello.epoch;
    for (const slot of this.#slots) slot.known = hello.revision;
    this.#connection = { caller, hello, number: ++this.#connections };
    this.#wake();
  }

  disconnect(caller: Caller<StoreCalls>): void {
    if (this.#connection?.caller !== caller) return;
    this.#connection = undefined;
    this.#lostAtMs = performance.now();
  }

  /** Everything that is asked for from now on, or waits, fails with what it returns. */
  close(why = 'the connection to the managers was closed'): StoreError {
    this.#closed ??= new StoreError('STORE_CLOSED', why);
    this.#connection = undefined;
    this.#wake();
    return this.#closed;
  }

  #wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  // --- Store ---

  async commit(transaction: Transaction, { signal }: CallOptions = {}): Promise<Outcome> {
    signal?.throwIfAborted();
    const { conditions, operations } = checkTransaction(transaction, hostLimits);
    await this.#connected(signal);
    // Whether it happens is found out also for who does not wait for it: until then its slot is not another's.
    return raced(this.#commit({ conditions: [...conditions], operations: [...operations] }), signal);
  }

  async #commit(asked: Pick<ArgsOf<StoreCalls, 'commit'>, 'conditions' | 'operations'>): Promise<Outcome> {
    const slot = this.#free.shift() ?? (await new Promise<Slot>((resolve) => this.#forSlot.push(resolve)));
    try {
      return await this.#commitIn(slot, asked);
    } finally {
      const next = this.#forSlot.shift();
      if (next === undefined) this.#free.push(slot);
      else next(slot);
    }
  }

  async #commitIn(
    slot: Slot,
    asked: Pick<ArgsOf<StoreCalls, 'commit'>, 'conditions' | 'operations'>,
  ): Promise<Outcome> {
    const id = `${this.instance}.${(this.#commits++).toString(36)}`;
    const isMarked = asked.operations.some(({ type }) => type === 'put');
    let connection = await this.#connected();
    for (let wasLost = false; ; wasLost = true) {
      try {
        const answer = await connection.caller.ask('commit', { slot: slot.number, known: slot.known, id, ...asked });
        if (answer.result !== 'fenced') {
          if (answer.result === 'unmet') {
            if (wasLost && !isMarked) throw inDoubt();
            return { committed: false, revision: answer.revision, unmet: answer.unmet ?? [] };
          }
          if (isMarked && this.#connection === connection) slot.known = answer.revision;
          return { committed: true, revision: answer.revision };
        }
        // Another connection of this host has said hello.
      } catch (error) {
        if (!isLost(error) && !isOpen(error)) throw error;
      }
      this.#lose(connection);
      const lostAtMs = performance.now();
      connection = await this.#connectionAfter(connection.number);
      const mark = connection.hello.marks[slot.number]!;
      if (mark.id === id) return { committed: true, revision: mark.revision };
      if (this.#patienceMs !== undefined && performance.now() - lostAtMs > this.#patienceMs) {
        if (isMarked) throw cutOff();
        throw inDoubt();
      }
    }
  }

  async get(key: Key, { revision, signal }: RangeOptions = {}): Promise<Entry | undefined> {
    const entry = await this.#read('get', { key: keyBytes(key), revision }, signal);
    return entry === null ? undefined : toEntry(entry);
  }

  async range(range: KeyRange, { signal, ...options }: RangeOptions = {}): Promise<Page> {
    const { revision, limit } = checkRangeOptions(options);
    const page = await this.#read('range', { ...checkRange(range), revision, limit }, signal);
    return { revision: page.revision, entries: page.entries.map(toEntry), next: page.next };
  }

  async count(
    range: KeyRange,
    { signal, ...options }: RangeOptions = {},
  ): Promise<{ readonly revision: number; readonly count: number }> {
    const { revision, limit } = checkRangeOptions(options);
    return this.#read('count', { ...checkRange(range), revision, limit }, signal);
  }

  async *watch(range: KeyRange, { from, signal }: WatchOptions): AsyncIterableIterator<WatchBatch> {
    checkWhole(from, 'a revision to watch from', 1);
    const { start, end } = checkRange(range);
    for (let next = from; ; ) {
      signal?.throwIfAborted();
      const connection = await this.#connectionAfter(0, signal);
      try {
        const { items } = await connection.caller.begin('watch', { start, end, from: next }, signal);
        for await (const { revision, events } of items) {
          next = revision + 1;
          yield {
            revision,
            events: events.map((event) =>
              event.type === 'put' ? { type: 'put', entry: toEntry(event.entry) } : event,
            ),
          };
        }
        throw new UplinkError('UPLINK_LOST', 'the manager ended the watch');
      } catch (error) {
        if (!isLost(error)) throw error;
        this.#lose(connection);
      }
    }
  }

  async revision({ signal }: CallOptions = {}): Promise<number> {
    return this.#read('revision', null, signal);
  }

  async grantLease(ttlSeconds: number, { signal }: CallOptions = {}): Promise<Lease> {
    return this.#read('grantLease', { ttlSeconds }, signal);
  }

  async keepAlive(leaseId: number, { signal }: CallOptions = {}): Promise<void> {
    await this.#read('keepAlive', { leaseId }, signal);
  }

  async revokeLease(leaseId: number, { signal }: CallOptions = {}): Promise<void> {
    await this.#read('revokeLease', { leaseId }, signal);
  }

  async compact(revision: number, { signal }: CallOptions = {}): Promise<void> {
    await this.#read('compact', { revision }, signal);
  }

  /** Asks again, elsewhere, when the connection is lost: it may be done twice. */
  async #read<N extends keyof StoreCalls>(
    name: N,
    args: ArgsOf<StoreCalls, N>,
    signal: AbortSignal | undefined,
  ): Promise<AnswerOf<StoreCalls, N>> {
    for (;;) {
      signal?.throwIfAborted();
      const connection = await this.#connected(signal);
      try {
        return await connection.caller.ask(name, args, signal);
      } catch (error) {
        if (!isLost(error)) throw error;
        this.#lose(connection);
      }
    }
  }

  // --- connections ---

  /** The connection, if there is one in time after the end of the last. STORE_CUT_OFF, STORE_CLOSED. */
  async #connected(signal?: AbortSignal): Promise<Connection> {
    if (this.#connection === undefined && this.#closed === undefined) {
      const leftMs = this.#patienceMs === undefined ? undefined : this.#lostAtMs + this.#patienceMs - performance.now();
      if (leftMs === undefined || leftMs > 0) await this.#woken(() => this.#connection !== undefined, signal, leftMs);
    }
    if (this.#closed !== undefined) throw this.#closed;
    if (this.#connection === undefined) throw cutOff();
    return this.#connection;
  }

  /** Waits for as long as it takes. STORE_CLOSED. */
  async #connectionAfter(number: number, signal?: AbortSignal): Promise<Connection> {
    await this.#woken(() => this.#connection !== undefined && this.#connection.number > number, signal);
    if (this.#closed !== undefined) throw this.#closed;
    return this.#connection!;
  }

  /** A call met the end of its connection before whoever made that has. */
  #lose({ caller }: Connection): void {
    this.disconnect(caller);
    caller.end();
  }

  async #woken(isSo: () => boolean, signal: AbortSignal | undefined, withinMs?: number): Promise<void> {
    const endMs = withinMs === undefined ? Number.POSITIVE_INFINITY : performance.now() + withinMs;
    while (!isSo() && this.#closed === undefined && performance.now() < endMs) {
      signal?.throwIfAborted();
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting.add(resolve);
      const timer = withinMs === undefined ? undefined : setTimeout(resolve, endMs - performance.now());
      const abort = (): void => resolve();
      signal?.addEventListener('abort', abort, { once: true });
      await promise;
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
      this.#waiting.delete(resolve);
    }
    signal?.throwIfAborted();
  }
}

const isLost = (error: unknown): boolean => error instanceof UplinkError && error.code === 'UPLINK_LOST';

/** The manager does not know either whether it happened: the marks will say. */
const isOpen = (error: unknown): boolean => error instanceof StoreError && error.code === 'STORE_UNAVAILABLE';

const toEntry = ({ leaseId, ...entry }: NonNullable<AnswerOf<StoreCalls, 'get'>>): Entry => ({ ...entry, leaseId });

const cutOff = (): StoreError =>
  new StoreError(
    'STORE_CUT_OFF',
    "no manager of the region can be reached at present, so the cluster's store can't be",
  );

const inDoubt = (): StoreError =>
  new StoreError('STORE_FAILED', 'the connection ended on the way, and whether the change was made is not known');

const raced = async <T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> => {
  if (signal === undefined) return work;
  signal.throwIfAborted();
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  work.catch(() => {});
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
};
