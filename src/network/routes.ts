/** What bird is told: this host's guests are announced to its peers, and what they announce of theirs becomes routes. */
import { isIPv4 } from 'node:net';
import type { Tapped } from './attachment.ts';

export interface BgpPeer {
  readonly address: string;
  /** Undefined: the host's own, as among the hosts of a region and with its route reflectors. */
  readonly as: number | undefined;
}

export interface Bgp {
  readonly as: number;
  /** Of this host, as an IPv4 address; undefined: bird takes one of its addresses. */
  readonly routerId: string | undefined;
  readonly peers: readonly BgpPeer[];
}

const families = [
  { channel: 'ipv4', of: 'ipv4', bits: 32, isOf: isIPv4 },
  { channel: 'ipv6', of: 'ipv6', bits: 128, isOf: (address: string) => !isIPv4(address) },
] as const;

/**
 * Routes of one address each are taken, and no others: a peer can announce VMs, and lead nothing else of this host's traffic
 * to itself. IPv4 goes by peers that are named by IPv4, IPv6 by those named by IPv6.
 */
export const routesConfiguration = ({ as, routerId, peers }: Bgp, prefix: string, guests: readonly Tapped[]): string =>
  `${[
    'log stderr { warning, error, fatal, bug, auth };',
    ...(routerId === undefined ? [] : [`router id ${routerId};`]),
    'protocol device { scan time 10; }',
    // By what this machine knows besides, next hops are found.
    `protocol direct { ipv4; ipv6; interface -"${prefix}-*", "*"; }`,
    ...families.flatMap(({ channel, of }) => [
      `protocol kernel { learn; ${channel} { import all; export where source = RTS_BGP; }; }`,
      `protocol static guests_${channel} {`,
      `  ${channel};`,
      ...guests.flatMap(({ tap, [of]: address }) =>
        address === undefined ? [] : [`  route ${address}/${bitsOf(of)} via "${tap}";`],
      ),
      '}',
    ]),
    ...peers.map(({ address, as: theirs }, i) => {
      const { channel, bits } = families.find(({ isOf }) => isOf(address))!;
      return [
        `protocol bgp peer${i} {`,
        `  local as ${as};`,
        `  neighbor ${address} as ${theirs ?? as};`,
        `  ${channel} { import where net.len = ${bits}; export where source = RTS_STATIC; next hop self; };`,
        '}',
      ].join('\n');
    }),
  ].join('\n')}\n`;

const bitsOf = (family: 'ipv4' | 'ipv6'): number => families.find(({ of }) => of === family)!.bits;
