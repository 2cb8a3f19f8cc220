/**
 * A request with an `Idempotency-Key` has its effect once: a repeat within a day gets the first answer again. The record is
 * put in the transaction of the effect. Where a host has the effect (a VM's tree, a boot), a record `begun` goes ahead of it,
 * and the host keeps with the effect which request it was of (`Once`). Refusals are not kept: a request that had no effect may
 * be tried again.
 */
import { createHash } from 'node:crypto';
import { IdempotencyRecord, type Once } from '../records/index.ts';
import { type Condition, type Operation, type Store, StoreError } from '../store/index.ts';
import type { DayLease } from './day-lease.ts';
import { getRecord, type Kept, type Kit, put, remove } from './kit.ts';
import { ApiError } from './problem.ts';

/** What a handler answers, as it can be kept. */
export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** JSON text, or ''. */
  readonly body: string;
}

export interface OnceRequest {
  readonly account: string;
  /** Undefined: the request is not bound to a key. */
  readonly key: string | undefined;
  /** SHA-256, in hex, of all that makes the request what it is. */
  readonly hash: string;
}

/** Commits the effect together with the answer. False: a condition of the effect's own did not hold. */
export type CommitOnce = (
  transaction: { readonly conditions: readonly Condition[]; readonly operations: readonly Operation[] },
  answer: Answer,
) => Promise<boolean>;

/** Someone else's request with the same key was faster. */
class Overtaken extends Error {}

export class Idempotency {
  readonly #kit: Kit;
  readonly #lease: DayLease;
  readonly #store: Store;
  readonly #underWay = new Map<string, { readonly hash: string; readonly answer: Promise<Answer> }>();

  constructor(kit: Kit, store: Store, lease: DayLease) {
    this.#kit = kit;
    this.#store = store;
    this.#lease = lease;
  }

