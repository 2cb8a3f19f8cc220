/**
 * The Debian disk in a machine of somebody else's: cloud-init by EC2's API, the directory by the agent alone.
 * By hand: PORTHOLE_AGENT_KILLS=20 kills the agent that often, PORTHOLE_OTHER_AGENT=FILE upgrades to that one before,
 * PORTHOLE_CONFORMANCE=all runs the whole suite over its mount, PORTHOLE_BOOTS=all boots the machine anew.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { AgentGuestDriver } from '../conformance/agent-guest.ts';
import { agentProgram } from '../conformance/posix-agent.ts';
import { conformance } from '../conformance/suite.ts';
import { cloudConfig } from '../debian/cloud-config.ts';
import { debianDisk } from '../debian/image.ts';
import { MachineElsewhere } from '../debian/machine-elsewhere.ts';
import { GuestShell } from '../debian/shell.ts';
import { clientsRoot } from '../tools/imds/packages.ts';
import { until } from '../until.ts';
import { bootLimitMs, UpMachine } from '../up/machine.ts';
import { runPorthole } from '../up/porthole.ts';

const kills = Number(process.env['PORTHOLE_AGENT_KILLS'] ?? 1);
const otherAgent = process.env['PORTHOLE_OTHER_AGENT'];
const bootsAnew = process.env['PORTHOLE_BOOTS'] === 'all';
const directory = mkdtempSync(path.join(tmpdir(), 'ph-else-'));
const keyFile = path.join(directory, 'key');
execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'me@work', '-f', keyFile]);
const key = readFileSync(`${keyFile}.pub`, 'utf8').trim();
const mac = '52:54:00:0a:0b:0c';
const secrets = {
  'db-password': 'of db alone, 3kLm',
  'by-program': 'of a program of db alone, 7pQx',
  'by-unit': 'of a unit of db alone, 5tRw',
  unopened: 'that nobody opens, 9hYc',
};
const mounted = '/run/metadata';
const spec = JSON.stringify({
  porthole: 1,
  metadata: {
    instance: { id: 'i-0002', hostname: 'db-2', zone: 'eu-1a', version: '1' },
    network: { mac },
    user: { 'ssh-keys': key },
    'cloud-init': {
      'user-data': cloudConfig({
        services: { db: 900, web: 901 },
        secret: `${mounted}/secrets/by-unit`,
        once: ['echo once >>/root/ran', 'mkdir /opt/test && tar -xf /dev/vdb -C /opt/test'],
      }),
    },
    secrets,
    guest: {},
  },
  users: { db: 900 },
  policy: [
    { path: '/cloud-init/user-data', facade: true },
    { path: '/secrets/*', owner: 'db', mode: '0400', root: 'deny' },
    { path: '/secrets/by-program', program: '/usr/local/bin/reader' },
    { path: '/secrets/by-unit', unit: 'db.service' },
  ],
});

/** Says on the console that it was reached, in the early boot, behind the agent. */
const marker = 'behind the agent';
const earlyUnits = {
  marker: `[Unit]
DefaultDependencies=no
After=porthole-agent.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo ${marker} >/dev/console'
[Install]
WantedBy=sysinit.target
`,
  thief: `[Unit]
DefaultDependencies=no
Wants=modprobe@vmw_vsock_virtio_transport.service
After=modprobe@vmw_vsock_virtio_transport.service
Before=porthole-agent.service
[Service]
Type=oneshot
ExecStart=python3 /opt/test/claim.py cccccccccccccccccccccccccccccccc 1023
[Install]
WantedBy=sysinit.target
`,
};

const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
};

/** What the tests need in the guest, as the archive that is its second disk. */
const archive = (directory: string): string => {
  const content = path.join(directory, 'second');
  mkdirSync(content);
  for (const file of ['claim.py', 'fetcher.py', 'search.py'])
    copyFileSync(path.join(import.meta.dirname, '../debian/guest', file), path.join(content, file));
  copyFileSync(path.join(clientsRoot(), 'usr/bin/ec2-metadata'), path.join(content, 'ec2-metadata'));
  copyFileSync(agentProgram(), path.join(content, 'posix-agent'));
  if (otherAgent !== undefined) copyFileSync(otherAgent, path.join(content, 'other-agent'));
  execFileSync('tar', ['-cf', `${content}.tar`, '-C', content, '.']);
  return `${content}.tar`;
};

