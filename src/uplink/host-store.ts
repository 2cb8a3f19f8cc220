/**
 * The region's store as one host may see and change it: the one place where that is decided. What no row names is denied.
 *
 * A VM is a host's while `hostvm/HOST/VM` is there. Every change of what is a VM's has that as a condition, so that a host
 * that a VM was taken from can write nothing of it any more, however late its request comes.
 */
import { Buffer } from 'node:buffer';
import {
  decodeRecord,
  diskExportPrefix,
  HostVmRecord,
  hostLeftPrefix,
  hostVmKey,
  hostVmPrefix,
} from '../records/index.ts';
import {
  type CallOptions,
  compareKeys,
  type Entry,
  type Key,
  type KeyRange,
  keyBytes,
  keyText,
  type Lease,
  type Outcome,
  type Page,
  prefixRange,
  type RangeOptions,
  type Store,
  StoreError,
  type StorePlace,
  type Transaction,
  type WatchBatch,
  type WatchOptions,
} from '../store/index.ts';
import { markPrefix } from './store-service.ts';
import type { VmFeed } from './vm-feed.ts';

type Access = 'read' | 'put' | 'delete';

interface Row {
  readonly prefix: string;
  /** Whose it is: of the VM that the next part of the key names, or has as its id; or of the host itself. */
  readonly of: 'vm' | 'vm id' | 'host';
  readonly may: readonly Access[];
  /** Keys lie below the VM's, and may be listed. */
  readonly below: boolean;
}

const all = ['read', 'put', 'delete'] as const;

/** What a host may do, to keys that are its own or of VMs that are assigned to it. */
export const hostRows = (host: string): readonly Row[] => [
  { prefix: 'vm/', of: 'vm', may: ['read'], below: false },
  { prefix: 'seed/', of: 'vm', may: ['read', 'delete'], below: false },
  { prefix: 'vmstatus/', of: 'vm', may: all, below: false },
  { prefix: 'machine/', of: 'vm', may: all, below: false },
  { prefix: 'token/', of: 'vm', may: all, below: false },
  { prefix: 'domainrun/', of: 'vm', may: all, below: false },
  { prefix: diskExportPrefix, of: 'vm', may: ['read'], below: false },
  { prefix: 'boot/', of: 'vm', may: all, below: true },
  { prefix: 'tree/', of: 'vm id', may: all, below: true },
  { prefix: hostLeftPrefix(host), of: 'host', may: ['read', 'delete'], below: true },
  { prefix: markPrefix(host), of: 'host', may: ['read', 'put'], below: true },
];

const vmPrefix = 'vm/';
/** Records that are read one by one. */
const mostListed = 100;

/** Where a key or a range belongs. */
interface Place {
  readonly row: Row;
  /** Name or id; '' of what is the host's own. */
  readonly whose: string;
  /** All keys that are as much its as this one. */
  readonly unit: string;
}

interface Assigned {
  readonly name: string;
  readonly id: string;
  readonly createRevision: number;
  readonly modRevision: number;
}

export class HostStore implements Store {
  readonly name: string;
  readonly #region: Store;
  readonly #host: string;
  readonly #feed: Pick<VmFeed, 'watch'>;
  readonly #rows: readonly Row[];
  /** VMs that were assigned to it when they were last asked for, by name and by id. */
  readonly #byName = new Map<string, Assigned>();
  readonly #byId = new Map<string, string>();

  constructor({ region, host, feed }: { region: Store; host: string; feed: Pick<VmFeed, 'watch'> }) {
    this.name = region.name;
    this.#region = region;
    this.#host = host;
    this.#feed = feed;
    this.#rows = hostRows(host);
  }

  get place(): StorePlace {
    return this.#region.place;
  }

  get epoch(): number {
    return this.#region.epoch;
  }

