/**
 * Addresses of the region's VMs: each is a key of the region's store, taken in the transaction that makes its VM under the
 * condition that nobody has it. With the VM it is not free at once: the key stays under a lease, so that who still has the
 * address in a cache does not reach another VM (ADR 25).
 */
import { isIPv4, isIPv6 } from 'node:net';
import { type AddressesRecord, PrefixesRecord, type VmRecord } from '../records/index.ts';
import { type Condition, keyText, type Operation } from '../store/index.ts';
import { addressOf, type IpFamily, numberOf } from '../wire/index.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { getRecord, type Kit, put, unchanged } from './kit.ts';
import { freeAt, hexOf, type Span, sizeOf, spanOf } from './prefixes.ts';
import { ApiError } from './problem.ts';

/** What a VM's transaction must have in it to have addresses. */
interface Given {
  readonly addresses: AddressesRecord;
  readonly conditions: readonly Condition[];
  readonly operations: readonly Operation[];
}

/** One kind of number, and the keys that say who has them. */
interface Pool {
  /** As in "no IPv4 address". */
  readonly what: string;
  readonly of: string;
  readonly spans: readonly Span[];
  readonly keyOf: (number: bigint) => string;
  readonly numberOf: (key: string) => bigint;
}

const prefixesKey = 'prefixes';
const nothing: PrefixesRecord = { ipv4: [], ipv6: [], dns: [] };
/** How long an address rests after its VM. */
export const restSeconds = 600;
/** Tries of any number, which nobody has as long as most are free. */
const guesses = 8;

export class Addresses {
  readonly #kit: Kit;

  constructor(kit: Kit) {
    this.#kit = kit;
  }

