/**
 * A watch that outlives the members it is told by. etcd tells in order and repeats nothing; but old versions of it can leave
 * out what happened around a compaction. So whenever it was connected anew, and every five minutes, what is there is listed
 * and compared with what was told. Where something was left out, it ends as one whose history was compacted does: who
 * watches lists, and watches anew.
 */
import { StoreError } from './error.ts';
import {
  type EtcdClient,
  EtcdLost,
  EtcdRefused,
  type EtcdStream,
  isRefusal,
  isTooLong,
  Patience,
  refusals,
  refused,
} from './etcd-client.ts';
import type { EtcdPlace } from './etcd-place.ts';
import type {
  KeyValue,
  RangeRequest,
  RangeResponse,
  Streams,
  WatchEventMessage,
  WatchResponse,
} from './etcd-schema.ts';
import { ToldChanges } from './etcd-told.ts';
import type { CheckedRange } from './request.ts';
import type { Clock } from './store.ts';

const compareMs = 5 * 60_000;
/** So long a stream must have been silent before something counts as left out. */
const silenceMs = 10_000;

export interface RawBatch {
  readonly revision: number;
  readonly events: readonly WatchEventMessage[];
}

/** What is there: keys that changed since the last comparison, and how many there are in all, as of a revision. */
interface Found {
  readonly revision: number;
  readonly count: number;
  readonly listed: readonly KeyValue[];
}

type WatchStream = EtcdStream<Streams['Watch'][0], WatchResponse>;

export type WatchedEtcd = Pick<EtcdClient, 'ask' | 'open' | 'turnAway' | 'noteTokenGone' | 'callMs' | 'patienceMs'>;

export interface EtcdWatchOptions {
  readonly client: WatchedEtcd;
  readonly place: EtcdPlace;
  readonly range: CheckedRange;
  readonly from: number;
  readonly clock: Clock;
  readonly signal: AbortSignal | undefined;
  /** Changes that are remembered until they are compared. */
  readonly mostTold?: number;
}

export const compactedError = (asked: number, name: string, oldest: number): StoreError =>
  new StoreError(
    'STORE_COMPACTED',
    `revision ${asked} of the ${name} store was compacted; the oldest there is, is ${oldest}: list anew`,
    undefined,
    oldest,
  );

export class EtcdWatch {
  readonly #options: EtcdWatchOptions;
  readonly #range: { readonly key: Uint8Array; readonly rangeEnd: Uint8Array };
  readonly #told = new ToldChanges();
  readonly #mostTold: number;
  /** The first revision that was not told of. */
  #next: number;
  #stream: WatchStream | undefined;
  #reading: Promise<WatchResponse> | undefined;
  /** Events of a revision of which more may follow. */
  #begun: WatchEventMessage[] = [];
  #isDue = false;
  #wasConnected = false;
  #cancelTimer: (() => void) | undefined;
  #wake: (() => void) | undefined;
  /** Of the last comparison, while the stream has told nothing since: what it may still have to tell is of before. */
  #quietAfter: number | undefined;
  /** Listed and not told: the comparison is decided when the stream has passed it, or stays silent. */
  #suspect: Found | undefined;

  constructor(options: EtcdWatchOptions) {
    this.#options = options;
    this.#range = options.place.range(options.range);
    this.#next = options.from;
    this.#mostTold = options.mostTold ?? 50_000;
  }

  /** StoreError STORE_COMPACTED, STORE_CLOSED, STORE_REFUSED; the signal's reason. */
  async *batches(): AsyncGenerator<RawBatch, never> {
    const { signal } = this.#options;
    const wake = (): void => this.#wake?.();
    signal?.addEventListener('abort', wake, { once: true });
    try {
      for (;;) {
        const response = await this.#receive();
        if (response !== undefined) yield* this.#batchesOf(response);
      }
    } finally {
      signal?.removeEventListener('abort', wake);
      this.#disconnect();
      this.#cancelTimer?.();
    }
  }