  async commit({ conditions = [], operations }: Transaction, options?: CallOptions): Promise<Outcome> {
    const places: Place[] = [];
    const see = (key: Key, access: Access): void => {
      const place = this.#placeOf(keyText(keyBytes(key)), access);
      if (place === undefined) throw this.#denied();
      if (place.row.of !== 'host') places.push(place);
    };
    for (const { key } of conditions) see(key, 'read');
    for (const operation of operations) {
      see(operation.key, operation.type);
      if (operation.type === 'put' && operation.leaseId !== undefined) throw this.#denied();
    }
    for (let isKnown = true; ; isKnown = false) {
      const assigned = await this.#assigned(places, isKnown);
      const guard = assigned && { key: hostVmKey(this.#host, assigned.name), modRevision: assigned.modRevision };
      const outcome = await this.#region.commit(
        { conditions: [...conditions, ...(guard ? [guard] : [])], operations },
        options,
      );
      if (outcome.committed || !outcome.unmet.includes(conditions.length)) return outcome;
      // It was taken from this host, and perhaps given to it again.
      if (!isKnown) throw this.#denied();
    }
  }

  /** The one VM that all of it is about; undefined: it is about none. STORE_DENIED: it is not the host's. */
  async #assigned(places: readonly Place[], isKnown: boolean): Promise<Assigned | undefined> {
    const [first] = places;
    if (first === undefined) return undefined;
    const name = await this.#nameOf(first);
    const assigned = (isKnown ? this.#byName.get(name) : undefined) ?? (await this.#look(name));
    if (assigned === undefined || !places.every((place) => isOf(place, assigned))) throw this.#denied();
    return assigned;
  }

  async get(key: Key, options?: RangeOptions): Promise<Entry | undefined> {
    const place = this.#placeOf(keyText(keyBytes(key)), 'read');
    if (place === undefined) throw this.#denied();
    if (place.row.prefix !== vmPrefix) await this.#mustBeIts(place, options);
    else {
      const assigned = await this.#look(place.whose);
      if (assigned === undefined || !isSince(assigned, options)) return undefined;
    }
    return this.#region.get(key, options);
  }

  async range(range: KeyRange, options: RangeOptions = {}): Promise<Page> {
    if (isWithin(range, prefixRange(vmPrefix))) return this.#listVms(range, options);
    await this.#mustBeIts(this.#placeOfRange(range), options);
    return this.#region.range(range, options);
  }

  async count(range: KeyRange, options?: RangeOptions): Promise<{ readonly revision: number; readonly count: number }> {
    await this.#mustBeIts(this.#placeOfRange(range), options);
    return this.#region.count(range, options);
  }

  async *watch(range: KeyRange, { from, signal }: WatchOptions): AsyncIterableIterator<WatchBatch> {
    const { start, end } = prefixRange(vmPrefix);
    if (compareKeys(keyBytes(range.start), keyBytes(start)) !== 0 || range.end === undefined) throw this.#denied();
    if (compareKeys(keyBytes(range.end), keyBytes(end!)) !== 0) throw this.#denied();
    yield* this.#feed.watch(this.#host, from, signal);
  }

  revision(options?: CallOptions): Promise<number> {
    return this.#region.revision(options);
  }

  async grantLease(): Promise<Lease> {
    throw this.#denied();
  }

  async keepAlive(): Promise<void> {
    throw this.#denied();
  }

  async revokeLease(): Promise<void> {
    throw this.#denied();
  }

  async compact(): Promise<void> {
    throw this.#denied();
  }

  // --- whose it is ---

  #placeOf(key: string, access: Access): Place | undefined {
    for (const row of this.#rows) {
      if (!key.startsWith(row.prefix) || !row.may.includes(access)) continue;
      const rest = key.slice(row.prefix.length);
      if (row.of === 'host') return { row, whose: '', unit: row.prefix };
      const slash = rest.indexOf('/');
      if (row.below !== slash >= 0) continue;
      const whose = row.below ? rest.slice(0, slash) : rest;
      if (whose !== '') return { row, whose, unit: `${row.prefix}${whose}${row.below ? '/' : ''}` };
    }
    return undefined;
  }

