/** The filter in a network of its own, with a guest in another at the end of a cable. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readlinkSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { gateway, ownPrefix, tapName } from './attachment.ts';
import { filterScript } from './filter.ts';

const skip = process.getuid?.() === 0 ? false : 'a network of its own takes root';
const hasIpv6 = existsSync('/proc/net/if_inet6');
const prefix = ownPrefix('/run/porthole-filter-test');
const tap = tapName(prefix, 'i-1');
const guest = { id: 'i-1', tap, mac: '52:54:00:11:22:33', ipv4: '10.20.0.5', dns: [], hasMetadata: true };

type Shell = (script: string) => string;

const networkOf = async (t: TestContext): Promise<{ readonly pid: number; readonly shell: Shell }> => {
  const holder = spawn('unshare', ['--net', 'sleep', '3600'], { stdio: 'ignore' });
  t.after(async () => {
    holder.kill('SIGKILL');
    await once(holder, 'exit');
  });
  const pid = holder.pid!;
  const network = `/proc/${pid}/ns/net`;
  await until('a network', () => readlinkSync(network) !== readlinkSync('/proc/self/ns/net'));
  const shell: Shell = (script) =>
    execFileSync('nsenter', [`--net=${network}`, 'bash', '-ec', script], { encoding: 'utf8' });
  return { pid, shell };
};

test('a guest gets no more than its part of the tables that its host has once', { skip }, async (t) => {
  const [host, there] = await Promise.all([networkOf(t), networkOf(t)]);
  host.shell(`
    echo 1 > /proc/sys/net/ipv4/ip_forward; echo 600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout
    ip link add out type veth peer name nowhere; ip link set out up; ip link set nowhere up; ip address add 10.9.0.1/24 dev out
    for i in 9 10; do ip neighbour add 10.9.0.$i lladdr 52:54:00:00:00:01 dev out; done
    ip link add ${tap} type veth peer name eth0 address ${guest.mac} netns ${there.pid}
    ip address add ${gateway}/32 dev ${tap}; ip link set ${tap} up; ip route add ${guest.ipv4}/32 dev ${tap}`);
  there.shell(`
    ip link set eth0 up; ip address add ${guest.ipv4}/32 dev eth0
    ip route add ${gateway}/32 dev eth0; ip route add default via ${gateway}`);
  host.shell(`nft -f - <<'END'\n${filterScript(prefix, [guest])}END`);
  const refused = (): number =>
    Number(/counter refused \{\s+packets (\d+)/.exec(host.shell(`nft list counters table inet ${prefix}`))?.[1]);

  // To as many ports, each from another one: connections as the host follows them.
  there.shell('for ((i = 1; i <= 9000; i++)); do echo > /dev/udp/10.9.0.9/$i; done');
  assert.ok(refused() > 0);
  assert.ok(Number(host.shell('cat /proc/sys/net/netfilter/nf_conntrack_count')) <= 8_200);
  // A change of the filter begins nothing anew.
  host.shell(`nft -f - <<'END'\n${filterScript(prefix, [guest])}END`);
  const before = refused();
  there.shell('for ((i = 1; i <= 50; i++)); do echo > /dev/udp/10.9.0.10/$i; done');
  assert.ok(refused() >= before + 40);

  const until67 = refused();
  there.shell(`for i in {1..200}; do echo > /dev/udp/${gateway}/67; done`);
  assert.ok(refused() > until67 + 100);

  if (!hasIpv6) return;
  host.shell(`for i in {1..120}; do ip -6 address add fe80::1:$i/64 dev ${tap} nodad; done`);
  there.shell(`
    ip -6 address flush dev eth0
    for i in {1..120}; do
      ip -6 address add fe80::2:$i/64 dev eth0 nodad; echo > /dev/udp/fe80::1:$i%eth0/9; ip -6 address del fe80::2:$i/64 dev eth0
    done`);
  const known = host.shell(`ip -6 neighbour show dev ${tap}`).match(/fe80::2:/g)?.length ?? 0;
  assert.ok(known > 0 && known < 100, `${known} neighbours`);
});
