/** What `virsh` prints (LC_ALL=C), read. It speaks for the daemon of libvirt, whose RPC is its own affair. */

/** One life of a domain's QEMU process, as well as libvirt tells them apart. */
export interface DomainRun {
  readonly uuid: string;
  /** libvirt counts the domains that it starts; the count begins anew when its daemon restarts with none running. */
  readonly id: number;
  /** Time that the process has had, in nanoseconds. */
  readonly cpuNs: number;
}

/** `list --all --uuid --name; list --id --name; domstats --list-active --cpu-total` */
export const listingCommands = 'list --all --uuid --name; list --id --name; domstats --list-active --cpu-total';

/** Domains by name: undefined where one is defined and does not run. */
export const readListing = (text: string): Map<string, DomainRun | undefined> => {
  const uuids = new Map<string, string>();
  const ids = new Map<string, number>();
  const times = new Map<string, number>();
  let statsOf = '';
  for (const line of text.split('\n')) {
    const [, uuid, named] = /^([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) (.+)$/.exec(line) ?? [];
    const [, id, running] = /^(\d+) (.+)$/.exec(line) ?? [];
    const [, stats] = /^Domain: '(.*)'$/.exec(line) ?? [];
    const [, time] = /^ +cpu\.time=(\d+)$/.exec(line) ?? [];
    if (uuid !== undefined) uuids.set(named!, uuid);
    else if (id !== undefined) ids.set(running!, Number(id));
    else if (stats !== undefined) statsOf = stats;
    else if (time !== undefined) times.set(statsOf, Number(time));
  }
  const domains = new Map<string, DomainRun | undefined>();
  for (const [name, uuid] of uuids) {
    const id = ids.get(name);
    const cpuNs = times.get(name);
    // One that started or ended between two of the commands is looked at again.
    domains.set(name, id === undefined || cpuNs === undefined ? undefined : { uuid, id, cpuNs });
  }
  return domains;
};

/** The same process: a life whose time went backwards is another that got the same number. */
export const isSameRun = (before: DomainRun, after: DomainRun): boolean =>
  before.uuid === after.uuid && before.id === after.id && before.cpuNs <= after.cpuNs;

export interface DomainEvent {
  readonly atMs: number;
  readonly domain: string;
  readonly what: 'reboot' | 'lifecycle';
}

/** A line of `event --all --loop --timestamp`; undefined for events that nobody asked for. */
export const readEvent = (line: string): DomainEvent | undefined => {
  const [, at, what, domain] = /^(\S+ \S+): event '(reboot|lifecycle)' for domain '(.*?)'(?::|$)/.exec(line) ?? [];
  if (at === undefined || domain === undefined) return undefined;
  const atMs = Date.parse(at.replace(' ', 'T'));
  return Number.isNaN(atMs) ? undefined : { atMs, domain, what: what as DomainEvent['what'] };
};
