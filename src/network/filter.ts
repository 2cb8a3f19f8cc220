/**
 * The nftables of this host's guests, as one script that makes them what they are to be in one transaction, whatever is there.
 *
 * A guest sends from its own MAC and addresses, asks for addresses, and speaks neighbour discovery with this host; all else is
 * dropped and counted as `spoofed`. Of the host it reaches DHCP, and the metadata server where it has one; what else it sends to
 * the host is `refused`, and so is what is for link-local addresses beyond the host. Nobody outside sends as a guest of this host.
 *
 * Connections that the host follows, and neighbours that it knows by IPv6, are in tables of the whole host: each guest has a part
 * of them, and what is beyond it is `refused`.
 */
import { gateway, type Tapped } from './attachment.ts';

/** What can be read of the counters with `nft list counters table inet NAME`. */
export const counters = ['spoofed', 'refused'] as const;

/** Of the host's 65,536 to 262,144: those that the guest began. */
const mostConnections = 8_192;
/** A second, and at once, of requests for addresses: what does not suit dnsmasq goes into its log. */
const addressRequests = { rate: 5, burst: 40 } as const;
/** The same, of what comes from link-local addresses: each may be another neighbour, kept for 5 s at least. */
const linkLocal = { rate: 5, burst: 40 } as const;

const elements = (values: readonly string[]): string => `{ ${values.join(', ')} }`;

/** Empty, or filled: nft takes no empty list of elements. */
const filled = (table: string, set: string, values: readonly string[]): string[] => [
  `flush ${set.startsWith('map ') ? 'map' : 'set'} ${table} ${set.replace(/^map /, '')}`,
  ...(values.length === 0 ? [] : [`add element ${table} ${set.replace(/^map /, '')} ${elements(values)}`]),
];

const chain = (table: string, name: string, rules: readonly string[]): string[] => [
  `flush chain ${table} ${name}`,
  ...rules.map((rule) => `add rule ${table} ${name} ${rule}`),
];

