import { StoreError } from './error.ts';
import {
  type EtcdClient,
  EtcdLost,
  EtcdRefused,
  isRefusal,
  isTooLong,
  Patience,
  refusals,
  refused,
} from './etcd-client.ts';
import { EtcdCommits, sealedTo } from './etcd-commits.ts';
import type { EtcdMeta } from './etcd-meta.ts';
import { EtcdPlace } from './etcd-place.ts';
import { type KeyValue, type RangeRequest, type RangeResponse } from './etcd-schema.ts';
import { newLeaseId } from './etcd-slots.ts';
import { compactedError, compactedRevision, EtcdWatch } from './etcd-watch.ts';
import { HistorySize } from './history-size.ts';
import { keyAfter, keyBytes } from './keys.ts';
import { checkRange, checkRangeOptions, checkTransaction, checkWhole } from './request.ts';
import { dataKeyOf } from './seal.ts';
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
  type StorePlace,
  type Transaction,
  type WatchBatch,
  type WatchOptions,
} from './store.ts';

/** Entries that are first asked for: etcd bounds an answer by their number only, and each may be of 1 MiB. */
const firstPiece = 64;
/** Values that are sealed anew before the next are looked at. */
const resealPiece = 50;

export interface EtcdStoreOptions {
  readonly client: EtcdClient;
  readonly meta: EtcdMeta;
  /** Of all that belongs to the stores. */
  readonly prefix: string;
  readonly name: string;
  readonly revision: number;
  readonly clock: Clock;
  readonly retainRevisions: number;
  readonly retainBytes: number;
  readonly sealsPerDataKey: number;
}

/** One named store in an etcd. Made and closed by `openEtcdStores`. */
export class EtcdStore implements Store {
  readonly name: string;
  readonly place: StorePlace;
  readonly epoch: number;
  readonly #client: EtcdClient;
  readonly #meta: EtcdMeta;
  readonly #keys: EtcdPlace;
  readonly #commits: EtcdCommits;
  readonly #clock: Clock;
  readonly #retainRevisions: number;
  readonly #history: HistorySize;
  readonly #closing = new AbortController();
  /** When it was last compacted from here. */
  #compacted: number;

  constructor(options: EtcdStoreOptions) {
    const { client, meta, prefix, name, sealsPerDataKey } = options;
    this.name = name;
    this.place = { engine: 'etcd', endpoints: client.endpoints, prefix };
    this.epoch = meta.epoch;
    this.#client = client;
    this.#meta = meta;
    this.#keys = new EtcdPlace(prefix, name);
    this.#commits = new EtcdCommits({ client, meta, place: this.#keys, sealsPerDataKey });
    this.#clock = options.clock;
    this.#retainRevisions = options.retainRevisions;
    this.#history = new HistorySize(options.retainBytes);
    this.#compacted = options.revision;
  }

  async commit(transaction: Transaction, { signal }: CallOptions = {}): Promise<Outcome> {
    const checked = checkTransaction(transaction);
    const outcome = await this.#commits.commit(checked, signal);
    if (outcome.committed) {
      let bytes = 0;
      for (const operation of checked.operations) if (operation.type === 'put') bytes += operation.value.length;
      this.#noteHistory(outcome.revision, bytes);
    }
    return outcome;
  }

  async get(key: Key, options: RangeOptions = {}): Promise<Entry | undefined> {
    const { revision } = checkRangeOptions(options);
    const start = keyBytes(key);
    const { kvs } = await this.#range({ key: this.#keys.full(start) }, revision, options.signal);
    return kvs[0] && this.#entryOf(kvs[0]);
  }

