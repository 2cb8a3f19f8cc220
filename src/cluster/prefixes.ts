/** Prefixes of IPv4 and IPv6, and what they have to give. Pure. */
import { isIPv4, isIPv6 } from 'node:net';
import { addressOf, type IpFamily, numberOf } from '../wire/index.ts';

/** Numbers `first` to `last`, both included, that can be given out. */
export interface Span {
  readonly first: bigint;
  readonly last: bigint;
}

const bitsOf = { ipv4: 32, ipv6: 128 } as const;
/** Guests are told by router advertisement, which knows no wider ones; a wider IPv4 one is a mistake. */
const lengths = { ipv4: [8, 32], ipv6: [64, 128] } as const;

/** What machines take for themselves, for a link or for groups, whoever it is given to: 169.254.169.254 is each VM's host. */
const reserved = {
  ipv4: ['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/3'],
  ipv6: ['::/8', 'fe80::/9', 'ff00::/8'],
} as const;

export const hexOf = (family: IpFamily, number: bigint): string =>
  number.toString(16).padStart(bitsOf[family] / 4, '0');

/**
 * What a prefix has to give: not its first address, and of IPv4 not its last, which would be mistaken for those of a network
 * and for all of it; of prefixes with fewer than four, all. Throws, with words for people, for what is no such prefix.
 */
export const spanOf = (family: IpFamily, prefix: string): Span => {
  const [, address = '', digits = ''] = /^([^/]*)\/(\d{1,3})$/.exec(prefix) ?? [];
  const [shortest, longest] = lengths[family];
  const length = Number(digits);
  if (!(family === 'ipv4' ? isIPv4 : isIPv6)(address) || address.includes('%') || digits === '')
    throw new Error(`"${prefix}" is no ${family} prefix; write it as ${examples[family]}`);
  if (length < shortest || length > longest)
    throw new Error(`"${prefix}" has a length of ${length}; it must be from ${shortest} to ${longest}`);
  const size = 1n << BigInt(bitsOf[family] - length);
  const base = numberOf(family, address);
  if (base % size !== 0n)
    throw new Error(
      `"${prefix}" has bits beyond its length; write it as ${addressOf(family, base - (base % size))}/${length}`,
    );
  const last = base + size - 1n;
  for (const taken of reserved[family]) {
    const [start, bits] = taken.split('/') as [string, string];
    const from = numberOf(family, start);
    const to = from + (1n << BigInt(bitsOf[family] - Number(bits))) - 1n;
    if (base <= to && last >= from)
      throw new Error(`"${prefix}" has addresses of ${taken}, which no VM can have; write it as ${examples[family]}`);
  }
  if (size < 4n) return { first: base, last };
  return { first: base + 1n, last: family === 'ipv4' ? last - 1n : last };
};

const examples = { ipv4: '10.20.0.0/16', ipv6: 'fd00:20::/64' } as const;

export const sizeOf = ({ first, last }: Span): bigint => last - first + 1n;

/** The number at `index` of all that spans have to give but `taken`, which is in order and within them. */
export const freeAt = (spans: readonly Span[], taken: readonly bigint[], index: bigint): bigint | undefined => {
  let left = index;
  const rest = taken.values();
  let next = rest.next();
  for (const { first, last } of spans) {
    let from = first;
    while (next.done !== true && next.value >= from && next.value <= last) {
      const gap = next.value - from;
      if (left < gap) return from + left;
      left -= gap;
      from = next.value + 1n;
      next = rest.next();
    }
    const gap = last - from + 1n;
    if (left < gap) return from + left;
    left -= gap;
  }
  return undefined;
};