  /** For effects in the store itself. `effect` calls `commit` once, or again after a `false`. */
  run(request: OnceRequest, effect: (commit: CommitOnce) => Promise<Answer>): Promise<Answer> {
    const plain: CommitOnce = async ({ conditions, operations }) =>
      (await this.#store.commit({ conditions, operations })).committed;
    if (request.key === undefined) return effect(plain);
    const key = keyOf(request);
    return this.#alone(request, key, async () => {
      const before = await getRecord(this.#store, IdempotencyRecord, key);
      if (before !== undefined) return this.#replay(request, before);
      try {
        return await effect((transaction, answer) => this.#commit(request, key, transaction, answer));
      } catch (error) {
        // What it was refused for may be the very effect of the same request, made through another manager.
        const winner = await getRecord(this.#store, IdempotencyRecord, key).catch(() => undefined);
        if (winner !== undefined) return this.#replay(request, winner);
        throw error instanceof Overtaken ? busy() : error;
      }
    });
  }

  /**
   * For effects elsewhere. `effect` is given what the request is known by there, and whether an earlier try may have had its
   * effect. It must throw only when it had none for certain, or `isOpen(error)` must say that it may have had.
   */
  runOutside(
    request: OnceRequest,
    effect: (once: Once | undefined) => Promise<Answer>,
    isOpen: (error: unknown) => boolean,
  ): Promise<Answer> {
    if (request.key === undefined) return effect(undefined);
    const key = keyOf(request);
    return this.#alone(request, key, async () => {
      const before = await getRecord(this.#store, IdempotencyRecord, key);
      if (before?.record.state === 'done') return this.#replay(request, before);
      if (before !== undefined) checkHash(request, before.record);
      // Taken over, if need be: whoever began it before does not end it any more.
      const begun = await this.#leased((leaseId) => ({
        conditions: [before === undefined ? { key, exists: false } : { key, modRevision: before.modRevision }],
        operations: [put(key, this.#record(request, { status: 0, headers: {}, body: '' }, 'begun'), leaseId)],
      }));
      if (!begun.committed) throw busy();
      const conditions = [{ key, modRevision: begun.revision }];
      let answer: Answer;
      try {
        answer = await effect({ id: onceId(request), isRepeat: before !== undefined });
      } catch (error) {
        if (!isOpen(error)) await this.#store.commit({ conditions, operations: [remove(key)] });
        throw error;
      }
      await this.#leased((leaseId) => ({
        conditions,
        operations: [put(key, this.#record(request, answer, 'done'), leaseId)],
      }));
      return answer;
    });
  }

  /** One at a time in this process: a concurrent repeat waits and gets the same answer. */
  async #alone(request: OnceRequest, key: string, work: () => Promise<Answer>): Promise<Answer> {
    const other = this.#underWay.get(key);
    if (other !== undefined) {
      if (other.hash !== request.hash) throw mismatch();
      // When the first had no effect, this one may.
      const answer = await other.answer.catch(() => undefined);
      return answer ?? this.#alone(request, key, work);
    }
    const answer = work();
    this.#underWay.set(key, { hash: request.hash, answer });
    try {
      return await answer;
    } finally {
      this.#underWay.delete(key);
    }
  }

  async #commit(
    request: OnceRequest,
    key: string,
    transaction: { readonly conditions: readonly Condition[]; readonly operations: readonly Operation[] },
    answer: Answer,
  ): Promise<boolean> {
    const outcome = await this.#leased((leaseId) => ({
      conditions: [...transaction.conditions, { key, exists: false }],
      operations: [...transaction.operations, put(key, this.#record(request, answer, 'done'), leaseId)],
    }));
    if (outcome.committed) return true;
    if (outcome.unmet.includes(transaction.conditions.length)) throw new Overtaken();
    return false;
  }

  /** Once more with a new lease when the old one ran out, as it does when a machine sleeps for a day. */
  async #leased(transaction: (leaseId: number) => Parameters<Store['commit']>[0]): ReturnType<Store['commit']> {
    try {
      return await this.#store.commit(transaction(await this.#lease.current()));
    } catch (error) {
      if (!(error instanceof StoreError && error.code === 'STORE_LEASE_GONE')) throw error;
      this.#lease.forget();
      return this.#store.commit(transaction(await this.#lease.current()));
    }
  }

  #record(request: OnceRequest, answer: Answer, state: IdempotencyRecord['state']): IdempotencyRecord {
    return { request: request.hash, ...answer, headers: { ...answer.headers }, state, createdAtMs: this.#kit.wallMs() };
  }

  #replay(request: OnceRequest, { record }: Kept<IdempotencyRecord>): Answer {
    checkHash(request, record);
    if (record.state === 'begun') throw busy();
    return replayed(record);
  }
}

export const replayed = ({ status, headers, body }: Answer): Answer => ({
  status,
  headers: { ...headers, 'idempotent-replay': 'true' },
  body,
});

export const idempotencyPrefix = (account: string): string => `idempotency/${account}/`;

const keyOf = ({ account, key }: OnceRequest): string =>
  `${idempotencyPrefix(account)}${createHash('sha256').update(key!).digest('hex')}`;

/** Of this request, and of no other one with the same key: that may be used again after a day. */
const onceId = ({ account, key, hash }: OnceRequest): string =>
  createHash('sha256')
    .update(JSON.stringify([account, key, hash]))
    .digest('base64url');

const checkHash = (request: OnceRequest, record: IdempotencyRecord): void => {
  if (record.request !== request.hash) throw mismatch();
};

export const mismatch = (): ApiError =>
  new ApiError('IDEMPOTENCY_MISMATCH', 'this Idempotency-Key came with another request before; use a new one for each');

export const busy = (): ApiError =>
  new ApiError('IDEMPOTENCY_BUSY', 'a request with this Idempotency-Key is under way; repeat it in a second', {
    retryAfterSeconds: 1,
  });