  async range(range: KeyRange, options: RangeOptions = {}): Promise<Page> {
    const { revision: asked, limit } = checkRangeOptions(options);
    const { key, rangeEnd } = this.#keys.range(checkRange(range));
    const entries: Entry[] = [];
    let revision = asked;
    let from = key;
    let bytes = 0;
    let piece = firstPiece;
    for (;;) {
      const wanted = Math.min(piece, limit - entries.length);
      let answer: RangeResponse;
      try {
        answer = await this.#range({ key: from, rangeEnd, limit: wanted }, revision, options.signal);
      } catch (error) {
        if (!isTooLong(error)) throw error;
        piece = Math.max(1, Math.floor(wanted / 4));
        continue;
      }
      revision ??= answer.header.revision;
      for (const kv of answer.kvs) {
        if (bytes > limits.pageBytes) return { revision, entries, next: this.#keys.own(kv.key) };
        bytes += kv.value.length;
        entries.push(await this.#entryOf(kv));
      }
      if (!answer.more) return { revision, entries, next: undefined };
      const next = keyAfter(entries.at(-1)!.key);
      if (entries.length === limit) return { revision, entries, next };
      from = this.#keys.full(next);
      piece *= 2;
    }
  }

  async count(range: KeyRange, options: RangeOptions = {}): Promise<{ revision: number; count: number }> {
    const { revision } = checkRangeOptions(options);
    const request = { ...this.#keys.range(checkRange(range)), countOnly: true };
    const { header, count } = await this.#range(request, revision, options.signal);
    return { revision: revision ?? header.revision, count };
  }

  async *watch(range: KeyRange, { from, signal }: WatchOptions): AsyncGenerator<WatchBatch, never> {
    checkWhole(from, 'the revision to watch from', 1);
    const ended = signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
    const watch = new EtcdWatch({
      client: this.#client,
      place: this.#keys,
      range: checkRange(range),
      from,
      clock: this.#clock,
      signal: ended,
    });
    for await (const { revision, events } of watch.batches()) {
      const told: WatchBatch['events'][number][] = [];
      for (const { type, kv } of events) {
        if (type === 0) {
          told.push({ type: 'put', entry: await this.#entryOf(kv) });
        } else {
          told.push({ type: 'delete', key: this.#keys.own(kv.key), modRevision: kv.modRevision });
        }
      }
      yield { revision, events: told };
    }
    throw new StoreError('STORE_CLOSED', 'the store is closed');
  }

  async grantLease(ttlSeconds: number, { signal }: CallOptions = {}): Promise<Lease> {
    checkWhole(ttlSeconds, 'a time to live in seconds', 1, limits.leaseSeconds);
    for (;;) {
      const id = newLeaseId();
      try {
        // etcd may give it longer than was asked: it has a least time, of some of its leader's elections.
        const { ttl } = await this.#asking(
          'granting a lease',
          this.#client.ask('LeaseGrant', { id, ttl: ttlSeconds }, signal),
        );
        return { id, ttlSeconds: ttl };
      } catch (error) {
        // Another's, or this one's, whose answer was lost: it runs out by itself.
        if (!isRefusal((error as Error).cause, refusals.leaseExists)) throw error;
      }
    }
  }

  async keepAlive(leaseId: number, { signal }: CallOptions = {}): Promise<void> {
    const patience = new Patience(this.#client.patienceMs, signal);
    for (;;) {
      try {
        if (await this.#keptAlive(leaseId, signal)) return;
        throw this.#leaseGone(leaseId);
      } catch (error) {
        if (error instanceof EtcdRefused && !this.#client.noteTokenGone(error))
          throw refused(error, 'keeping a lease alive');
        await patience.after(
          error instanceof EtcdRefused ? new EtcdLost('the token ran out', error) : error,
          'whether the lease was kept alive is open',
        );
      }
    }
  }

  async #keptAlive(id: number, signal: AbortSignal | undefined): Promise<boolean> {
    const stream = await this.#client.open('LeaseKeepAlive', signal);
    const late = setTimeout(() => stream.close(), this.#client.callMs);
    const abort = (): void => stream.close();
    signal?.addEventListener('abort', abort, { once: true });
    try {
      stream.send({ id });
      return (await stream.next()).ttl > 0;
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener('abort', abort);
      clearTimeout(late);
      stream.close();
    }
  }

  async revokeLease(leaseId: number, { signal }: CallOptions = {}): Promise<void> {
    const patience = new Patience(this.#client.patienceMs, signal);
    let mayBeDone = false;
    for (;;) {
      try {
        await this.#client.call('LeaseRevoke', { id: leaseId }, signal);
        return;
      } catch (error) {
        if (isRefusal(error, refusals.leaseGone)) {
          if (mayBeDone) return;
          throw this.#leaseGone(leaseId, error);
        }
        if (error instanceof EtcdRefused) throw refused(error, 'revoking a lease');
        await patience.after(error, 'whether the lease was revoked is open');
        mayBeDone = true;
      }
    }
  }

  async revision({ signal }: CallOptions = {}): Promise<number> {
    return (await this.#range({ key: this.#meta.key, countOnly: true }, undefined, signal)).header.revision;
  }

  async compact(revision: number, { signal }: CallOptions = {}): Promise<void> {
    checkWhole(revision, 'a revision', 0);
    try {
      await this.#client.ask('Compact', { revision }, signal);
    } catch (error) {
      if (isRefusal(error, refusals.future))
        throw new StoreError(
          'STORE_INVALID',
          `compacting up to ${revision} failed: the newest is ${await this.revision()}`,
        );
      if (!isRefusal(error, refusals.compacted))
        throw error instanceof EtcdRefused ? refused(error, 'compacting etcd') : error;
    }
    this.#compacted = Math.max(this.#compacted, revision);
    this.#history.compacted(revision);
  }

  /**
   * For `openEtcdStores`: seals anew what older data keys than `oldest` sealed. Each is a put of the same bytes, since etcd
   * has no other way: watches are told, and `modRevision` rises.
   * @returns how many
   */
  async reseal(
    oldest: number,
    { signal, onSeen }: CallOptions & { readonly onSeen: (count: number) => void },
  ): Promise<number> {
    let resealed = 0;
    let from: Key | undefined = '';
    while (from !== undefined) {
      const { key, rangeEnd } = this.#keys.range(checkRange({ start: from }));
      const { kvs, more } = await this.#range({ key, rangeEnd, limit: resealPiece }, undefined, signal);
      for (const kv of kvs) {
        if (dataKeyOf(kv.value) < oldest && (await this.#resealOne(kv, signal))) resealed++;
      }
      onSeen(kvs.length);
      from = more ? keyAfter(this.#keys.own(kvs.at(-1)!.key)) : undefined;
    }
    return resealed;
  }

  /** @returns whether it was still there to be sealed; who changed it meanwhile has sealed it by the newest key */
  async #resealOne(kv: KeyValue, signal: AbortSignal | undefined): Promise<boolean> {
    const { key, value, leaseId, modRevision } = await this.#entryOf(kv);
    try {
      const { committed } = await this.#commits.commit(
        {
          conditions: [{ key: new Uint8Array(key), modRevision }],
          operations: [{ type: 'put', key: new Uint8Array(key), value: new Uint8Array(value), leaseId }],
        },
        signal,
      );
      return committed;
    } catch (error) {
      if (error instanceof StoreError && error.code === 'STORE_LEASE_GONE') return false;
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#closing.abort(new StoreError('STORE_CLOSED', 'the store is closed'));
    await this.#commits.close();
  }

  /** At a revision, or the newest. StoreError STORE_COMPACTED, STORE_INVALID. */
  async #range(
    request: RangeRequest,
    revision: number | undefined,
    signal: AbortSignal | undefined,
  ): Promise<RangeResponse> {
    try {
      // 0 would be the newest; before the first revision there was nothing either.
      return await this.#client.ask(
        'Range',
        { ...request, ...(revision !== undefined && { revision: Math.max(1, revision) }) },
        signal,
      );
    } catch (error) {
      if (isTooLong(error)) throw error;
      if (isRefusal(error, refusals.compacted))
        throw compactedError(
          revision ?? 0,
          this.name,
          await compactedRevision(this.#client, { place: this.#keys, signal }),
        );
      if (isRefusal(error, refusals.future))
        throw new StoreError(
          'STORE_INVALID',
          `revision ${revision} is not there yet: the newest is ${await this.revision()}`,
        );
      throw error instanceof EtcdRefused ? refused(error, 'reading from etcd') : error;
    }
  }

  /** Of what etcd has. STORE_DAMAGED. */
  async #entryOf(kv: KeyValue): Promise<Entry> {
    const key = this.#keys.own(kv.key);
    const { createRevision, modRevision, version } = kv;
    // Another manager may have made a data key since.
    if (!this.#meta.keyring.has(dataKeyOf(kv.value))) await this.#meta.reload();
    const value = this.#meta.keyring.open(this.name, key, sealedTo(kv), kv.value);
    this.#commits.note({ ...kv, key });
    return { key, value, createRevision, modRevision, version, leaseId: kv.lease === 0 ? undefined : kv.lease };
  }

  #leaseGone(leaseId: number, cause?: unknown): StoreError {
    const message = `lease ${leaseId} of the ${this.name} store has run out or was revoked; grant another`;
    return new StoreError('STORE_LEASE_GONE', message, cause);
  }

  #noteHistory(revision: number, bytes: number): void {
    this.#history.add(revision, bytes);
    const byCount = revision - this.#compacted >= 2 * this.#retainRevisions ? revision - this.#retainRevisions : 0;
    const upTo = Math.max(byCount, this.#history.due() ?? 0);
    if (upTo <= this.#compacted) return;
    this.#compacted = upTo;
    // A failure is met again when the next is due.
    this.compact(upTo).catch(() => {});
  }

  async #asking<T>(action: string, answer: Promise<T>): Promise<T> {
    try {
      return await answer;
    } catch (error) {
      throw error instanceof EtcdRefused ? refused(error, action) : error;
    }
  }
}