  /** The next response; undefined when something else was done meanwhile. */
  async #receive(): Promise<WatchResponse | undefined> {
    const { signal, client } = this.#options;
    const patience = new Patience(Infinity, signal);
    for (;;) {
      signal?.throwIfAborted();
      try {
        await this.#connect();
        if (this.#isDue) await this.#compare();
        else if (this.#told.size > this.#mostTold && this.#suspect === undefined) await this.#compareTold();
        return await this.#nextResponse();
      } catch (error) {
        this.#disconnect();
        const isAway = error instanceof StoreError && error.code === 'STORE_UNAVAILABLE';
        if (isAway || client.noteTokenGone(error)) await patience.after(new EtcdLost('it may answer later', error), '');
        else if (error instanceof EtcdRefused) throw refused(error, 'watching etcd');
        else await patience.after(error, '');
      }
    }
  }

  async #nextResponse(): Promise<WatchResponse | undefined> {
    this.#reading ??= this.#stream!.next();
    const response = await this.#orWoken(this.#reading);
    if (response === undefined) {
      // Silent for all the time since: who connects anew need not have history from before.
      if (this.#isDue && this.#quietAfter !== undefined) this.#next = Math.max(this.#next, this.#quietAfter + 1);
      return undefined;
    }
    this.#reading = undefined;
    this.#quietAfter = undefined;
    if (response.canceled) throw this.#ended(response);
    return response;
  }

  /** Undefined when a timer or the signal came first. */
  async #orWoken<T>(promise: Promise<T>): Promise<T | undefined> {
    const woken = Promise.withResolvers<undefined>();
    this.#wake = () => woken.resolve(undefined);
    promise.catch(() => {});
    try {
      return await Promise.race([promise, woken.promise]);
    } finally {
      this.#wake = undefined;
    }
  }

  #ended({ compactRevision, cancelReason }: WatchResponse): Error {
    if (compactRevision > 0) return compactedError(this.#next, this.#options.place.name, compactRevision + 1);
    if (/permission denied/.test(cancelReason))
      return new StoreError(
        'STORE_REFUSED',
        "watching etcd failed: etcd's user may not read the whole prefix of the store",
      );
    const error = new EtcdLost(`etcd ended the watch: ${cancelReason}`, undefined);
    this.#options.client.noteTokenGone(error);
    return error;
  }