export const filterScript = (prefix: string, guests: readonly Tapped[]): string => {
  const inet = `inet ${prefix}`;
  const arp = `arp ${prefix}`;
  const nat = `ip ${prefix}`;
  const taps = `"${prefix}-*"`;
  const beganTooMany = `ct state new add @began { iifname ct count over ${mostConnections} } counter name "refused" drop`;
  const four = guests.filter(({ ipv4 }) => ipv4 !== undefined);
  const six = guests.filter(({ ipv6 }) => ipv6 !== undefined);
  const own4 = four.map(({ tap, mac, ipv4 }) => `"${tap}" . ${mac} . ${ipv4}`);
  return `${[
    ...[inet, arp, nat].map((table) => `add table ${table}`),
    ...counters.map((counter) => `add counter ${inet} ${counter}`),
    `add set ${inet} links { type ifname . ether_addr; }`,
    `add set ${inet} guests4 { type ifname . ether_addr . ipv4_addr; }`,
    `add set ${inet} guests6 { type ifname . ether_addr . ipv6_addr; }`,
    `add set ${inet} here4 { type ipv4_addr; }`,
    `add set ${inet} here6 { type ipv6_addr; }`,
    `add set ${inet} metadata { type ifname; }`,
    `add set ${inet} began { type ifname; size 65535; flags dynamic; }`,
    `add set ${inet} wants { type ifname; size 65535; flags dynamic,timeout; timeout 1h; }`,
    `add set ${inet} asks { type ifname; size 65535; flags dynamic,timeout; timeout 1h; }`,
    `add set ${arp} guests4 { type ifname . ether_addr . ipv4_addr; }`,
    `add map ${nat} shared { type ipv4_addr . inet_service : ipv4_addr; }`,
    `add chain ${inet} arriving { type filter hook prerouting priority -300; policy accept; }`,
    `add chain ${inet} from_guest`,
    `add chain ${inet} to_host { type filter hook input priority 0; policy accept; }`,
    `add chain ${inet} beyond { type filter hook forward priority 0; policy accept; }`,
    `add chain ${arp} asking { type filter hook input priority 0; policy accept; }`,
    `add chain ${nat} shared_ports { type nat hook prerouting priority -100; policy accept; }`,
    ...filled(
      inet,
      'links',
      guests.map(({ tap, mac }) => `"${tap}" . ${mac}`),
    ),
    ...filled(inet, 'guests4', own4),
    ...filled(
      inet,
      'guests6',
      six.map(({ tap, mac, ipv6 }) => `"${tap}" . ${mac} . ${ipv6}`),
    ),
    ...filled(
      inet,
      'here4',
      four.map(({ ipv4 }) => ipv4!),
    ),
    ...filled(
      inet,
      'here6',
      six.map(({ ipv6 }) => ipv6!),
    ),
    ...filled(
      inet,
      'metadata',
      guests.flatMap(({ tap, hasMetadata }) => (hasMetadata ? [`"${tap}"`] : [])),
    ),
    ...filled(arp, 'guests4', own4),
    ...filled(
      nat,
      'map shared',
      four.flatMap(({ ipv4, udp }) => (udp?.ports ?? []).map((port) => `${udp!.address} . ${port} : ${ipv4}`)),
    ),
    ...chain(inet, 'arriving', [
      `iifname ${taps} goto from_guest`,
      'iifname != "lo" ip saddr @here4 counter name "spoofed" drop',
      'iifname != "lo" ip6 saddr @here6 counter name "spoofed" drop',
    ]),
    ...chain(inet, 'from_guest', [
      // This host’s own advertisements, which the kernel gives back to it as multicast; nobody else may send as this host either.
      'icmpv6 type nd-router-advert fib saddr . iif type local drop',
      'iifname . ether saddr != @links counter name "spoofed" drop',
      'iifname . ether saddr . ip saddr @guests4 accept',
      'ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept',
      'icmpv6 type { nd-router-advert, nd-redirect } counter name "spoofed" drop',
      'iifname . ether saddr . ip6 saddr @guests6 accept',
      `ip6 saddr fe80::/10 update @asks { iifname limit rate over ${linkLocal.rate}/second burst ${linkLocal.burst} packets } counter name "refused" drop`,
      'ip6 saddr { ::, fe80::/10 } icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report, mld-listener-done } accept',
      'ip6 saddr fe80::/10 udp sport 546 udp dport 547 accept',
      'counter name "spoofed" drop',
    ]),
    ...chain(inet, 'to_host', [
      `iifname != ${taps} accept`,
      `udp dport { 67, 547 } update @wants { iifname limit rate over ${addressRequests.rate}/second burst ${addressRequests.burst} packets } counter name "refused" drop`,
      'ct state established,related accept',
      `ip daddr { ${gateway}, 255.255.255.255 } udp dport 67 accept`,
      beganTooMany,
      `iifname @metadata ip daddr ${gateway} tcp dport { 80, 443 } accept`,
      'ip6 daddr ff02::1:2 udp dport 547 accept',
      'icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report, mld-listener-done } accept',
      'counter name "refused" drop',
    ]),
    ...chain(inet, 'beyond', [
      `iifname ${taps} ip daddr 169.254.0.0/16 counter name "refused" drop`,
      `iifname ${taps} ${beganTooMany}`,
    ]),
    ...chain(arp, 'asking', [
      `iifname != ${taps} accept`,
      'iifname . arp saddr ether . arp saddr ip @guests4 accept',
      'arp saddr ip 0.0.0.0 arp operation request accept',
      'drop',
    ]),
    ...chain(nat, 'shared_ports', ['dnat to ip daddr . udp dport map @shared']),
  ].join('\n')}\n`;
};

/** Takes away all of it; for tables that may not be there. */
export const noFilterScript = (prefix: string): string =>
  ['inet', 'arp', 'ip'].map((family) => `add table ${family} ${prefix}\ndelete table ${family} ${prefix}\n`).join('');
