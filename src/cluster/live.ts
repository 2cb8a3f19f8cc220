/** All VMs and operations that someone may see, as they are and as they change: what a console shows. */
import { OperationRecord, VmRecord } from '../records/index.ts';
import { type KeyRange, keyText, prefixRange, type WatchEvent } from '../store/index.ts';
import { type Identity, mayTouch } from './identity.ts';
import { type Kit, knownOf } from './kit.ts';
import { isFinished, type Operations, operationPrefix } from './operations.ts';
import { ApiError } from './problem.ts';
import { statusKey, type Vm, type Vms, vmKey } from './vms.ts';

export interface LiveNews {
  readonly vms: readonly Vm[];
  /** Names. */
  readonly gone: readonly string[];
  readonly operations: readonly OperationRecord[];
}

export interface LiveEvent {
  readonly event: 'begin' | 'entries' | 'ready' | 'changes';
  readonly id?: string;
  readonly news?: LiveNews;
}

const inEvent = 200;
const vmPrefix = vmKey('');
const statusPrefix = statusKey('');
/** From the records of VMs to their statuses; a few other keys lie between. */
const vmRange: KeyRange = { start: prefixRange(vmPrefix).start, end: prefixRange(statusPrefix).end };

/** How far each of the two watches is, in one epoch. */
interface Place {
  vms: number;
  operations: number;
}

/** What changed and has not been told: each once, however often it changed. */
interface Pending {
  readonly names: Set<string>;
  readonly operations: Map<string, OperationRecord>;
}

export class Live {
  readonly #kit: Kit;
  readonly #vms: Vms;
  readonly #operations: Operations;

  constructor(kit: Kit, vms: Vms, operations: Operations) {
    this.#kit = kit;
    this.#vms = vms;
    this.#operations = operations;
  }

  /** From the event `last` on, or from what there is. COMPACTED, BAD_REQUEST. */
  async follow(who: Identity, last: string | undefined, signal: AbortSignal): Promise<AsyncIterable<LiveEvent>> {
    const { region } = this.#kit;
    if (last === undefined) {
      const revision = await region.revision();
      return this.#events(who, { vms: revision, operations: revision }, undefined, signal);
    }
    const [, epoch, vms, operations] = /^(\d{1,10})\.(\d{1,15})\.(\d{1,15})$/.exec(last) ?? [];
    if (epoch === undefined) throw new ApiError('BAD_REQUEST', 'the Last-Event-ID is none of this stream');
    if (Number(epoch) !== region.epoch)
      throw new ApiError('COMPACTED', 'the store was restored from a backup since; start anew');
    const place = { vms: Number(vms), operations: Number(operations) };
    return this.#events(who, place, await this.#namesAt(who, place.vms), signal);
  }