  async prefixes(): Promise<PrefixesRecord> {
    return (await getRecord(this.#kit.region, PrefixesRecord, prefixesKey))?.record ?? nothing;
  }

  /** BAD_REQUEST, CONFLICT. */
  async set(wish: PrefixesRecord, commit: CommitOnce, answer: (record: PrefixesRecord) => Answer): Promise<Answer> {
    check(wish);
    const before = await getRecord(this.#kit.region, PrefixesRecord, prefixesKey);
    const record = { ...before?.record, ...wish };
    if (wish.udp === undefined) delete record.udp;
    const told = answer(record);
    const transaction = {
      conditions: [unchanged(prefixesKey, before)],
      operations: [put(prefixesKey, record)],
    };
    if (await commit(transaction, told)) return told;
    throw new ApiError('CONFLICT', 'the prefixes of the region were changed at the same time; try again');
  }

  /**
   * One of each that nobody has, as far as was seen; undefined: the network has none. FULL, WRONG_STATE (the region has none to
   * give).
   */
  async take(network: VmRecord['network'], vm: string): Promise<Given | undefined> {
    if (network.mode !== 'routed') return undefined;
    const found = await getRecord(this.#kit.region, PrefixesRecord, prefixesKey);
    const { ipv4, ipv6, udp, dns } = found?.record ?? nothing;
    const { udpPorts = 0 } = network;
    if (ipv4.length === 0 && ipv6.length === 0)
      throw this.#missing('prefixes for routed networks', '--ipv4 10.20.0.0/16');
    if (udpPorts > 0 && (udp === undefined || ipv4.length === 0))
      throw this.#missing('UDP ports that lead to IPv4 addresses', '--ipv4 10.20.0.0/16 --udp ADDRESS:FIRST-LAST');
    const conditions = [unchanged(prefixesKey, found)];
    const operations: Operation[] = [];
    const keys: string[] = [];
    const take = async (pool: Pool, but: readonly bigint[] = []): Promise<bigint> => {
      const number = await this.#free(pool, but);
      const key = pool.keyOf(number);
      keys.push(key);
      conditions.push({ key, exists: false });
      operations.push(put(key, { vm }));
      return number;
    };
    const address = async (family: IpFamily, prefixes: readonly string[]): Promise<string | undefined> =>
      prefixes.length === 0 ? undefined : addressOf(family, await take(poolOf(family, prefixes)));
    const [four, six] = [await address('ipv4', ipv4), await address('ipv6', ipv6)];
    const ports: bigint[] = [];
    if (udp !== undefined) for (let i = 0; i < udpPorts; i++) ports.push(await take(portsOf(udp), ports));
    return {
      addresses: {
        ...(four !== undefined && { ipv4: four }),
        ...(six !== undefined && { ipv6: six }),
        ...(udp !== undefined && ports.length > 0 && { udp: { address: udp.address, ports: ports.map(Number) } }),
        dns: [...dns],
        keys,
      },
      conditions,
      operations,
    };
  }

  /** What has the addresses of a VM rest from the transaction on in which it goes. */
  async rest({ addresses, name }: VmRecord): Promise<Operation[]> {
    if (addresses === undefined) return [];
    const { id } = await this.#kit.region.grantLease(restSeconds);
    return addresses.keys.map((key) => put(key, { vm: name, restsSinceMs: this.#kit.wallMs() }, id));
  }

  async #free(pool: Pool, but: readonly bigint[]): Promise<bigint> {
    const { region, randomBytes } = this.#kit;
    const total = pool.spans.reduce((sum, span) => sum + sizeOf(span), 0n);
    const random = (below: bigint): bigint => BigInt(`0x${randomBytes(20).toString('hex')}`) % below;
    for (let i = 0; i < guesses; i++) {
      const number = freeAt(pool.spans, [], random(total))!;
      if (!but.includes(number) && (await region.get(pool.keyOf(number))) === undefined) return number;
    }
    const given = await Promise.all(pool.spans.map((span) => this.#taken(pool, span)));
    const taken = [...new Set([...given.flat(), ...but])].toSorted((a, b) => (a < b ? -1 : 1));
    const free = total - BigInt(taken.length);
    if (free <= 0n)
      throw new ApiError(
        'FULL',
        `the region "${this.#kit.regionName}" has no ${pool.what} left: all ${total} of ${pool.of} are given to VMs, or rest for 10 minutes after one was deleted; delete VMs, or give the region more`,
      );
    return freeAt(pool.spans, taken, random(free))!;
  }

  /** All that are taken of a span, in one pass. */
  async #taken({ keyOf, numberOf: numberIn }: Pool, { first, last }: Span): Promise<bigint[]> {
    const end = `${keyOf(last)}\0`;
    const numbers: bigint[] = [];
    for (let start: string | Uint8Array = keyOf(first), revision: number | undefined; ; ) {
      const page = await this.#kit.region.range({ start, end }, { revision });
      for (const { key } of page.entries) numbers.push(numberIn(keyText(key)));
      if (page.next === undefined) return numbers;
      ({ next: start, revision } = page);
    }
  }

  #missing(what: string, option: string): ApiError {
    const region = this.#kit.regionName;
    return new ApiError(
      'WRONG_STATE',
      `the region "${region}" has no ${what}; give it some, as with: porthole region network ${option}`,
    );
  }
}

const names = { ipv4: 'IPv4 address', ipv6: 'IPv6 address' } as const;

const poolOf = (family: IpFamily, prefixes: readonly string[]): Pool => ({
  what: names[family],
  of: prefixes.join(', '),
  spans: inOrder(prefixes.map((prefix) => spanOf(family, prefix))),
  keyOf: (number) => `address/${family}/${hexOf(family, number)}`,
  numberOf: (key) => BigInt(`0x${key.slice(`address/${family}/`.length)}`),
});

const portsOf = ({ address, first, last }: NonNullable<PrefixesRecord['udp']>): Pool => {
  const prefix = `address/udp/${hexOf('ipv4', numberOf('ipv4', address))}/`;
  return {
    what: 'UDP port',
    of: `${address} from ${first} to ${last}`,
    spans: [{ first: BigInt(first), last: BigInt(last) }],
    keyOf: (number) => `${prefix}${String(number).padStart(5, '0')}`,
    numberOf: (key) => BigInt(key.slice(prefix.length)),
  };
};

const inOrder = (spans: readonly Span[]): Span[] => spans.toSorted((a, b) => (a.first < b.first ? -1 : 1));

/** BAD_REQUEST. */
const check = ({ ipv4, ipv6, udp, dns }: PrefixesRecord): void => {
  const bad = (detail: string): ApiError => new ApiError('BAD_REQUEST', detail);
  for (const [family, prefixes] of [
    ['ipv4', ipv4],
    ['ipv6', ipv6],
  ] as const) {
    let spans: Span[];
    try {
      spans = inOrder(prefixes.map((prefix) => spanOf(family, prefix)));
    } catch (error) {
      throw bad((error as Error).message);
    }
    const shared = family === 'ipv4' && udp !== undefined && isIPv4(udp.address) ? numberOf('ipv4', udp.address) : -1n;
    if (spans.some(({ first, last }) => first <= shared && shared <= last))
      throw bad(
        `${udp!.address} is in one of ${prefixes.join(', ')}, and would be given to a VM; share another address`,
      );
    if (spans.some(({ last }, i) => spans[i + 1] !== undefined && spans[i + 1]!.first <= last))
      throw bad(`of ${prefixes.join(', ')} some lie in others; name each address once`);
  }
  if (udp !== undefined && (!isIPv4(udp.address) || udp.first > udp.last))
    throw bad(
      `${udp.address} from ${udp.first} to ${udp.last} are no UDP ports of an IPv4 address; the first comes first`,
    );
  for (const server of dns)
    if (!isIPv4(server) && !isIPv6(server)) throw bad(`"${server}" is no address of a resolver`);
};
