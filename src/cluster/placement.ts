/** Which host a VM goes to, and why none has room: pure, over what is known of the hosts. */
import type { HostRecord, HostUseRecord, Resources } from '../records/index.ts';

/** What a VM asks of the host that it is placed on. */
export interface Placement {
  /** spread: where least is taken; pack: where most is, so that other hosts stay empty. */
  readonly strategy: 'spread' | 'pack';
  /** On this host only. */
  readonly host: string | undefined;
  /** `KEY=VALUE` or `KEY` of the host's labels, all of which must hold. */
  readonly hostLabels: readonly string[];
  /** A label of the VM: no two VMs of the account that name it, with the same value, share a host. */
  readonly apart: string | undefined;
}

export interface Need {
  readonly takes: Resources;
  readonly placement: Placement;
  /** Its host must be one whose VMs end when its lease has run out. */
  readonly mayGoElsewhere?: boolean | undefined;
  /** The host that it leaves. */
  readonly leaves?: string | undefined;
}

/** A host as the scheduler sees it. */
export interface Candidate {
  readonly host: HostRecord;
  readonly use: HostUseRecord;
  readonly isLive: boolean;
  readonly isLeased: boolean;
  /** Has a VM already from which this one stays apart. */
  readonly isTaken: boolean;
}

export const nothingUsed: HostUseRecord = { vcpus: 0, memoryMiB: 0, diskBytes: 0, vms: 0 };

const sizes = ['memoryMiB', 'vcpus', 'diskBytes'] as const;

export const plus = (use: HostUseRecord, takes: Resources, sign: 1 | -1): HostUseRecord => ({
  ...use,
  vcpus: use.vcpus + sign * takes.vcpus,
  memoryMiB: use.memoryMiB + sign * takes.memoryMiB,
  diskBytes: use.diskBytes + sign * takes.diskBytes,
  vms: use.vms + sign,
});

/** `KEY=VALUE` or `KEY`. */
export const hasLabel = (labels: Readonly<Record<string, string>>, wanted: string): boolean => {
  const [key, ...value] = wanted.split('=');
  return Object.hasOwn(labels, key!) && (value.length === 0 || labels[key!] === value.join('='));
};

/** Why a host is out of the question, in words that follow "3 hosts"; undefined: it has room. */
export const refusalOf = (
  { host, use, isLive, isLeased, isTaken }: Candidate,
  { takes, placement, mayGoElsewhere, leaves }: Need,
): string | undefined => {
  if (host.name === leaves) return 'are the one that it leaves';
  if (placement.host !== undefined && host.name !== placement.host) return `are not "${placement.host}"`;
  const missing = placement.hostLabels.filter((label) => !hasLabel(host.labels, label));
  if (missing.length > 0) return `have not the label ${missing.join(', ')}`;
  if (host.draining) return 'are being drained';
  if (host.cordoned) return 'are cordoned';
  if (!isLive) return 'are not connected';
  if (mayGoElsewhere && !isLeased) return 'have no lease, and so nothing that ends its VMs when they are cut off';
  if (isTaken) return `have a VM of the same ${placement.apart} already`;
  const { capacity } = host;
  if (capacity === undefined) return undefined;
  const short = sizes.find((size) => use[size] + takes[size] > capacity[size]);
  switch (short) {
    case undefined:
      return undefined;
    case 'memoryMiB':
      return `have less than ${takes.memoryMiB} MiB of memory free`;
    case 'vcpus':
      return `have less than ${takes.vcpus} vCPUs free`;
    case 'diskBytes':
      return `have less than ${takes.diskBytes} bytes of disk free`;
  }
};

/** How full it is with what it has: the fullest of memory, vCPUs and disk; then how many VMs. */
const fullness = ({ host: { capacity }, use }: Candidate): readonly [number, number] => [
  capacity === undefined
    ? 0
    : Math.max(...sizes.map((size) => (capacity[size] === 0 ? 0 : use[size] / capacity[size]))),
  use.vms,
];

/** Those with room, best first; hosts that are as good as each other in any order. */
export const ranked = (
  candidates: Iterable<Candidate>,
  need: Need,
  random: () => number = Math.random,
): Candidate[] => {
  const sign = need.placement.strategy === 'spread' ? 1 : -1;
  return [...candidates]
    .filter((candidate) => refusalOf(candidate, need) === undefined)
    .map((candidate) => ({ candidate, full: fullness(candidate), tie: random() }))
    .toSorted((a, b) => sign * (a.full[0] - b.full[0] || a.full[1] - b.full[1]) || a.tie - b.tie)
    .map(({ candidate }) => candidate);
};

/** Why none fits, by how many hosts: "3 hosts are cordoned, 5 hosts have less than 2048 MiB of memory free". */
export const reasonOf = (candidates: Iterable<Candidate>, need: Need): string => {
  const counts = new Map<string, number>();
  for (const candidate of candidates) {
    const refusal = refusalOf(candidate, need);
    if (refusal !== undefined) counts.set(refusal, (counts.get(refusal) ?? 0) + 1);
  }
  if (counts.size === 0) return 'there are no hosts yet';
  return [...counts]
    .toSorted(([, a], [, b]) => b - a)
    .map(([refusal, count]) => (count === 1 ? `1 host ${singular(refusal)}` : `${count} hosts ${refusal}`))
    .join(', ');
};

const singular = (words: string): string => words.replace(/^are /, 'is ').replace(/^have /, 'has ');
