/** The audit of a region: what is asked of all its hosts, and how their answers become one. */
import {
  type AuditCheck,
  type AuditEvent,
  type AuditLink,
  type AuditQuery,
  type HostPort,
  ownHost,
  VmRecord,
} from '../records/index.ts';
import { getsOn, merged, type Place, type Placed, type PlacedPage, placeAt } from './audit-merge.ts';
import type { Hosts } from './hosts.ts';
import { type Identity, mayTouch, seesCluster } from './identity.ts';
import { getRecord, type Kit } from './kit.ts';
import { ApiError } from './problem.ts';

/** Whose records are not in an answer, and why. */
export interface Missing {
  readonly region: string;
  /** Undefined: nobody of the region answers. */
  readonly host?: string | undefined;
  readonly reason: string;
}

export interface FleetEvent extends Placed {
  readonly event: AuditEvent;
}

export interface FleetPage extends PlacedPage<FleetEvent> {
  readonly missing: readonly Missing[];
}

export type FleetQuery = Omit<AuditQuery, 'account' | 'vms' | 'after'> & { readonly after?: Place | undefined };

/** A host that has not answered until then is taken for away. */
const hostMs = 20_000;
/** How often it is asked for one page. Each time it looks through some MiB. */
const mostAsks = 1_000;
/** Of a page, that each of very many hosts is asked for. */
const fewest = 16;
/** By how much clocks of managers and hosts may differ. */
const clocksMs = 60_000;

/**
 * Whether a record is of this VM, whose name may have been another's before: the host that tells it has the VM, or had it then.
 */
const isBelieved = (
  { host: now = ownHost, stays = [], createdAtMs }: VmRecord,
  { place: { host }, event: { record } }: FleetEvent,
): boolean =>
  record.timeMs >= createdAtMs &&
  (host === now ||
    stays.some(
      (stay) =>
        stay.host === host && record.timeMs >= stay.fromMs - clocksMs && record.timeMs <= stay.untilMs + clocksMs,
    ));

export class FleetAudit {
  readonly #kit: Kit;
  readonly #hosts: Hosts;

  constructor(kit: Kit, hosts: Hosts) {
    this.#kit = kit;
    this.#hosts = hosts;
  }

  /**
   * What whoever asks may see of the region. Of its own VMs, where that is not all: of those that there are, since they were
   * made, as their names may have been others' before, and from hosts where they are or were: others may tell what they like.
   */
  async page(identity: Identity, { after, ...query }: FleetQuery, signal: AbortSignal): Promise<FleetPage> {
    const { regionName: region, connected } = this.#kit;
    const { limit, newestFirst = false } = query;
    const own = seesCluster(identity) ? {} : { account: identity.account, vms: identity.vms };
    const hosts = await this.#hosts.list();
    const ports = connected();
    const share = Math.min(limit, Math.max(fewest, Math.ceil((2 * limit) / hosts.length)));
    const missing: Missing[] = [];
    const pages = hosts.map(async ({ record: { name: host } }): Promise<PlacedPage<FleetEvent>> => {
      const place = (at: { readonly atMs: number; readonly sequence: number }): Place => ({ ...at, region, host });
      const port = ports.get(host);
      if (port === undefined) {
        missing.push({ region, host, reason: 'the host is not connected to the manager that was asked' });
        return { events: [], next: undefined };
      }
      try {
        const from = after && placeAt(after, { region, host, newestFirst });
        const asked: AuditQuery = { ...query, ...own, limit: share, after: from };
        return await foundAt(port, asked, { place, after, signal: within(signal) });
      } catch (error) {
        signal.throwIfAborted();
        this.#kit.log.warn({ err: error, host }, 'the audit of a host cannot be had');
        missing.push({ region, host, reason: reasonOf(error) });
        return { events: [], next: undefined };
      }
    });
    const { events, next } = merged(await Promise.all(pages), { limit, newestFirst });
    return { events: seesCluster(identity) ? events : await this.#ofPresentVms(identity, events), next, missing };
  }

  async #ofPresentVms(identity: Identity, events: readonly FleetEvent[]): Promise<FleetEvent[]> {
    const names = new Set(events.map(({ event }) => event.record.vm).filter((name) => mayTouch(identity, name)));
    const found = await Promise.all([...names].map((name) => getRecord(this.#kit.region, VmRecord, `vm/${name}`)));
    const own = found.flatMap((vm) => (vm?.record.account === identity.account ? [vm.record] : []));
    const byName = new Map(own.map((vm) => [vm.name, vm]));
    return events.filter((one) => {
      const vm = byName.get(one.event.record.vm);
      return vm !== undefined && isBelieved(vm, one);
    });
  }

  /** Of one host: `HostPort.checkAudit`. NOT_FOUND, UNAVAILABLE. */
  async check(host: string, after: AuditLink | undefined, signal: AbortSignal): Promise<AuditCheck> {
    await this.#hosts.get(host);
    const port: HostPort | undefined = this.#kit.connected().get(host);
    if (port === undefined)
      throw new ApiError('UNAVAILABLE', `the host "${host}" is not connected to the manager that was asked; try again`);
    return port.checkAudit(after, { signal });
  }
}

/**
 * Looks on at a host while it finds nothing: the others' records wait for the one that was looked through least. What it throws
 * says why the host has no part in the page.
 */
const foundAt = async (
  port: HostPort,
  asked: AuditQuery,
  {
    place,
    after,
    signal,
  }: {
    readonly place: (at: { readonly atMs: number; readonly sequence: number }) => Place;
    readonly after: Place | undefined;
    readonly signal: AbortSignal;
  },
): Promise<PlacedPage<FleetEvent>> => {
  const { newestFirst = false } = asked;
  let from = asked.after;
  let last = after;
  for (let i = 0; i < mostAsks; i++) {
    const { events, next } = await port.audit({ ...asked, after: from }, { signal });
    const page = {
      events: events.map((event) => ({ place: place({ atMs: event.atMs, sequence: Number(event.id) }), event })),
      next: next && place(next),
    };
    if (!getsOn(page, { after: last, newestFirst })) throw new Error('what it answers is not in order');
    if (events.length > 0 || page.next === undefined) return page;
    from = next;
    last = page.next;
  }
  throw new Error('it gets on too slowly with its log; narrow what you ask for, or ask later');
};

const within = (signal: AbortSignal): AbortSignal => AbortSignal.any([signal, AbortSignal.timeout(hostMs)]);

export const reasonOf = (error: unknown): string =>
  error instanceof DOMException && error.name === 'TimeoutError'
    ? 'no answer came in time'
    : error instanceof Error
      ? error.message
      : String(error);
