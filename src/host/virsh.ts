/** What `virsh` prints (LC_ALL=C), read. It speaks for the daemon of libvirt, whose RPC is its own affair. */

/** One life of a domain's QEMU process, as well as libvirt tells them apart. */
export interface DomainRun {
  readonly uuid: string;
  /** libvirt counts the domains that it starts; the count begins anew when its daemon restarts with none running. */
  readonly id: number;
  /** Time that the process has had, in nanoseconds; not every libvirt knows it. */
  readonly cpuNs?: number | undefined;
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
    const [, uuid, named] = /^([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) (.+)$/s.exec(line) ?? [];
    const [, id, running] = /^(\d+) (.+)$/s.exec(line) ?? [];
    const [, stats] = /^Domain: '(.*)'$/s.exec(line) ?? [];
    const [, time] = /^ +cpu\.time=(\d+)$/.exec(line) ?? [];
    // Older ones fill names up with blanks in lists.
    if (uuid !== undefined) uuids.set(named!.trimEnd(), uuid);
    else if (id !== undefined) ids.set(running!.trimEnd(), Number(id));
    else if (stats !== undefined) statsOf = stats;
    else if (time !== undefined) times.set(statsOf, Number(time));
  }
  const domains = new Map<string, DomainRun | undefined>();
  for (const [name, uuid] of uuids) {
    const id = ids.get(name);
    const cpuNs = times.get(name);
    domains.set(name, id === undefined ? undefined : { uuid, id, ...(cpuNs !== undefined && { cpuNs }) });
  }
  return domains;
};

/** The same process: a life whose time went backwards is another that got the same number. */
export const isSameRun = (before: DomainRun, after: DomainRun): boolean =>
  before.uuid === after.uuid &&
  before.id === after.id &&
  (before.cpuNs ?? 0) <= (after.cpuNs ?? Number.POSITIVE_INFINITY);

/** `lifecycle`: how some domain is has changed. */
export type DomainEvent =
  | { readonly what: 'reboot'; readonly domain: string; readonly atMs: number }
  | { readonly what: 'lifecycle' };

/** A line of `event --all --loop --timestamp`; undefined for events that nobody asked for. */
export const readEvent = (line: string): DomainEvent | undefined => {
  const [, date, time, what, rest] =
    /^(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d\.\d{3})\+0000: event '(reboot|lifecycle)' for domain '(.*)$/s.exec(line) ?? [];
  if (what === 'lifecycle') return { what };
  // A domain whose name has more in it than another's is not that one.
  if (what !== 'reboot' || !rest!.endsWith("'")) return undefined;
  const atMs = Date.parse(`${date}T${time}Z`);
  return Number.isNaN(atMs) ? undefined : { what, domain: rest!.slice(0, -1), atMs };
};
