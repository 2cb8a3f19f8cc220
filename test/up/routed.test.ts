/** Real guests on two hosts with routed networks: they reach each other, and cannot pretend to be one another. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { tinyImage } from '../../images/tiny/image.ts';
import { until } from '../until.ts';
import { bootLimitMs } from './machine.ts';
import { hostNames, RoutedRegion } from './routed-region.ts';

const skip =
  process.getuid?.() === 0 && existsSync('/dev/net/tun') ? false : 'tap devices take root and a /dev/net/tun';
const hasIpv6 = existsSync('/proc/net/if_inet6');

/** What udhcpc is to do with what it was given: a /32, and a router that is on the link. */
const onLease = String.raw`#!/bin/sh\n[ "$1" = bound ] || exit 0\nip address add $ip/$mask dev eth0\nip route add $router dev eth0\nip route add default via $router\n`;

test('routed VMs on two hosts', { skip }, async (t) => {
  // The hosts’ networks lead nowhere that packages could come from.
  await tinyImage();
  const region = new RoutedRegion(t);
  await region.start();
  const { client } = region;
  await client.call('setPrefixes', {
    body: {
      ipv4: ['10.20.0.0/24'],
      ...(hasIpv6 && { ipv6: ['fd00:20::/64'] }),
      udp: { address: '192.0.2.1', first: 20_000, last: 20_009 },
      dns: ['10.0.0.53'],
    },
  });
  await region.tinyImage();
  const made = hostNames.map((host) =>
    client.call('createVm', {
      body: {
        name: host,
        type: 'nano',
        image: { name: 'tiny' },
        network: { mode: 'routed', udpPorts: 1 },
        metadataServer: { ways: ['network'] },
        placement: { host },
        spec: `porthole: 1\nmetadata: { instance: { id: i-${host} } }`,
      },
    }),
  );
  for (const operation of await Promise.all(made)) await region.done(operation);
  const guest = async (name: string, line: string): Promise<string> => (await region.type(name, line)).trim();
  const [a, b] = await Promise.all(hostNames.map((name) => client.call('getVm', { params: { name } })));
  const [a4, a6] = a!.addresses;
  const [b4, b6] = b!.addresses;

  for (const name of hostNames) {
    await region.untilReady(name);
    await guest(
      name,
      `printf '${onLease}' > /tmp/on-lease; chmod 755 /tmp/on-lease; ip -4 address flush dev eth0; udhcpc -q -n -t 20 -i eth0 -s /tmp/on-lease > /tmp/dhcp 2>&1; cat /tmp/dhcp`,
    );
  }
  await t.test('have the address that the API tells by DHCP, and in their tree', async () => {
    assert.match(await guest('a', 'ip -4 -o address show dev eth0'), new RegExp(`inet ${a4}/32`));
    assert.equal(await guest('a', 'cat /run/metadata/network/ipv4'), a4);
    assert.equal(await guest('a', 'cat /run/metadata/network/udp-ports'), `192.0.2.1:${a!.udp!.ports[0]}`);
    assert.match(await guest('a', 'wget -qO- http://169.254.169.254/nocloud/meta-data'), /i-a/);
  });

  const reaches = async (from: string, what: string): Promise<void> =>
    void (await until(
      `${from} to reach ${what}`,
      async () => (await guest(from, `ping -c 1 -W 1 ${what} > /dev/null && echo reached`)) === 'reached',
      bootLimitMs,
    ));

  /** Datagrams for ports where nobody listens, by which it is known that they came. */
  const counted = {
    ipv4: "awk '/^Udp: [0-9]/ { print $3 }' /proc/net/snmp",
    ipv6: "awk '/^Udp6NoPorts/ { print $2 }' /proc/net/snmp6",
  } as const;
  const untilArrived = async (name: string, family: keyof typeof counted, send: () => unknown): Promise<void> => {
    const arrived = async (): Promise<number> => Number(await guest(name, counted[family]));
    const before = await arrived();
    await until('a datagram', async () => {
      await send();
      return (await arrived()) > before;
    });
  };
  const sends = (to: string): Promise<string> => guest('a', `bash -c 'echo hello > /dev/udp/${to}/5000'`);

  await t.test('reach each other by IPv4 over BGP, and by UDP', async () => {
    await reaches('a', b4!);
    await untilArrived('b', 'ipv4', () => sends(b4!));
  });

  await t.test(
    'reach each other by IPv6, and by UDP',
    { skip: hasIpv6 ? false : 'this kernel has no IPv6' },
    async () => {
      for (const name of hostNames) {
        await until('a router to advertise itself', async () =>
          (await guest(name, 'ip -6 route show default')).includes('via fe80::'),
        );
        await guest(name, 'ip -6 address add $(cat /run/metadata/network/ipv6)/128 dev eth0');
      }
      await reaches('a', b6!);
      await reaches('b', a6!);
      await untilArrived('b', 'ipv6', () => sends(b6!));
    },
  );

  await t.test('are reached by their port of the shared address', async () => {
    const port = String(a!.udp!.ports[0]);
    region.within('b', 'ip', 'route', 'add', '192.0.2.1/32', 'via', '10.0.0.1');
    await untilArrived('a', 'ipv4', () => region.within('b', 'bash', '-c', `echo hello > /dev/udp/192.0.2.1/${port}`));
  });

  await t.test('cannot send as one another, nor reach their host', async () => {
    const dropped = async (counter: 'spoofed' | 'refused', line: string): Promise<void> => {
      const before = region.dropped('b', counter);
      // An address of IPv6 is not used before it has been asked for on the link.
      await until(`a packet to be ${counter}`, async () => {
        await guest('b', `${line} > /dev/null 2>&1`);
        return region.dropped('b', counter) > before;
      });
    };
    // It drops what comes in the name of its own guest from elsewhere.
    const seenByA = region.dropped('a', 'spoofed');
    await guest('b', `ip address add ${a4}/32 dev eth0`);
    await dropped('spoofed', `ping -c 1 -W 1 -I ${a4} 10.0.0.1`);
    if (hasIpv6) {
      await guest('b', `ip -6 address add ${a6}/128 dev eth0`);
      await dropped('spoofed', `ping -6 -c 1 -W 1 -I ${a6} fd00:1::1`);
    }
    assert.equal(region.dropped('a', 'spoofed'), seenByA, 'nothing of it left the host');
    await dropped('refused', 'nc -w 1 10.0.0.2 22 < /dev/null');
    await guest('b', `ip address del ${a4}/32 dev eth0; ip -6 address del ${a6}/128 dev eth0`);
    await reaches('b', a4!);
  });

  await t.test('lose no packet while a host’s daemon dies and is started again', async () => {
    const programs = (): string => ['dnsmasq', 'bird'].map((name) => region.pidsOf('a', name).join(' ')).join(', ');
    const before = programs();
    await guest('a', `ping -i 0.2 ${b4} > /tmp/ping 2>&1 &`);
    const seen = async (): Promise<number[]> =>
      [...(await guest('a', 'cat /tmp/ping')).matchAll(/seq=(\d+)/g)].map(([, seq]) => Number(seq));
    await until('replies', async () => (await seen()).length > 3);
    await region.hosts.get('a')!.kill('SIGKILL');
    await region.startHost('a');
    const { length } = await until('the console', () => seen().catch(() => undefined));
    await until('more replies', async () => (await seen()).length > length + 3);
    const sequence = await seen();
    assert.deepEqual(
      sequence,
      [...sequence.keys()].map((i) => i + sequence[0]!),
    );
    assert.equal(programs(), before);
    assert.match(before, /^\d+, \d+$/);
  });

  await t.test('leave nothing behind', async () => {
    for (const name of hostNames) await region.done(await client.call('deleteVm', { params: { name } }));
    for (const host of hostNames) {
      await until('the filter to go', () => region.within(host, 'nft', 'list', 'ruleset') === '');
      assert.doesNotMatch(region.within(host, 'ip', '-o', 'link'), /\bph/);
      await until('all routes to go', () => !region.within(host, 'ip', 'route').includes('10.20.'));
      assert.doesNotMatch(region.within(host, 'ip', '-6', 'route'), /fd00:20:/);
      assert.deepEqual([region.pidsOf(host, 'dnsmasq'), region.pidsOf(host, 'bird')], [[], []]);
    }
  });
});