  /** `known`: names that were told before, which someone may hear the end of; undefined: nothing was told. */
  async *#events(
    who: Identity,
    place: Place,
    known: Set<string> | undefined,
    signal: AbortSignal,
  ): AsyncGenerator<LiveEvent> {
    const ended = new AbortController();
    const all = AbortSignal.any([signal, ended.signal]);
    const names = known ?? new Set<string>();
    const pending: Pending = { names: new Set(), operations: new Map() };
    let wake = Promise.withResolvers<void>();
    const pump = async (range: KeyRange, part: keyof Place, take: (event: WatchEvent) => void): Promise<void> => {
      for await (const { revision, events } of this.#kit.region.watch(range, { from: place[part] + 1, signal: all })) {
        for (const event of events) take(event);
        place[part] = revision;
        wake.resolve();
      }
    };
    try {
      if (known === undefined) yield* this.#snapshot(who, names, place);
      const failed = Promise.withResolvers<never>();
      failed.promise.catch(() => {});
      for (const pumping of [
        pump(vmRange, 'vms', (event) => this.#takeVm(pending, event)),
        pump(prefixRange(operationPrefix), 'operations', (event) => this.#takeOperation(who, pending, event)),
      ])
        pumping.catch(failed.reject);
      for (;;) {
        await Promise.race([wake.promise, failed.promise]);
        wake = Promise.withResolvers();
        const id = this.#id(place);
        const changed = [...pending.names];
        const operations = [...pending.operations.values()];
        pending.names.clear();
        pending.operations.clear();
        for (let i = 0; i < Math.max(changed.length, operations.length); i += inEvent) {
          const news = await this.#newsOf(who, names, changed.slice(i, i + inEvent));
          const isLast = i + inEvent >= Math.max(changed.length, operations.length);
          const some = operations.slice(i, i + inEvent);
          if (news.vms.length + news.gone.length + some.length > 0 || isLast)
            yield { event: 'changes', ...(isLast && { id }), news: { ...news, operations: some } };
        }
      }
    } finally {
      ended.abort();
    }
  }

  async *#snapshot(who: Identity, names: Set<string>, place: Place): AsyncGenerator<LiveEvent> {
    yield { event: 'begin' };
    const filters = { status: undefined, labels: [], type: undefined, namePrefix: '', only: who.vms };
    let cursor: string | undefined;
    do {
      const page = await this.#vms.list(who.account, filters, { limit: inEvent, cursor });
      for (const { record } of page.vms) names.add(record.name);
      if (page.vms.length > 0) yield { event: 'entries', news: { vms: page.vms, gone: [], operations: [] } };
      cursor = page.next;
    } while (cursor !== undefined);
    do {
      const page = await this.#operations.list(who, { limit: inEvent, cursor });
      const operations = page.operations.filter((operation) => !isFinished(operation));
      if (operations.length > 0) yield { event: 'entries', news: { vms: [], gone: [], operations } };
      cursor = page.next;
    } while (cursor !== undefined);
    yield { event: 'ready', id: this.#id(place) };
  }

  #id({ vms, operations }: Place): string {
    return `${this.#kit.region.epoch}.${vms}.${operations}`;
  }

  #takeVm({ names }: Pending, event: WatchEvent): void {
    const key = keyText(event.type === 'put' ? event.entry.key : event.key);
    for (const prefix of [vmPrefix, statusPrefix]) if (key.startsWith(prefix)) names.add(key.slice(prefix.length));
  }

  #takeOperation(who: Identity, { operations }: Pending, event: WatchEvent): void {
    if (event.type === 'delete') return;
    for (const { record } of knownOf(this.#kit, OperationRecord, [event.entry]))
      if (this.#operations.sees(who, record)) operations.set(record.id, record);
  }

  async #newsOf(who: Identity, known: Set<string>, names: readonly string[]): Promise<Omit<LiveNews, 'operations'>> {
    const found = await Promise.all(names.map((name) => this.#find(who, name)));
    const vms = found.filter((vm) => vm !== undefined);
    for (const { record } of vms) known.add(record.name);
    const gone = names.filter((name, i) => found[i] === undefined && known.delete(name));
    return { vms, gone };
  }

  async #find(who: Identity, name: string): Promise<Vm | undefined> {
    if (!mayTouch(who, name)) return undefined;
    try {
      return await this.#vms.get(who.account, name);
    } catch (error) {
      if (error instanceof ApiError && error.code === 'VM_NOT_FOUND') return undefined;
      throw error;
    }
  }

  /** Whoever goes on may hear of the end of those VMs that were theirs then. */
  async #namesAt(who: Identity, revision: number): Promise<Set<string>> {
    const { region } = this.#kit;
    const { start, end } = prefixRange(vmPrefix);
    const names = new Set<string>();
    for (let from: string | Uint8Array | undefined = start; from !== undefined; ) {
      const page = await region.range({ start: from, end }, { revision });
      for (const { record } of knownOf(this.#kit, VmRecord, page.entries))
        if (record.account === who.account && mayTouch(who, record.name)) names.add(record.name);
      from = page.next;
    }
    return names;
  }
}
