/**
 * What happens to VMs, by host: one watch of the region's `vm/` for all hosts of a manager. The newest events are kept, so
 * that a host that comes back goes on from where it was.
 */
import { setTimeout as pause } from 'node:timers/promises';
import * as z from 'zod';
import { keyText, prefixRange, type Store, StoreError, type WatchBatch, type WatchEvent } from '../store/index.ts';

export interface VmFeedOptions {
  readonly region: Store;
  readonly onTrouble: (what: string) => void;
  /** Events that are kept. */
  readonly keeps?: number | undefined;
}

interface Told {
  readonly revision: number;
  readonly event: WatchEvent;
  /** The host that it is assigned to from then on, and the one that it was assigned to. */
  readonly host: string | undefined;
  readonly before: string | undefined;
}

interface Follower {
  readonly host: string;
  readonly batches: WatchBatch[];
  wake: () => void;
  end: StoreError | undefined;
}

const prefix = 'vm/';
const keepsDefault = 8_192;
/** Batches that a host may be behind. */
const mostBehind = 1_024;
const againAfterMs = 500;
const Assigned = z.looseObject({ host: z.string().optional() });

export class VmFeed {
  readonly #region: Store;
  readonly #onTrouble: (what: string) => void;
  readonly #keeps: number;
  readonly #hosts = new Map<string, string | undefined>();
  #told: Told[] = [];
  /** The first revision of which all events are known. */
  #oldest = 0;
  readonly #followers = new Set<Follower>();
  readonly #ready = Promise.withResolvers<void>();

  constructor({ region, onTrouble, keeps = keepsDefault }: VmFeedOptions) {
    this.#region = region;
    this.#onTrouble = onTrouble;
    this.#keeps = keeps;
  }

  /** Until the signal; then who follows hears nothing more. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        this.#oldest = (await this.#list()) + 1;
        this.#told = [];
        this.#endAll();
        this.#ready.resolve();
        for await (const batch of this.#region.watch(prefixRange(prefix), { from: this.#oldest, signal }))
          this.#tell(batch);
      } catch (error) {
        if (signal.aborted) break;
        this.#onTrouble(`following the records of VMs failed, beginning anew: ${(error as Error).message}`);
        await pause(againAfterMs, undefined, { signal }).catch(() => {});
      }
    }
  }

  /** Of VMs that are, or were until then, assigned to a host. STORE_COMPACTED, the signal's reason. */
  async *watch(host: string, from: number, signal: AbortSignal | undefined): AsyncIterableIterator<WatchBatch> {
    await this.#ready.promise;
    signal?.throwIfAborted();
    if (from < this.#oldest) throw compacted(this.#oldest);
    const follower: Follower = { host, batches: [], wake: () => {}, end: undefined };
    for (const told of this.#told) if (told.revision >= from) give(follower, told);
    this.#followers.add(follower);
    const abort = (): void => follower.wake();
    signal?.addEventListener('abort', abort);
    try {
      for (;;) {
        signal?.throwIfAborted();
        const batch = follower.batches.shift();
        if (batch !== undefined) {
          if (batch.revision >= from) yield batch;
          continue;
        }
        if (follower.end !== undefined) throw follower.end;
        const { promise, resolve } = Promise.withResolvers<void>();
        follower.wake = resolve;
        await promise;
      }
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#followers.delete(follower);
    }
  }

  /** The host that a VM is assigned to, as far as is known here. */
  hostOf(name: string): string | undefined {
    return this.#hosts.get(prefix + name);
  }

  async #list(): Promise<number> {
    this.#hosts.clear();
    const range = prefixRange(prefix);
    let revision: number | undefined;
    for (let { start } = range, more = true; more; ) {
      const page = await this.#region.range({ ...range, start }, { revision });
      ({ revision } = page);
      for (const { key, value } of page.entries) this.#hosts.set(keyText(key), hostOf(value));
      more = page.next !== undefined;
      if (page.next !== undefined) start = page.next;
    }
    return revision ?? 0;
  }

  #tell({ revision, events }: WatchBatch): void {
    for (const event of events) {
      const key = keyText(event.type === 'put' ? event.entry.key : event.key);
      const before = this.#hosts.get(key);
      const host = event.type === 'put' ? hostOf(event.entry.value) : undefined;
      if (event.type === 'put') this.#hosts.set(key, host);
      else this.#hosts.delete(key);
      const told = { revision, event, host, before };
      this.#told.push(told);
      for (const follower of this.#followers) give(follower, told);
    }
    if (this.#told.length <= this.#keeps) return;
    // All of a transaction, or nothing of it.
    const from = this.#told[this.#told.length - this.#keeps]!.revision;
    this.#oldest = from;
    this.#told = this.#told.filter((told) => told.revision >= from);
  }

  #endAll(): void {
    for (const follower of this.#followers) {
      follower.end = compacted(this.#oldest);
      follower.wake();
    }
  }
}

const hostOf = (value: Uint8Array): string | undefined =>
  Assigned.safeParse(JSON.parse(new TextDecoder().decode(value))).data?.host;

const give = (follower: Follower, { revision, event, host, before }: Told): void => {
  // It begins anew: what it would be told now would leave out what was before.
  if (follower.end !== undefined) return;
  const isIts = host === follower.host;
  if (!isIts && before !== follower.host) return;
  const shown: WatchEvent =
    isIts || event.type === 'delete'
      ? event
      : { type: 'delete', key: event.entry.key, modRevision: event.entry.modRevision };
  const last = follower.batches.at(-1);
  if (last?.revision === revision)
    follower.batches[follower.batches.length - 1] = { revision, events: [...last.events, shown] };
  else follower.batches.push({ revision, events: [shown] });
  if (follower.batches.length > mostBehind) {
    follower.end = compacted(revision);
    follower.batches.length = 0;
  }
  follower.wake();
};

const compacted = (oldest: number): StoreError =>
  new StoreError('STORE_COMPACTED', 'what happened since is not known any more; list anew', undefined, oldest);