describe('the Debian disk with the agent alone', () => {
  const conformanceSocket = path.join(directory, 'conformance.sock');
  const ends: (() => unknown)[] = [];
  const host = new UpMachine({ after: (end) => void ends.push(end as () => unknown) });
  const params = { name: 'one' };
  let sshPort: number;
  let machine: MachineElsewhere;
  let shell: GuestShell;
  /** A boot that is told of, from the disk as it is. */
  let boot: (serial?: string) => Promise<void>;

  before(async () => {
    const disk = debianDisk();
    await host.start();
    const metadataServer = { ways: ['vsock' as const, 'serial' as const, 'socket' as const] };
    await host.done(
      await host.client.call('createVm', {
        body: { ...params, kind: 'attached', vsock: true, metadataServer, spec },
      }),
    );
    const run = path.join(host.directory, 'run/vms/one');
    const second = archive(directory);
    sshPort = await freePort();
    boot = async (serial) => {
      await host.client.call('tellBoot', { params });
      machine = new MachineElsewhere({
        directory,
        disk,
        mac,
        sshPort,
        serial,
        second,
        vsockFront: path.join(run, 'fs/vsock.vhost-user'),
        relays: { '169.254.169.254': path.join(run, 'imds/any.sock'), '169.254.169.253': conformanceSocket },
      });
    };
    await boot();
    shell = new GuestShell(path.join(run, 'fs/vsock'));
    await shell.untilReady(machine.check, 3 * bootLimitMs);
  });
  after(async () => {
    await machine?.[Symbol.asyncDispose]();
    for (const end of ends) await end();
    rmSync(directory, { recursive: true });
  });

  test("cloud-init took name, users, keys and what runs once from EC2's API", async () => {
    const said = await shell.sh('hostname; cloud-id; id -u db; cat /root/ran ~debian/.ssh/authorized_keys');
    assert.deepEqual(said.trim().split('\n'), ['db-2', 'aws', '900', 'once', key]);
  });

  test('the agent mounted the tree before cloud-init, over vsock', async () => {
    assert.equal(
      (await shell.sh(`findmnt -no FSTYPE ${mounted}; cat ${mounted}/instance/hostname`)).trim(),
      'fuse.porthole\ndb-2',
    );
    const [agent, cloudInit] = (
      await shell.sh(
        'systemctl show -P ActiveEnterTimestampMonotonic porthole-agent; systemctl show -P ExecMainStartTimestampMonotonic cloud-init-local',
      )
    )
      .trim()
      .split('\n')
      .map(Number);
    assert.ok(agent! > 0 && agent! < cloudInit!, `${agent} < ${cloudInit}`);
  });

  test('who has the key that cloud-init took logs in', async () => {
    const options = ['BatchMode=yes', 'StrictHostKeyChecking=no', `UserKnownHostsFile=${directory}/known`];
    const words = ['-i', keyFile, '-p', String(sshPort), ...options.flatMap((option) => ['-o', option])];
    const file = `${mounted}/secrets/db-password`;
    const login = spawn('ssh', [...words, 'debian@127.0.0.1', `id -un; cat ${file}; cat ${mounted}/instance/id`]);
    const [out, err] = await Promise.all([text(login.stdout), text(login.stderr)]);
    assert.equal(out, 'debian\ni-0002', err);
    assert.match(err, /Permission denied\s*$/);
  });

  test("porthole vm top shows the guest's inside as its agent tells it", async () => {
    const { out } = await until('the agent to have told of it', async () => {
      const top = await runPorthole(host, 'vm', 'top', 'one');
      return top.code === 0 && /porthole-agent/.test(top.out) && top;
    });
    assert.match(out, /systemd/);
  });

  test('rules by user, program and unit hold, also against a name that is faked in a namespace', async () => {
    const as = (user: string, command: string): string =>
      `setpriv --reuid ${user} --regid ${user} --clear-groups ${command}`;
    const file = (name: keyof typeof secrets): string => `${mounted}/secrets/${name}`;
    await shell.sh('install -m 0755 /bin/cat /usr/local/bin/reader');
    assert.equal(await shell.sh(as('db', `cat ${file('db-password')}`)), secrets['db-password']);
    assert.equal(await shell.sh(as('db', `/usr/local/bin/reader ${file('by-program')}`)), secrets['by-program']);
    assert.equal(await shell.sh('cat /run/db.out'), secrets['by-unit']);
    assert.match(await shell.sh('cat /run/web.err'), /Permission denied/);
    const fake = `mount --bind /bin/cat /usr/local/bin/reader && exec /usr/local/bin/reader ${file('by-program')}`;
    for (const refused of [
      `cat ${file('db-password')}`,
      as('web', `cat ${file('db-password')}`),
      `su - debian -c 'cat ${file('db-password')}'`,
      as('db', `cat ${file('by-program')}`),
      as('db', `unshare --user --map-root-user --mount sh -c '${fake}'`),
      as('db', `cat ${file('by-unit')}`),
    ])
      assert.match((await shell.run(refused)).out, /Permission denied/, refused);
  });

  test("a search of the agent's memory and of the disk finds no secret that nobody opened", async () => {
    // Public, so that the search is known to find.
    const known = 'eu-1a';
    const found = JSON.parse(
      await shell.sh(
        `python3 /opt/test/search.py $(systemctl show -P MainPID porthole-agent) <<E\n${known}\n${secrets.unopened}\nE`,
      ),
    ) as string[];
    assert.deepEqual(found, [known]);
    await shell.sh('sync');
    const inDisk = (text: string): boolean => spawnSync('grep', ['-qaF', '-e', text, machine.disk]).status === 0;
    assert.deepEqual([inDisk(key), inDisk(secrets.unopened)], [true, false]);
  });

  test('curl, ec2-metadata and two programs at once get each what they asked for', async () => {
    const said = await shell.sh('bash /opt/test/ec2-metadata -i -h -z');
    for (const line of ['instance-id: i-0002', 'local-hostname: db-2', 'placement: eu-1a'])
      assert.match(said, new RegExp(`^${line}$`, 'm'));
    const ask = (what: string): string =>
      `for i in 1 2 3 4 5 6 7 8 9 10; do curl -sSf http://169.254.169.254/${what}; echo; done | sort | uniq -c`;
    const [meta, network] = ['nocloud/meta-data', 'openstack/latest/meta_data.json'];
    const both = await shell.sh(
      `{ ${ask(meta!)} >/tmp/a & ${ask(network!)} >/tmp/b; wait; cat /tmp/a; echo --; cat /tmp/b; }`,
    );
    const [a, b] = both.split('--\n');
    for (const line of a!.trim().split('\n'))
      assert.match(line, /^\s*10 .*(instance-id|local-hostname|public-keys)|^\s*10\s*$/);
    for (const line of b!.trim().split('\n')) assert.match(line, /^\s*(10|20) /);
    assert.ok(!a!.includes('uuid') && b!.includes('uuid'));
  });

  test('a web service that fetches whatever it is told gets no token, and nothing that is not for everybody', async () => {
    await shell.sh(
      'systemd-run --unit fetcher -p User=web python3 /opt/test/fetcher.py 8080; until curl -s localhost:8080 -o /dev/null; do sleep 0.1; done',
    );
    type Answer = { readonly status: number; readonly body: string };
    const fetch = async (wish: Readonly<Record<string, unknown>>): Promise<Answer> => {
      const text = JSON.stringify({ ...wish, url: `http://169.254.169.254/${String(wish['url'])}` });
      return JSON.parse(await shell.sh(`curl -sSf --data-binary @- localhost:8080 <<'E'\n${text}\nE`)) as Answer;
    };
    const json = { 'content-type': 'application/json' };
    const native = (name: string, body: unknown) => ({
      url: `porthole/v1/${name}`,
      method: 'POST',
      headers: json,
      body: JSON.stringify(body),
    });
    const place = { caller: { uid: 900, gid: 900, pid: 1 }, node: '/secrets/db-password', access: 'read' };
    assert.equal((await fetch(native('token', { nonce: 'n'.repeat(32) }))).status, 403);
    assert.equal((await fetch(native('open', place))).status, 401);
    assert.equal((await fetch({ url: 'porthole/v1/tree' })).status, 401);
    assert.equal((await fetch({ url: 'latest/meta-data/' })).status, 401);
    const session = await fetch({
      url: 'latest/api/token',
      method: 'PUT',
      headers: { 'x-aws-ec2-metadata-token-ttl-seconds': '60' },
    });
    const ec2 = { 'x-aws-ec2-metadata-token': session.body };
    const gce = { 'metadata-flavor': 'Google' };
    const answers = await Promise.all(
      [
        { url: 'latest/meta-data/instance-id', headers: ec2 },
        { url: 'latest/meta-data/iam/security-credentials/', headers: ec2 },
        { url: 'latest/meta-data/../secrets/db-password', headers: ec2 },
        { url: 'computeMetadata/v1/?recursive=true', headers: gce },
        { url: 'openstack/latest/meta_data.json' },
        { url: 'nocloud/meta-data' },
        { url: 'secrets/db-password' },
      ].map(fetch),
    );
    assert.deepEqual(
      answers.map(({ status }) => status),
      [200, 404, 400, 200, 200, 200, 404],
    );
    const all = JSON.stringify([session, ...answers]);
    for (const secret of Object.values(secrets)) assert.ok(!all.includes(secret), 'a secret got out');
    const { status } = await host.client.call('getVm', { params });
    assert.equal(status, 'running');
  });

  test('the mount and the token survive an agent that is upgraded under load, and killed', async (t) => {
    const mountId = () => shell.sh(`grep ' ${mounted} ' /proc/self/mountinfo | cut -d' ' -f1`);
    const mount = await mountId();
    // Readers and writers that end when they are told to, and write down what failed.
    await shell.sh(`rm -f /run/load.*; touch /run/load.on
for n in 1 2 3; do
  (exec >/dev/null 2>>/run/load.err; i=0; while [ -e /run/load.on ]; do
    cat ${mounted}/instance/hostname; echo $n $((i += 1)) >${mounted}/guest/$n; ls ${mounted}
    setpriv --reuid db --regid db --clear-groups cat ${mounted}/secrets/db-password
  done; echo $i >>/run/load.done) </dev/null &
done
disown -a`);
    const successor = `p=$(systemctl show -P MainPID porthole-agent)
systemctl kill -s KILL porthole-agent
until n=$(systemctl show -P MainPID porthole-agent); [ $n != $p ] && systemctl -q is-active porthole-agent; do sleep 0.1; done`;
    // Node knows no vsock, which the shell has for its output, and would say nothing.
    const version = () => shell.sh('porthole-agent --version | cat');
    const before = await version();
    const other = otherAgent === undefined ? '/usr/bin/porthole-agent' : '/opt/test/other-agent';
    await shell.sh(`install -m 0755 ${other} /usr/bin/new && mv /usr/bin/new /usr/bin/porthole-agent`);
    await shell.sh('systemctl restart porthole-agent');
    assert.equal((await version()) === before, otherAgent === undefined);
    for (let i = 0; i < kills; i++) await shell.sh(successor);
    assert.equal(await mountId(), mount);
    await shell.sh('rm /run/load.on; until [ "$(wc -l 2>/dev/null </run/load.done)" = 3 ]; do sleep 0.1; done');
    assert.equal(await shell.sh('cat /run/load.err'), '');
    t.diagnostic(`turns of the load: ${(await shell.sh('cat /run/load.done')).trim().split('\n').join(' ')}`);
  });

  test('an agent that is stopped and started has its token again, and the tree', async () => {
    await shell.sh('systemctl stop porthole-agent');
    assert.equal((await shell.run(`mountpoint -q ${mounted}`)).code, 32);
    await shell.sh('systemctl start porthole-agent');
    assert.equal(await shell.sh(`cat ${mounted}/instance/hostname`), 'db-2');
  });

  if (bootsAnew)
    test('a machine that reboots itself has another token, by a virtio-serial port too, and its files', async () => {
      const { bootId, metadataServer } = await host.client.call('getVm', { params });
      assert.equal(metadataServer?.token?.state, 'used');
      await shell.sh(`echo kept >${mounted}/guest/kept; chmod 0600 ${mounted}/guest/kept`);
      for (const [name, unit] of Object.entries(earlyUnits))
        await shell.sh(`cat >/etc/systemd/system/${name}.service <<'E'\n${unit}\nE`);
      await shell.sh('systemctl enable marker');
      await shell.run('systemctl reboot').catch(() => undefined);
      await machine.untilOff(bootLimitMs);
      await boot(path.join(host.directory, 'run/vms/one/imds/s.sock'));
      await shell.untilReady(machine.check, 3 * bootLimitMs);
      assert.ok(machine.console.includes(marker));
      const said = await shell.sh(
        `cat ${mounted}/instance/hostname; echo; cat ${mounted}/guest/kept /root/ran; tr '\\0' ' ' </proc/$(systemctl show -P MainPID porthole-agent)/cmdline`,
      );
      assert.match(said, /^db-2\nkept\nonce\n.*--server virtio-serial:/);
      const asDb = `setpriv --reuid db --regid db --clear-groups cat ${mounted}/secrets/db-password`;
      assert.equal(await shell.sh(asDb), secrets['db-password']);
      const after = await host.client.call('getVm', { params });
      assert.notEqual(after.bootId, bootId);
      assert.equal(after.metadataServer?.token?.state, 'used');
      await shell.sh('systemctl enable thief');
    });

  const claim = (who: string, nonce: string, port: number): string =>
    `setpriv --reuid ${who} --regid ${who} --clear-groups python3 /opt/test/claim.py ${nonce.repeat(32)} ${port} 2>&1`;

  if (process.env['PORTHOLE_CONFORMANCE'] === 'all')
    conformance(
      'agent',
      async () => {
        await shell.sh(`mkdir -p /run/conformance
systemd-run --unit conformance porthole-agent --server http://169.254.169.253:80 --mount /run/conformance`);
        return new AgentGuestDriver({
          socket: conformanceSocket,
          mountPath: '/run/conformance',
          program: '/opt/test/posix-agent',
          shell: () => shell.dial(),
        });
      },
      { by: 'in a Debian guest' },
    );

  test('an unprivileged program cannot ask for the token, and a privileged one comes too late', async () => {
    assert.match((await shell.run(claim('web', 'a', 1023))).out, /PermissionError/);
    assert.match(await shell.sh(claim('web', 'a', 5000)), /^403 /);
    assert.match(await shell.sh(claim('root', 'a', 1023)), /^409 /);
    assert.equal((await host.client.call('getVm', { params })).status, 'running');
    assert.equal(await shell.sh(`cat ${mounted}/instance/hostname`), 'db-2');
  });

  test('a privileged program that is faster than the agent has the machine ended, and on record', async () => {
    // Stopped in good order, the agent hands the token back.
    await shell.sh('systemctl stop porthole-agent');
    const first = await shell.sh(claim('root', 'b', 1023));
    assert.match(first, /^200 /);
    // As if the answer had been lost.
    assert.equal(await shell.sh(claim('root', 'b', 1022)), first);
    const asked = shell.run('systemctl start porthole-agent').catch(() => undefined);
    await machine.untilOff(bootLimitMs);
    await asked;
    assert.match(machine.console, /this machine may be somebody else's/);
    const { status, reason } = await host.client.call('getVm', { params });
    assert.equal(status, 'compromised');
    assert.match(reason, /asked for this boot's token before/);
    const { events } = await host.client.call('queryAudit', { query: { operation: 'token-compromised' } });
    assert.deepEqual(
      events.map(({ vm, verdict }) => [vm, verdict]),
      [['one', 'denied']],
    );
  });

  if (bootsAnew)
    test('a thief of the early boot is the last thing that the machine runs', async () => {
      await boot();
      await machine.untilOff(bootLimitMs);
      assert.match(machine.console, /this machine may be somebody else's/);
      assert.ok(!machine.console.includes(marker) && !/cloud-init|login:/.test(machine.console), machine.console);
      assert.equal((await host.client.call('getVm', { params })).status, 'compromised');
    });
});
