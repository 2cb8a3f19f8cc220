/** Metadata servers of real guests on real tap devices: each VM at 169.254.169.254, by the device that is its own. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { claimOf, overNetwork, requestOf, statusOf } from './metadata-words.ts';

const skip =
  process.getuid?.() === 0 && existsSync('/dev/net/tun') ? false : 'tap devices take root and a /dev/net/tun';
const devices = { one: 'tap0', two: 'tap1' } as const;
const addresses = { one: '10.9.0.2', two: '10.7.0.2' } as const;
const names = ['one', 'two'] as const;
/** Who stands behind a guest that forwards packets, and how many hops that guest's answers may travel. */
const behind = {
  one: { network: '10.9.1', hopLimit: undefined },
  two: { network: '10.7.1', hopLimit: 2 },
} as const;

test('VMs on tap devices have a metadata server each, and reach no other', { skip }, async (t) => {
  const holder = spawn('unshare', ['--net', 'sleep', '3600'], { stdio: 'ignore' });
  t.after(async () => {
    holder.kill('SIGKILL');
    await once(holder, 'exit');
  });
  const network = `/proc/${holder.pid}/ns/net`;
  await until('a network of its own', () => readlinkSync(network) !== readlinkSync('/proc/self/ns/net'));
  const setUp = names.map(
    (name) => `ip tuntap add ${devices[name]} mode tap
ip address add 169.254.169.254/32 dev ${devices[name]}
ip link set ${devices[name]} up
ip route add ${addresses[name]}/32 dev ${devices[name]}
ip route add ${behind[name].network}.0/24 via ${addresses[name]} dev ${devices[name]} onlink`,
  );
  const within = ['nsenter', `--net=${network}`] as const;
  execFileSync(within[0], [within[1], 'sh', '-ec', ['ip link set lo up', ...setUp].join('\n')]);

  const machine = new UpMachine(t);
  const program = join(machine.directory, 'porthole-within');
  // Where udev runs everybody may open it.
  const ownTun = 'mount -t tmpfs -o mode=0755 tun /dev/net && mknod -m 0666 /dev/net/tun c 10 200 && exec "$0" "$@"';
  const command = `${within.join(' ')} unshare --mount --propagation private sh -c '${ownTun}' '${machine.program}'`;
  writeFileSync(program, `#!/bin/sh\nexec ${command} "$@"\n`, { mode: 0o755 });
  machine.program = program;
  await machine.spawn();
  await machine.tinyImage();
  const { client } = machine;
  const made = names.map((name) =>
    client.call('createVm', {
      body: {
        name,
        type: 'nano',
        image: { name: 'tiny' },
        network: { mode: 'tap', device: devices[name] },
        metadataServer: { ways: ['network'], ...(behind[name].hopLimit && { hopLimit: behind[name].hopLimit }) },
        spec: `porthole: 1\nmetadata: { instance: { id: i-${name} } }`,
      },
    }),
  );
  for (const operation of await Promise.all(made)) await machine.done(operation);
  const idOf = async (name: string): Promise<string | undefined> =>
    /instance-id: "i-(\w+)"/.exec(await machine.type(name, 'wget -qO- http://169.254.169.254/nocloud/meta-data'))?.[1];
  for (const name of names) {
    await machine.untilReady(name);
    await machine.type(
      name,
      `ip link set eth0 up; ip address flush dev eth0; ip address add ${addresses[name]}/32 dev eth0; ip route add 169.254.169.254/32 dev eth0`,
    );
    assert.equal(await idOf(name), name);
  }
  const claim = async (nonce: string): Promise<number> =>
    statusOf(await machine.type('one', overNetwork(claimOf(nonce))));
  assert.equal(await claim('u'), 403);
  const settings = '/proc/sys/net/ipv4';
  await machine.type(
    'one',
    `echo 600 >${settings}/ip_unprivileged_port_start; echo 600 1000 >${settings}/ip_local_port_range`,
  );
  assert.equal(await claim('r'), 200, 'only root can have such ports');

  const asked = (seconds: string, within = ''): string =>
    `printf '${requestOf('GET', '/nocloud/meta-data')}' | ${within} nc -w ${seconds} 169.254.169.254 80`;
  await t.test('who is behind a guest that forwards packets is answered as far as the hop limit goes', async () => {
    for (const name of names) {
      const { network, hopLimit } = behind[name];
      await machine.type(
        name,
        `modprobe veth; ip link add out type veth; ip address add ${network}.1/24 dev out; ip link set out up
echo 1 >/proc/sys/net/ipv4/ip_forward
unshare -n sleep 3600 & P=$!
while [ "$(readlink /proc/$P/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link set veth0 netns $P
nsenter -t $P -n sh -c 'ip address add ${network}.2/24 dev veth0; ip link set veth0 up; ip route add default via ${network}.1'`,
      );
      const inside = `nsenter -t $P -n`;
      assert.match(await machine.type(name, `${inside} ping -c 3 169.254.169.254`), /[1-3] packets received/);
      const printed = await machine.type(name, `${asked('2', inside)}; echo "ended $?"`);
      assert.match(printed, hopLimit === undefined ? /^ended 1$/m : new RegExp(`instance-id: "i-${name}"`));
      assert.equal(await idOf(name), name, 'the guest itself is answered');
    }
  });

  await t.test('not by the other one’s address either', async () => {
    await machine.type(
      'two',
      `ip address add ${addresses.one}/32 dev eth0; ip address del ${addresses.two}/32 dev eth0`,
    );
    assert.doesNotMatch(await machine.type('two', asked('2')), /i-one/);
    const { metadataServer } = await client.call('getVm', { params: { name: 'one' } });
    assert.equal(metadataServer?.token?.state, 'claimed');
  });
});
