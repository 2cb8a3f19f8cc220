/**
 * What dnsmasq is told: DHCP, DHCPv6 and router advertisements on the guests' tap devices, and nothing else. For IPv4 each device
 * has a range of its own with one address; of both, an address is told on the device of its VM alone.
 */
import { gateway, subnet64, type Tapped } from './attachment.ts';

const common = [
  // No DNS.
  'port=0',
  'bind-dynamic',
  'no-resolv',
  'no-hosts',
  'no-ping',
  'leasefile-ro',
  // Two for each VM; as it comes it stops at 1,000.
  'dhcp-lease-max=100000',
  'dhcp-authoritative',
  'quiet-dhcp',
  'quiet-dhcp6',
  'quiet-ra',
  'enable-ra',
];

export const dhcpConfiguration = (guests: readonly Tapped[]): string =>
  `${[...common, ...subnetsOf(guests).map((subnet) => `dhcp-range=${subnet},static,off-link,64`), ...guests.flatMap(linesOf)].join('\n')}\n`;

/** Once each, however many guests are in it: their addresses are told by their MAC and device. */
const subnetsOf = (guests: readonly Tapped[]): string[] => [
  ...new Set(guests.flatMap(({ ipv6 }) => (ipv6 === undefined ? [] : [subnet64(ipv6)]))),
];

/** With a netmask of 32 bits the gateway is not on the guest's net: option 121 says that it is on its link (RFC 3442). */
const linesOf = ({ tap, mac, ipv4, ipv6, dns }: Tapped): string[] => {
  const [dns4, dns6] = [dns.filter((server) => !server.includes(':')), dns.filter((server) => server.includes(':'))];
  return [
    `interface=${tap}`,
    `dhcp-host=${[mac, `tag:${tap}`, ...(ipv4 === undefined ? [] : [ipv4]), ...(ipv6 === undefined ? [] : [`[${ipv6}]`])].join(',')}`,
    ...(ipv4 === undefined
      ? []
      : [
          `shared-network=${tap},${ipv4}`,
          `dhcp-range=${ipv4},static,255.255.255.255`,
          `dhcp-option=tag:${tap},option:router,${gateway}`,
          `dhcp-option=tag:${tap},option:classless-static-route,${gateway}/32,0.0.0.0,0.0.0.0/0,${gateway}`,
          ...(dns4.length === 0 ? [] : [`dhcp-option=tag:${tap},option:dns-server,${dns4.join(',')}`]),
        ]),
    ...(ipv6 === undefined || dns6.length === 0
      ? []
      : [`dhcp-option=tag:${tap},option6:dns-server,${dns6.map((server) => `[${server}]`).join(',')}`]),
  ];
};