  /** From where the last stream ended. */
  async #connect(): Promise<void> {
    if (this.#stream !== undefined) return;
    const { client, signal, place } = this.#options;
    this.#begun = [];
    this.#stream = await client.open('Watch', signal);
    this.#stream.send({ createRequest: { ...this.#range, startRevision: this.#next, fragment: true } });
    const created = await this.#created(this.#stream);
    if (created.canceled) throw this.#ended(created);
    // Only now is it certain that nothing from `#next` on was compacted before the watch was there: etcd itself refuses
    // a revision before the last compaction, but not that revision.
    const before = Math.max(1, this.#next - 1);
    try {
      const { count } = await client.ask('Range', { ...this.#range, countOnly: true, revision: before }, signal);
      if (this.#told.since === undefined) this.#told.startFrom(before, count);
    } catch (error) {
      if (isRefusal(error, refusals.compacted))
        throw compactedError(this.#next, place.name, (await compactedRevision(client, { place, signal })) + 1);
      if (!isRefusal(error, refusals.future)) throw error;
    }
    this.#timer(this.#wasConnected ? silenceMs : compareMs);
    this.#wasConnected = true;
  }

  async #created(stream: WatchStream): Promise<WatchResponse> {
    const { client, signal } = this.#options;
    const giveUp = setTimeout(() => this.#wake?.(), client.callMs);
    try {
      const created = await this.#orWoken(stream.next());
      if (created !== undefined) return created;
      signal?.throwIfAborted();
      client.turnAway();
      throw new EtcdLost('the etcd member did not begin the watch', undefined);
    } finally {
      clearTimeout(giveUp);
    }
  }

  #disconnect(): void {
    this.#stream?.close();
    this.#stream = undefined;
    this.#reading = undefined;
    this.#suspect = undefined;
    this.#quietAfter = undefined;
  }

  #timer(delayMs: number): void {
    this.#cancelTimer?.();
    this.#isDue = false;
    this.#cancelTimer = this.#options.clock.after(delayMs, () => {
      this.#isDue = true;
      this.#wake?.();
    });
  }

  *#batchesOf({ events, fragment }: WatchResponse): Generator<RawBatch> {
    if (this.#suspect !== undefined) this.#timer(silenceMs);
    let begun = this.#begun;
    for (const event of events) {
      const last = begun[0]?.kv.modRevision;
      if (last !== undefined && last !== event.kv.modRevision) {
        yield this.#tell(begun);
        begun = [];
      }
      begun.push(event);
    }
    this.#begun = fragment ? begun : [];
    if (!fragment && begun.length > 0) yield this.#tell(begun);
  }

  #tell(events: readonly WatchEventMessage[]): RawBatch {
    const revision = events[0]!.kv.modRevision;
    this.#next = revision + 1;
    for (const event of events) if (!this.#told.add(event)) throw this.#gap(revision);
    if (this.#suspect !== undefined && revision > this.#suspect.revision) this.#decide(this.#suspect);
    return { revision, events };
  }

  #gap(revision: number): StoreError {
    return new StoreError(
      'STORE_COMPACTED',
      `etcd left out a change of the ${this.#options.place.name} store before revision ${revision}: list anew`,
      undefined,
      revision,
    );
  }

  /** What was suspected to be left out must have been told by now. */
  #decide({ revision, count, listed }: Found): void {
    if (!this.#told.has(listed, { revision, count })) throw this.#gap(revision);
    this.#suspect = undefined;
    this.#told.startFrom(revision, count);
    this.#timer(compareMs);
  }

  /** With what is there now, of which some may still be on its way. */
  async #compare(): Promise<void> {
    if (this.#suspect !== undefined) this.#decide(this.#suspect);
    const { client, signal } = this.#options;
    const since = this.#told.since;
    const { header, count } = await client.ask('Range', { ...this.#range, countOnly: true }, signal);
    const { revision } = header;
    if (since !== undefined) {
      const listed = await this.#changedSince(since, revision);
      // Too far behind to be compared: what is on its way is told first.
      if (listed === undefined) return this.#timer(silenceMs);
      if (!this.#told.has(listed, { revision, count })) {
        this.#suspect = { revision, count, listed };
        return this.#timer(silenceMs);
      }
      this.#quietAfter = revision;
    }
    this.#told.startFrom(revision, count);
    this.#timer(compareMs);
  }

  /** With what was there at the last revision that was told, so that it can be forgotten; all of it must have been told. */
  async #compareTold(): Promise<void> {
    const revision = this.#next - 1;
    const { since } = this.#told;
    const listed = since === undefined ? undefined : await this.#changedSince(since, revision);
    const count = await this.#countAt(revision);
    if (listed !== undefined && count !== undefined && !this.#told.has(listed, { revision, count }))
      throw this.#gap(revision);
    // Where etcd can no longer say, what was told counts; the next comparison sees whether that was all.
    this.#told.startFrom(revision, count ?? this.#told.countAt(revision));
  }

  /** Undefined: too many, or of too long ago. */
  async #changedSince(since: number, revision: number): Promise<readonly KeyValue[] | undefined> {
    if (revision <= since) return [];
    const request = { keysOnly: true, revision, minModRevision: since + 1, limit: 2 * this.#mostTold };
    const found = await this.#rangeAt(request);
    return found === undefined || found.more ? undefined : found.kvs;
  }

  async #countAt(revision: number): Promise<number | undefined> {
    return (await this.#rangeAt({ countOnly: true, revision }))?.count;
  }

  async #rangeAt(request: Omit<RangeRequest, 'key'>): Promise<RangeResponse | undefined> {
    const { client, signal } = this.#options;
    try {
      return await client.ask('Range', { ...this.#range, ...request }, signal);
    } catch (error) {
      if (isTooLong(error) || isRefusal(error, refusals.compacted)) return undefined;
      throw error;
    }
  }
}

/** Where history begins: etcd says so only to a watch from before. To be asked when something was compacted. */
export const compactedRevision = async (
  client: WatchedEtcd,
  { place, signal }: { readonly place: EtcdPlace; readonly signal?: AbortSignal | undefined },
): Promise<number> => {
  const patience = new Patience(client.patienceMs, signal);
  for (;;) {
    let stream: WatchStream | undefined;
    try {
      stream = await client.open('Watch', signal);
      const key = place.full(new Uint8Array(0));
      stream.send({ createRequest: { key, rangeEnd: new Uint8Array(0), startRevision: 1, fragment: true } });
      for (;;) {
        const { canceled, compactRevision, cancelReason } = await stream.next();
        if (canceled && compactRevision > 0) return compactRevision;
        if (canceled) throw new EtcdLost(cancelReason, undefined);
      }
    } catch (error) {
      await patience.after(error, 'nothing was read');
    } finally {
      stream?.close();
    }
  }
};
