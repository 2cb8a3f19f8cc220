/**
 * Hosts of the region: their records, and where VMs are placed. A VM takes its part of a host in the transaction that makes
 * it, under a condition on the host's record and on what is taken of it (`hostuse/`), so that no two managers overcommit a
 * host, whenever either of them dies. What is held in memory only says which host to try first.
 */
import { createHash } from 'node:crypto';
import type { z } from 'zod';
import {
  HostLeaseRecord,
  HostLiveRecord,
  HostRecord,
  HostUseRecord,
  hostKey,
  hostLeaseKey,
  hostLeasePrefix,
  hostLeftPrefix,
  hostLiveKey,
  hostLostKey,
  hostUidKey,
  hostUidPrefix,
  hostUseKey,
  hostVmKey,
  hostVmPrefix,
  ownHost,
  type Resources,
  type VmRecord,
} from '../records/index.ts';
import { type Condition, keyText, type Operation, prefixRange, type Transaction } from '../store/index.ts';
import { follow } from './follow.ts';
import { entriesOf, getRecord, type Kit, kept, pause, put, remove, unchanged } from './kit.ts';
import { type Candidate, type Need, nothingUsed, plus, ranked, reasonOf, refusalOf } from './placement.ts';
import { ApiError } from './problem.ts';

/** What a VM's transaction must have in it to be placed. */
export interface Seat {
  readonly host: string;
  readonly uid: number | undefined;
  readonly conditions: readonly Condition[];
  readonly operations: readonly Operation[];
  /** Keys for `VmRecord.holds`. */
  readonly holds: readonly string[];
}

export interface PlacedVm {
  readonly account: string;
  readonly id: string;
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
}

export interface HostFacts {
  readonly record: HostRecord;
  readonly use: HostUseRecord;
  readonly isLive: boolean;
  /** Undefined while it is not connected. */
  readonly live: HostLiveRecord | undefined;
}

/** Tries of a placement that others overtook, and how long to wait between two at most. */
const tries = 200;
const longestPauseMs = 50;
/** One in so many hosts is as good as the best to spread on. */
const alikeOf = 16;

/** How many marks go in one transaction, with what else removes a host. */
const marksAtOnce = 80;

const hostPrefix = 'host/';
const usePrefix = 'hostuse/';
const livePrefix = 'hostlive/';

export class Hosts {
  readonly #kit: Kit;
  /** The host in this process, which is connected as long as this runs. */
  readonly #own: string | undefined;
  readonly #hosts = new Map<string, HostRecord>();
  readonly #uses = new Map<string, HostUseRecord>();
  readonly #live = new Map<string, HostLiveRecord>();
  readonly #leases = new Map<string, HostLeaseRecord>();
  /** What is under way to each, so that creations at once spread as well. */
  readonly #coming = new Map<string, HostUseRecord>();
  /** One transaction of this manager at a time on each host: they would overtake each other. */
  readonly #turns = new Map<string, Promise<unknown>>();
  #reload: Promise<void> | undefined;

  constructor(kit: Kit, own: string | undefined) {
    this.#kit = kit;
    this.#own = own;
  }