  #placeOfRange(range: KeyRange): Place {
    const place = this.#placeOf(keyText(keyBytes(range.start)), 'read');
    if (place === undefined || !place.row.below || !isWithin(range, prefixRange(place.unit))) throw this.#denied();
    return place;
  }

  /** Also at the revision that is asked for: before, another VM may have had its name. */
  async #mustBeIts(place: Place, options: RangeOptions | undefined): Promise<void> {
    const assigned = place.row.of === 'host' ? undefined : await this.#assigned([place], false);
    if (assigned !== undefined && !isSince(assigned, options)) throw this.#denied();
  }

  async #nameOf({ row, whose }: Place): Promise<string> {
    if (row.of === 'vm') return whose;
    if (!this.#byId.has(whose)) await this.#lookAtAll();
    const name = this.#byId.get(whose);
    if (name === undefined) throw this.#denied();
    return name;
  }

  /** Asks the store, whatever was known. */
  async #look(name: string): Promise<Assigned | undefined> {
    const entry = await this.#region.get(hostVmKey(this.#host, name));
    if (entry === undefined) {
      this.#byName.delete(name);
      return undefined;
    }
    return this.#learn(name, entry);
  }

  #learn(name: string, { key, value, createRevision, modRevision }: Entry): Assigned {
    const { id } = decodeRecord(HostVmRecord, keyText(key), value);
    const assigned = { name, id, createRevision, modRevision };
    this.#byName.set(name, assigned);
    this.#byId.set(id, name);
    return assigned;
  }

  async #lookAtAll(): Promise<void> {
    this.#byId.clear();
    const prefix = hostVmPrefix(this.#host);
    const range = prefixRange(prefix);
    for (let start: Key | undefined = range.start; start !== undefined; ) {
      const page: Page = await this.#region.range({ ...range, start });
      for (const entry of page.entries) this.#learn(keyText(entry.key).slice(prefix.length), entry);
      start = page.next;
    }
  }

  async #listVms(range: KeyRange, { revision, limit = mostListed, signal }: RangeOptions): Promise<Page> {
    const prefix = hostVmPrefix(this.#host);
    const moved = (key: Key): Uint8Array => movedKey(keyBytes(key), vmPrefix, prefix);
    const { end } = prefixRange(vmPrefix);
    const isToEnd = compareKeys(keyBytes(range.end!), keyBytes(end!)) === 0;
    const page = await this.#region.range(
      { start: moved(range.start), end: isToEnd ? prefixRange(prefix).end : moved(range.end!) },
      { revision, limit: Math.min(limit, mostListed), signal },
    );
    const at = { revision: page.revision, signal };
    const found = await Promise.all(
      page.entries.map(({ key }) => this.#region.get(movedKey(key, prefix, vmPrefix), at)),
    );
    return {
      revision: page.revision,
      entries: found.filter((entry) => entry !== undefined),
      next: page.next && movedKey(page.next, prefix, vmPrefix),
    };
  }

  #denied(): StoreError {
    return new StoreError('STORE_DENIED', `that is not assigned to host "${this.#host}"`);
  }
}

const isSince = ({ createRevision }: Assigned, { revision = createRevision }: RangeOptions = {}): boolean =>
  revision >= createRevision;

const isOf = ({ row, whose }: Place, { name, id }: Assigned): boolean => whose === (row.of === 'vm' ? name : id);

const isWithin = ({ start, end }: KeyRange, unit: KeyRange): boolean =>
  end !== undefined &&
  compareKeys(keyBytes(start), keyBytes(unit.start)) >= 0 &&
  compareKeys(keyBytes(end), keyBytes(unit.end!)) <= 0;

const movedKey = (key: Uint8Array, from: string, to: string): Uint8Array =>
  keyBytes(Buffer.concat([Buffer.from(to), key.subarray(from.length)]));
