/**
 * Transactions as etcd's. Each value is sealed to the version that its put will make, so that version is a condition of the
 * put ([ADR 8]); which one that is, is known from what was read and written last, or asked. Without its knowing, a
 * transaction that guessed wrong is made anew.
 */
import { Buffer } from 'node:buffer';
import { StoreError } from './error.ts';
import { type EtcdClient, EtcdLost, EtcdRefused, isRefusal, Patience, refusals, refused } from './etcd-client.ts';
import type { EtcdMeta } from './etcd-meta.ts';
import type { EtcdPlace } from './etcd-place.ts';
import {
  type Compare,
  compares,
  type KeyValue,
  type RequestOp,
  type ResponseOp,
  type TxnRequest,
  type TxnResponse,
} from './etcd-schema.ts';
import { EtcdSlots, type Slot } from './etcd-slots.ts';
import type { CheckedCondition, CheckedOperation, CheckedTransaction } from './request.ts';
import type { Outcome } from './store.ts';

/** How a key was; all 0 when it was not there. */
interface Known {
  readonly modRevision: number;
  readonly createRevision: number;
  readonly version: number;
}

const absent: Known = { modRevision: 0, createRevision: 0, version: 0 };

/** Keys whose versions are remembered. */
const mostKnown = 10_000;

/** What a value is sealed to. The first value of a key cannot know its revision; every later one is bound to the first. */
export const sealedTo = ({ createRevision, version }: Pick<Known, 'createRevision' | 'version'>): string =>
  version === 1 ? '1' : `${version} of ${createRevision}`;

/** `--max-txn-ops` of etcd, unless it is told otherwise: of comparisons and operations, and of those within together. */
const mostInOne = 128;

/** As etcd counts it (checkTxnRequest). */
const sizeOf = ({ compare, success, failure }: TxnRequest): number =>
  Math.max(compare.length, success.length, failure.length);

/** One transaction uses one data key for so many values at most. */
const sealsPerRevision = 100;

interface Attempt {
  readonly request: TxnRequest;
  /** Whether what may change something is a transaction within, made only where something is there to be deleted. */
  readonly isNested: boolean;
  /** What the puts build on. */
  readonly bases: ReadonlyMap<string, Known>;
}

const name = (key: Uint8Array): string => Buffer.from(key).toString('latin1');

const isAt = (key: Uint8Array, modRevision: number): Compare => ({
  result: compares.equal,
  target: compares.mod,
  key,
  modRevision,
});

const look = (key: Uint8Array): RequestOp => ({ requestRange: { key, keysOnly: true } });

export interface EtcdCommitsOptions {
  readonly client: EtcdClient;
  readonly meta: EtcdMeta;
  readonly place: EtcdPlace;
  readonly sealsPerDataKey: number;
}

export class EtcdCommits {
  readonly #client: EtcdClient;
  readonly #meta: EtcdMeta;
  readonly #place: EtcdPlace;
  readonly #slots: EtcdSlots;
  readonly #revisionsPerDataKey: number;
  readonly #known = new Map<string, Known>();
  #revision = 0;

  constructor({ client, meta, place, sealsPerDataKey }: EtcdCommitsOptions) {
    this.#client = client;
    this.#meta = meta;
    this.#place = place;
    this.#slots = new EtcdSlots(client, place.slots);
    this.#revisionsPerDataKey = Math.floor(sealsPerDataKey / sealsPerRevision);
  }