  /** Until the signal: follows hosts and what is taken of them. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const parts = [
      [hostPrefix, HostRecord, this.#hosts],
      [usePrefix, HostUseRecord, this.#uses],
      [livePrefix, HostLiveRecord, this.#live],
      [hostLeasePrefix, HostLeaseRecord, this.#leases],
    ] as const;
    await Promise.all(
      parts.map(([prefix, schema, held]) => {
        const map = held as Map<string, unknown>;
        const nameOf = (key: string): string => key.slice(prefix.length);
        return follow(
          this.#kit,
          { store: this.#kit.region, prefix, schema, signal },
          {
            all: (records) => {
              map.clear();
              for (const { key, record } of records) map.set(nameOf(key), record);
            },
            put: ({ key, record }) => void map.set(nameOf(key), record),
            removed: (key) => void map.delete(nameOf(key)),
          },
        );
      }),
    );
  }

  /** Puts the host of this process into the store, as it is now. */
  async register(record: Pick<HostRecord, 'name' | 'capacity' | 'uids'>): Promise<void> {
    const key = hostKey(record.name);
    for (;;) {
      const before = await getRecord(this.#kit.region, HostRecord, key);
      const now: HostRecord = {
        ...(before?.record ?? this.#newRecord(record.name)),
        capacity: record.capacity,
        uids: record.uids,
      };
      if (before !== undefined && JSON.stringify(before.record) === JSON.stringify(now)) break;
      const conditions = [before === undefined ? { key, exists: false } : { key, modRevision: before.modRevision }];
      if ((await this.#kit.region.commit({ conditions, operations: [put(key, now)] })).committed) break;
    }
    await this.#refresh();
  }

  #newRecord(name: string): HostRecord {
    const id = `h-${this.#kit.randomBytes(8).toString('hex')}`;
    return { name, id, labels: {}, cordoned: false, draining: false, addedAtMs: this.#kit.wallMs() };
  }

  async list(): Promise<HostFacts[]> {
    await this.#refresh();
    return [...this.#hosts.values()].map((record) => this.#factsOf(record));
  }

  /** NOT_FOUND. */
  async get(name: string): Promise<HostFacts> {
    await this.#refresh();
    const record = this.#hosts.get(name);
    if (record === undefined) throw noHost(name);
    return this.#factsOf(record);
  }

  #factsOf(record: HostRecord): HostFacts {
    const live = this.#live.get(record.name);
    return { record, use: this.#uses.get(record.name) ?? nothingUsed, isLive: this.#isLive(record), live };
  }

  /** Also when its lease was left by a host that had the name before. */
  #isLive({ name, id }: HostRecord): boolean {
    return name === this.#own || this.#live.get(name)?.id === id;
  }

  /** What a transaction needs to change a host's record. NOT_FOUND. */
  async change(
    name: string,
    change: Partial<Pick<HostRecord, 'cordoned' | 'draining' | 'labels'>>,
  ): Promise<{ readonly condition: Condition; readonly operation: Operation; readonly facts: HostFacts }> {
    const found = await getRecord(this.#kit.region, HostRecord, hostKey(name));
    if (found === undefined) throw noHost(name);
    const record: HostRecord = { ...found.record, ...change };
    const { use, isLive, live } = await this.get(name);
    return {
      condition: { key: found.key, modRevision: found.modRevision },
      operation: put(found.key, record),
      facts: { record, use, isLive, live },
    };
  }

  /**
   * Has `commit` remove a host that has no VMs, and what it was still to delete of VMs that left it. The record goes under a
   * condition, so nothing is placed there meanwhile. False: something was changed meanwhile.
   */
  async remove(name: string, commit: (removal: Required<Transaction>) => Promise<boolean>): Promise<boolean> {
    const { region } = this.#kit;
    const [found, use] = await Promise.all([
      getRecord(region, HostRecord, hostKey(name)),
      getRecord(region, HostUseRecord, hostUseKey(name)),
    ]);
    if (found === undefined) throw noHost(name);
    if (name === this.#own) throw new ApiError('WRONG_STATE', `the host "${name}" is the one that answers you`);
    if ((use?.record.vms ?? 0) > 0)
      throw new ApiError(
        'IN_USE',
        `the host "${name}" has ${use!.record.vms} VMs; cordon it, delete them, then remove it`,
      );
    const conditions = [{ key: found.key, modRevision: found.modRevision }, unchanged(hostUseKey(name), use)];
    const own = [hostKey, hostUseKey, hostLiveKey, hostLostKey].map((key) => remove(key(name)));
    const left = (await entriesOf(region, hostLeftPrefix(name))).entries.map(({ key }) => remove(keyText(key)));
    // What more than one transaction holds goes before the record.
    while (left.length > marksAtOnce) {
      const operations = left.splice(0, marksAtOnce);
      if (!(await region.commit({ conditions, operations })).committed) return false;
    }
    return commit({ conditions, operations: [...own, ...left] });
  }

  /** Names of the VMs that are assigned to it, in order. */
  async vmsOf(name: string, limit: number): Promise<string[]> {
    const prefix = hostVmPrefix(name);
    const { entries } = await this.#kit.region.range(prefixRange(prefix), { limit });
    return entries.map(({ key }) => keyText(key).slice(prefix.length));
  }

  /**
   * Finds a seat for a VM and has `attempt` commit the transaction that takes it; where that says false, looks again. What it
   * throws, and NO_HOST, ends it.
   */
  async place(vm: PlacedVm, need: Need, attempt: (seat: Seat) => Promise<boolean>): Promise<void> {
    const group = apartGroup(vm, need);
    let isFresh = false;
    for (let i = 0; i < tries; i++) {
      const taken = group === undefined ? new Set<string>() : await this.#takenBy(group);
      const best = this.#choose(need, taken, i);
      if (best === undefined) {
        if (isFresh) throw this.#noneFits(vm, need, taken);
        await this.#refresh();
        isFresh = true;
        continue;
      }
      isFresh = false;
      const done = await this.#inTurn(best, need, () => this.#try(best, vm, need, group, attempt));
      if (done) return;
      if (i > 0) await pause(Math.random() * Math.min(longestPauseMs, 2 ** i));
    }
    throw new ApiError('CONFLICT', `the VM "${vm.name}" was overtaken by others all the time; try again`, {
      retryAfterSeconds: 1,
    });
  }

  /**
   * The best one; after others were faster there, one of the best few. Of many hosts on which to spread it is one of the best
   * few from the start, or all managers would meet on the same.
   */
  #choose(need: Need, taken: ReadonlySet<string>, tried: number): string | undefined {
    let best = ranked(this.#candidates(taken, true), need);
    // What is under way may fail: then there is room after all.
    if (best.length === 0) best = ranked(this.#candidates(taken, false), need);
    const few = need.placement.strategy === 'spread' ? Math.floor(best.length / alikeOf) : 1;
    const among = Math.min(best.length, Math.max(few, 2 ** Math.min(tried, 20)));
    return best[Math.floor(Math.random() * among)]?.host.name;
  }

  *#candidates(taken: ReadonlySet<string>, withComing: boolean): Generator<Candidate> {
    for (const host of this.#hosts.values()) {
      const use = this.#uses.get(host.name) ?? nothingUsed;
      const coming = withComing ? this.#coming.get(host.name) : undefined;
      yield {
        host,
        use: coming === undefined ? use : { ...plus(use, coming, 1), vms: use.vms + coming.vms },
        isLive: this.#isLive(host),
        isLeased: this.#leases.get(host.name)?.host === host.id,
        isTaken: taken.has(host.name),
      };
    }
  }

  async #try(
    name: string,
    vm: PlacedVm,
    need: Need,
    group: string | undefined,
    attempt: (seat: Seat) => Promise<boolean>,
  ): Promise<boolean> {
    const { region } = this.#kit;
    const [host, use, live, lease] = await Promise.all([
      getRecord(region, HostRecord, hostKey(name)),
      getRecord(region, HostUseRecord, hostUseKey(name)),
      getRecord(region, HostLiveRecord, hostLiveKey(name)),
      getRecord(region, HostLeaseRecord, hostLeaseKey(name)),
    ]);
    holdIn(this.#hosts, name, host?.record);
    holdIn(this.#uses, name, use?.record);
    holdIn(this.#live, name, live?.record);
    holdIn(this.#leases, name, lease?.record);
    if (host === undefined) return false;
    const candidate = {
      host: host.record,
      use: use?.record ?? nothingUsed,
      isLive: this.#isLive(host.record),
      isLeased: lease?.record.host === host.record.id,
      isTaken: false,
    };
    if (refusalOf(candidate, need) !== undefined) return false;
    const uid = await this.#freeUid(host.record);
    const apartKey = group === undefined ? undefined : `${group}${name}`;
    const after = plus(candidate.use, need.takes, 1);
    const placed = await attempt({
      host: name,
      uid,
      conditions: [
        { key: host.key, modRevision: host.modRevision },
        unchanged(hostUseKey(name), use),
        ...(live === undefined || name === this.#own ? [] : [{ key: live.key, exists: true }]),
        ...(need.mayGoElsewhere && lease !== undefined ? [{ key: lease.key, exists: true }] : []),
        ...(apartKey === undefined ? [] : [{ key: apartKey, exists: false }]),
        ...(uid === undefined ? [] : [{ key: hostUidKey(name, uid), exists: false }]),
      ],
      operations: [
        put(hostUseKey(name), after),
        put(hostVmKey(name, vm.name), { id: vm.id }),
        ...(apartKey === undefined ? [] : [put(apartKey, { vm: vm.name })]),
        ...(uid === undefined ? [] : [put(hostUidKey(name, uid), { vm: vm.name })]),
      ],
      holds: apartKey === undefined ? [] : [apartKey],
    });
    if (placed) this.#uses.set(name, after);
    return placed;
  }

  /**
   * Commits the transaction in which a VM goes, with what gives back its part of the host. False: something of it was changed
   * meanwhile.
   */
  async release(
    { host, takes, uid, name, holds }: VmRecord,
    commit: (freeing: { conditions: Condition[]; operations: Operation[] }) => Promise<boolean>,
  ): Promise<boolean> {
    const freed = [...(holds ?? []), ...(uid === undefined ? [] : [hostUidKey(host ?? ownHost, uid)])].map(remove);
    if (host === undefined || takes === undefined) return commit({ conditions: [], operations: freed });
    return this.#alone(host, async () => {
      const use = await getRecord(this.#kit.region, HostUseRecord, hostUseKey(host));
      const after = use && plus(use.record, takes, -1);
      const done = await commit({
        conditions: [unchanged(hostUseKey(host), use)],
        operations: [
          ...freed,
          remove(hostVmKey(host, name)),
          ...(after === undefined ? [] : [put(hostUseKey(host), after)]),
        ],
      });
      if (done && after !== undefined) this.#uses.set(host, after);
      return done;
    });
  }

  /**
   * Finds another host for a VM: `attempt` commits what takes a seat there and gives back the one that it leaves, as `place` has
   * it. What it throws, and NO_HOST, ends it.
   */
  async move(vm: VmRecord, attempt: (seat: Seat) => Promise<boolean>): Promise<void> {
    const { host: leaves = ownHost, takes = nothingUsed, uid, holds = [] } = vm;
    const need = needOf(vm);
    const isOfHost = (key: string): boolean => key.startsWith('apart/');
    await this.place(vm, need, async (seat) => {
      const use = await getRecord(this.#kit.region, HostUseRecord, hostUseKey(leaves));
      return attempt({
        ...seat,
        conditions: [...seat.conditions, unchanged(hostUseKey(leaves), use)],
        operations: [
          ...seat.operations,
          ...(use === undefined ? [] : [put(hostUseKey(leaves), plus(use.record, takes, -1))]),
          ...holds.filter(isOfHost).map(remove),
          ...(uid === undefined ? [] : [remove(hostUidKey(leaves, uid))]),
          remove(hostVmKey(leaves, vm.name)),
        ],
        holds: [...holds.filter((key) => !isOfHost(key)), ...seat.holds],
      });
    });
  }

  /** NO_HOST, as far as is known at present. */
  async mustFitElsewhere(vm: VmRecord): Promise<void> {
    const need = needOf(vm);
    await this.#refresh();
    const group = apartGroup(vm, need);
    const taken = group === undefined ? new Set<string>() : await this.#takenBy(group);
    if (this.#choose(need, taken, 0) === undefined) throw this.#noneFits(vm, need, taken);
  }

  #noneFits({ name }: Pick<PlacedVm, 'name'>, need: Need, taken: ReadonlySet<string>): ApiError {
    return new ApiError('NO_HOST', `no host fits "${name}": ${reasonOf(this.#candidates(taken, false), need)}`);
  }

  /** Those that have VMs, and no lease any more. */
  notHeardOf(): string[] {
    return [...this.#hosts.values()]
      .filter(({ name, leases }) => leases && !this.#leases.has(name) && (this.#uses.get(name)?.vms ?? 0) > 0)
      .map(({ name }) => name);
  }

  /** Has `commit` assign a VM of before there were hosts to one, whatever room it has. False: overtaken. */
  async assign(
    host: string,
    vm: Pick<PlacedVm, 'id' | 'name'>,
    takes: Resources,
    commit: (seat: Pick<Seat, 'conditions' | 'operations'>) => Promise<boolean>,
  ): Promise<boolean> {
    return this.#alone(host, async () => {
      const use = await getRecord(this.#kit.region, HostUseRecord, hostUseKey(host));
      return commit({
        conditions: [unchanged(hostUseKey(host), use)],
        operations: [
          put(hostUseKey(host), plus(use?.record ?? nothingUsed, takes, 1)),
          put(hostVmKey(host, vm.name), { id: vm.id }),
        ],
      });
    });
  }

  /** All as it stands in the store: at the beginning, and before it is said that nothing fits. */
  async #refresh(): Promise<void> {
    // One that began before this call may have missed what was committed before it.
    const before = this.#reload;
    if (before !== undefined) await before.catch(() => {});
    this.#reload ??= this.#load().finally(() => {
      this.#reload = undefined;
    });
    return this.#reload;
  }

  async #load(): Promise<void> {
    const { region } = this.#kit;
    const fill = async <S extends z.ZodType>(
      map: Map<string, z.infer<S>>,
      schema: S,
      prefix: string,
    ): Promise<void> => {
      const { entries } = await entriesOf(region, prefix);
      map.clear();
      for (const { key, record } of entries.map((entry) => kept(schema, entry)))
        map.set(key.slice(prefix.length), record);
    };
    await Promise.all([
      fill(this.#hosts, HostRecord, hostPrefix),
      fill(this.#uses, HostUseRecord, usePrefix),
      fill(this.#live, HostLiveRecord, livePrefix),
      fill(this.#leases, HostLeaseRecord, hostLeasePrefix),
    ]);
  }

  async #inTurn(host: string, { takes }: Need, run: () => Promise<boolean>): Promise<boolean> {
    const count = (sign: 1 | -1): void => {
      const coming = plus(this.#coming.get(host) ?? nothingUsed, takes, sign);
      if (coming.vms === 0) this.#coming.delete(host);
      else this.#coming.set(host, coming);
    };
    count(1);
    try {
      return await this.#alone(host, run);
    } finally {
      count(-1);
    }
  }

  #alone<T>(host: string, run: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(host) ?? Promise.resolve();
    const turn = before.then(run, run);
    const settled = turn.catch(() => {});
    this.#turns.set(host, settled);
    void settled.finally(() => {
      if (this.#turns.get(host) === settled) this.#turns.delete(host);
    });
    return turn;
  }

  async #takenBy(group: string): Promise<Set<string>> {
    const { entries } = await entriesOf(this.#kit.region, group);
    return new Set(entries.map(({ key }) => keyText(key).slice(group.length)));
  }

  async #freeUid({ name, uids }: HostRecord): Promise<number | undefined> {
    if (uids === undefined) return undefined;
    const prefix = hostUidPrefix(name);
    const { entries } = await entriesOf(this.#kit.region, prefix);
    const taken = new Set(entries.map(({ key }) => Number(keyText(key).slice(prefix.length))));
    for (let uid = uids.first; uid < uids.first + uids.count; uid++) if (!taken.has(uid)) return uid;
    throw new ApiError('FULL', `all ${uids.count} uids of this host are given to VMs; delete one, or widen the range`);
  }
}

const holdIn = <T>(map: Map<string, T>, key: string, value: T | undefined): void => {
  if (value === undefined) map.delete(key);
  else map.set(key, value);
};

/** Of a VM that goes to another host. */
const needOf = ({ host, takes = nothingUsed, placement, restartWhere }: VmRecord): Need => ({
  takes,
  placement: { strategy: 'spread', hostLabels: [], ...placement, host: undefined, apart: placement?.apart },
  mayGoElsewhere: restartWhere === 'elsewhere',
  leaves: host ?? ownHost,
});

/** What the keys of all VMs that stay apart begin with; a label may have any characters, and a key must not grow with it. */
const apartGroup = ({ account, labels }: PlacedVm, { placement: { apart } }: Need): string | undefined => {
  if (apart === undefined) return undefined;
  const value = labels[apart];
  if (value === undefined)
    throw new ApiError('BAD_REQUEST', `the VM is to stay apart from others by its label "${apart}", which it has not`);
  return `apart/${createHash('sha256')
    .update(JSON.stringify([account, apart, value]))
    .digest('hex')
    .slice(0, 32)}/`;
};

const noHost = (name: string): ApiError => new ApiError('NOT_FOUND', `there is no host "${name}"`);