  /** STORE_LEASE_GONE, STORE_FULL, STORE_UNAVAILABLE, STORE_REFUSED; the reason of an aborted signal. */
  async commit(transaction: CheckedTransaction, signal?: AbortSignal): Promise<Outcome> {
    signal?.throwIfAborted();
    if (transaction.operations.length === 0) return this.#look(transaction.conditions, signal);
    const patience = new Patience(this.#client.patienceMs, signal);
    const slot = await this.#slots.take(patience, signal);
    let isKnown = true;
    try {
      if (this.#revision - this.#meta.newestSince > this.#revisionsPerDataKey)
        await this.#meta.newDataKey(this.#revision, signal);
      await this.#learn(transaction, signal);
      isKnown = false;
      const outcome = await this.#commit(transaction, slot, patience, signal);
      isKnown = true;
      return outcome;
    } catch (error) {
      // Nothing happened, so the slot is as it was.
      isKnown ||= error instanceof EtcdRefused;
      if (isRefusal(error, refusals.leaseGone)) throw this.#leaseGone(transaction.operations, error);
      throw error instanceof EtcdRefused ? refused(error, 'writing to etcd') : error;
    } finally {
      this.#slots.release(slot, isKnown);
    }
  }

  /** What was read or watched; the next put of the key need not ask. */
  note(kv: KeyValue): void {
    if (kv.modRevision > (this.#known.get(name(kv.key))?.modRevision ?? 0)) this.#remember(kv.key, kv);
  }

  close(): Promise<void> {
    return this.#slots.close();
  }

  async #commit(
    transaction: CheckedTransaction,
    slot: Slot,
    patience: Patience,
    signal: AbortSignal | undefined,
  ): Promise<Outcome> {
    for (;;) {
      const mark = this.#slots.newMark();
      const attempt = this.#attempt(transaction, slot, await this.#slots.put(slot, mark, signal));
      let answer: TxnResponse;
      try {
        answer = await this.#client.call('Txn', attempt.request, signal);
      } catch (error) {
        if (await this.#slots.lostLease(error, signal)) continue;
        if (!(error instanceof EtcdLost)) throw error;
        const revision = await this.#slots.settle(slot, mark, error, patience);
        if (revision !== undefined) return this.#done(transaction, attempt, revision);
        continue;
      }
      const { revision } = answer.header;
      if (attempt.isNested && answer.succeeded) return { committed: true, revision };
      const { succeeded, responses } = attempt.isNested ? answer.responses[0]!.responseTxn! : answer;
      if (succeeded) {
        slot.revision = revision;
        return this.#done(transaction, attempt, revision);
      }
      const unmet = await this.#readAnew(transaction, slot, responses, signal);
      if (unmet.length > 0) return { committed: false, revision, unmet };
    }
  }

  #attempt({ conditions, operations }: CheckedTransaction, slot: Slot, putSlot: RequestOp): Attempt {
    const puts = operations.filter(({ type }) => type === 'put');
    const bases = new Map(puts.map(({ key }) => [name(key), this.#known.get(name(key)) ?? absent]));
    const holds = conditions.map((condition) => this.#holds(condition));
    const guards = puts.map(({ key }) => isAt(this.#place.full(key), bases.get(name(key))!.modRevision));
    const { key: metaKey, revision } = this.#meta;
    const request: TxnRequest = {
      compare: [isAt(metaKey, revision), isAt(slot.key, slot.revision), ...holds, ...guards],
      success: [...operations.map((operation) => this.#change(operation, bases)), putSlot],
      failure: [metaKey, slot.key, ...this.#keysOf(conditions, puts)].map(look),
    };
    if (puts.length > 0) return { request, isNested: false, bases };
    // Where nothing is there to be deleted nothing happens, so the slot is not put either, as far as etcd has room to ask.
    const nothing = operations.map(({ key }) => isAt(this.#place.full(key), 0));
    const outer = { compare: [...holds, ...nothing], success: [], failure: [{ requestTxn: request }] };
    const isNested = sizeOf(outer) + sizeOf(request) <= mostInOne;
    return { request: isNested ? outer : request, isNested, bases };
  }

  #holds(condition: CheckedCondition): Compare {
    const key = this.#place.full(condition.key);
    return 'exists' in condition
      ? { result: condition.exists ? compares.greater : compares.equal, target: compares.version, key, version: 0 }
      : isAt(key, condition.modRevision);
  }

  #change(operation: CheckedOperation, bases: Attempt['bases']): RequestOp {
    const key = this.#place.full(operation.key);
    if (operation.type === 'delete') return { requestDeleteRange: { key } };
    const { createRevision, version } = bases.get(name(operation.key))!;
    const place = sealedTo({ createRevision, version: version + 1 });
    const value = this.#meta.keyring.seal(this.#place.name, operation.key, place, operation.value);
    return { requestPut: { key, value, ...(operation.leaseId !== undefined && { lease: operation.leaseId }) } };
  }

  /** Keys of etcd, each once: what the conditions are about, and what is put. */
  #keysOf(conditions: readonly CheckedCondition[], operations: readonly CheckedOperation[]): Uint8Array[] {
    const keys = [...conditions, ...operations.filter(({ type }) => type === 'put')].map(({ key }) => key);
    return [...new Map(keys.map((key) => [name(key), this.#place.full(key)])).values()];
  }

  /** After a transaction that did not happen. @returns the conditions that were not met, if that was why */
  async #readAnew(
    { conditions, operations }: CheckedTransaction,
    slot: Slot,
    responses: readonly ResponseOp[],
    signal: AbortSignal | undefined,
  ): Promise<number[]> {
    const [meta, ownSlot, ...found] = responses.map(({ responseRange }) => responseRange?.kvs[0]);
    slot.revision = ownSlot?.modRevision ?? 0;
    const byKey = new Map(this.#keysOf(conditions, operations).map((key, i) => [name(key), found[i]]));
    const unmet = this.#unmet(conditions, byKey);
    for (const { key, type } of operations)
      if (type === 'put') this.#remember(key, byKey.get(name(this.#place.full(key))) ?? absent);
    if (unmet.length === 0 && meta?.modRevision !== this.#meta.revision) await this.#meta.reload(signal);
    return unmet;
  }

  #unmet(conditions: readonly CheckedCondition[], found: ReadonlyMap<string, KeyValue | undefined>): number[] {
    return conditions.flatMap((condition, index) => {
      const kv = found.get(name(this.#place.full(condition.key)));
      const isMet =
        'exists' in condition ? condition.exists === (kv !== undefined) : kv?.modRevision === condition.modRevision;
      return isMet ? [] : [index];
    });
  }

  /** A transaction that changes nothing. */
  async #look(conditions: readonly CheckedCondition[], signal: AbortSignal | undefined): Promise<Outcome> {
    const keys = this.#keysOf(conditions, []);
    const { header, found } = await this.#read(keys.length > 0 ? keys : [this.#meta.key], signal);
    const unmet = this.#unmet(conditions, found);
    const { revision } = header;
    return unmet.length > 0 ? { committed: false, revision, unmet } : { committed: true, revision };
  }

  /** So that what is put is sealed to the right version at once. */
  async #learn({ conditions, operations }: CheckedTransaction, signal: AbortSignal | undefined): Promise<void> {
    // Where that is a condition, it is known, or the transaction does not happen.
    for (const condition of conditions)
      if ('exists' in condition && !condition.exists) this.#remember(condition.key, absent);
    const unknown = operations.filter(({ type, key }) => type === 'put' && !this.#known.has(name(key)));
    if (unknown.length === 0) return;
    const { found } = await this.#read(this.#keysOf([], unknown), signal);
    for (const { key } of unknown) this.#remember(key, found.get(name(this.#place.full(key))) ?? absent);
  }

  async #read(keys: readonly Uint8Array[], signal: AbortSignal | undefined) {
    const request = { compare: [], success: keys.map(look), failure: [] };
    const { header, responses } = await this.#client.ask('Txn', request, signal);
    return { header, found: new Map(keys.map((key, i) => [name(key), responses[i]?.responseRange?.kvs[0]])) };
  }

  #done({ operations }: CheckedTransaction, { bases }: Attempt, revision: number): Outcome {
    this.#revision = revision;
    for (const { type, key } of operations) {
      // A watch may have told of a later one already.
      if ((this.#known.get(name(key))?.modRevision ?? 0) > revision) continue;
      const { createRevision, version } = bases.get(name(key)) ?? absent;
      this.#remember(
        key,
        type === 'delete'
          ? absent
          : { modRevision: revision, createRevision: version === 0 ? revision : createRevision, version: version + 1 },
      );
    }
    return { committed: true, revision };
  }

  #remember(key: Uint8Array, { modRevision, createRevision, version }: Known): void {
    const text = name(key);
    this.#known.delete(text);
    this.#known.set(text, { modRevision, createRevision, version });
    if (this.#known.size > mostKnown) this.#known.delete(this.#known.keys().next().value!);
  }

  #leaseGone(operations: readonly CheckedOperation[], cause: unknown): StoreError {
    const ids = new Set(
      operations.flatMap((operation) =>
        'leaseId' in operation && operation.leaseId !== undefined ? [operation.leaseId] : [],
      ),
    );
    return new StoreError(
      'STORE_LEASE_GONE',
      `lease ${[...ids].join(' or ')} of the ${this.#place.name} store has run out or was revoked`,
      cause,
    );
  }
}
