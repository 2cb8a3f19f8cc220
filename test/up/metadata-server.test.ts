/** Metadata servers of real guests: by the network with nothing installed, by vsock, by a virtio-serial port; and the token. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { claimOf, overNetwork, overSerial, requestOf, statusOf } from './metadata-words.ts';

const specOf = (id: string): string => `porthole: 1
metadata:
  instance: { id: ${id} }
  secrets: { db: hunter2 }
`;

const statOf = (token: string): string => {
  const body = JSON.stringify({ caller: { uid: 0, gid: 0, pid: 1 }, node: '/secrets/db' });
  return requestOf('POST', '/porthole/v1/stat', { token, body });
};

const overVsock = (request: string, port: number | '' = '', as = ''): string =>
  `printf '${request}' | ${as} vsock connect 80 ${port} 2>&1`;

const tokenOf = (printed: string): string => /"token":"([\w-]{43})"/.exec(printed)![1]!;

const asUser = '/usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups';

/** 300 take all places of a VM's unit. */
const keptConnections = Number(process.env['PORTHOLE_KEPT_CONNECTIONS'] ?? 40);

test('a guest reaches its metadata server, its own alone, and its boot token is given out once', async (t) => {
  const machine = new UpMachine(t);
  await machine.spawn();
  const { client } = machine;
  await machine.tinyImage();
  const image = { name: 'tiny' };
  const create = (name: string, more: object) =>
    client.call('createVm', {
      body: { name, type: 'nano', image, restart: 'always', spec: specOf(`i-${name}`), ...more },
    });
  const made = await Promise.all([
    create('one', { vsock: true, metadataServer: { ways: ['network', 'vsock', 'serial'] } }),
    create('two', { diskBytes: 64 * 1024 * 1024, metadataServer: { ways: ['network'], facades: ['nocloud'] } }),
  ]);
  const show = () => client.call('getVm', { params: { name: 'one' } });
  const ready = async (name: string): Promise<void> => {
    await machine.untilReady(name);
    await machine.type(name, 'modprobe vmw_vsock_virtio_transport');
  };
  for (const operation of made) await machine.done(operation);

  await t.test('by the network, with nothing installed', async () => {
    for (const name of ['one', 'two']) {
      await ready(name);
      const printed = await machine.type(name, 'wget -qO- http://169.254.169.254/nocloud/meta-data');
      assert.match(printed, new RegExp(`^instance-id: "i-${name}"`), 'each has its own');
    }
    const session = await machine.type(
      'one',
      overNetwork(requestOf('PUT', '/latest/api/token', { headers: 'X-aws-ec2-metadata-token-ttl-seconds: 60' })),
    );
    const [, ec2] = /\r?\n\r?\n(\S+)\s*$/.exec(session)!;
    const headers = `X-aws-ec2-metadata-token: ${ec2}`;
    assert.match(
      await machine.type('one', overNetwork(requestOf('GET', '/latest/meta-data/instance-id', { headers }))),
      /i-one/,
    );
    assert.equal(statusOf(await machine.type('two', overNetwork(requestOf('PUT', '/latest/api/token')))), 404);
    assert.equal(statusOf(await machine.type('one', overNetwork(claimOf('n')))), 403, 'who asks there is not known');
    const status = readFileSync(`/proc/${machine.qemuPid('one')}/status`, 'utf8');
    assert.match(status, /^NoNewPrivs:\t1$/m, 'QEMU may start programs, and gains no right by it');
    assert.match(status, /^Seccomp:\t2$/m);
    // Two programs at the same time get their own answers.
    const both = await machine.type(
      'one',
      'for i in 1 2 3 4; do (wget -qO- http://169.254.169.254/nocloud/meta-data; wget -qO- http://169.254.169.254/nope || echo none) & done; wait',
    );
    assert.equal(both.match(/instance-id: "i-one"/g)?.length, 4, both);
  });

  await t.test(
    'by the network, of which a program that keeps connections has its share, and never the machine',
    async () => {
      const keep = `i=0; while [ $i -lt ${keptConnections} ]; do (sleep 900 | nc 169.254.169.254 80) & i=$((i+1)); done`;
      await machine.type('two', `${asUser} sh -c '${keep}' >/dev/null 2>&1 &`);
      const counted = async (name: string): Promise<number> =>
        (await client.call('getStatistics', { params: { name: 'two' } })).values[`metadata_server_${name}`] ?? 0;
      await until('some are refused', async () => (await counted('rejected_connections_total')) > 0);
      assert.ok((await counted('connections')) <= 32);
      // Each write wants a thread of QEMU's.
      const write = 'dd if=/dev/zero of=/dev/vda bs=64k count=16 seek=$((i*16)) conv=fsync 2>/dev/null';
      await machine.type('two', `(for i in 0 1 2 3 4 5 6 7 8 9; do ${write} & done; wait)`);
      assert.equal((await client.call('getVm', { params: { name: 'two' } })).status, 'running');
      const again = 'until wget -qO- http://169.254.169.254/nocloud/meta-data; do sleep 1; done 2>/dev/null';
      assert.match(await machine.type('two', `killall sleep; ${again}`), /instance-id: "i-two"/);
    },
  );

  let token = '';
  await t.test('by vsock, where only root may claim the token', async () => {
    assert.match(await machine.type('one', overVsock(requestOf('GET', '/nocloud/meta-data'))), /instance-id: "i-one"/);
    assert.equal(statusOf(await machine.type('one', overVsock(claimOf('u')))), 403);
    assert.match(await machine.type('one', overVsock(claimOf('u'), 600, asUser)), /EACCES/);
    assert.equal((await show()).metadataServer?.token?.state, 'unclaimed');
    const claimed = await machine.type('one', overVsock(claimOf('a'), 601));
    token = tokenOf(claimed);
    assert.equal(tokenOf(await machine.type('one', overVsock(claimOf('a'), 602))), token, 'its answer may be lost');
    assert.equal((await show()).metadataServer?.token?.state, 'claimed');
    assert.equal(statusOf(await machine.type('one', overVsock(statOf(token)))), 200);
    assert.equal(statusOf(await machine.type('one', overVsock(claimOf('b'), 603))), 409);
    const { status, metadataServer } = await show();
    assert.deepEqual(
      [status, metadataServer?.token?.state],
      ['running', 'used'],
      'after its first use nobody can harm',
    );
  });

  await t.test('by the virtio-serial port, from wherever whoever was there before was cut off', async () => {
    assert.match(
      await machine.type('one', overSerial(requestOf('GET', '/nocloud/meta-data'), 'instance-id')),
      /instance-id: "i-one"/,
    );
    assert.equal(statusOf(await machine.type('one', overSerial(statOf(token), 'HTTP/1'))), 200);
    assert.match(
      await machine.type('one', `/usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'cat <'$P 2>&1`),
      /ermission denied/,
    );
  });

  await t.test('over a daemon that is killed', async () => {
    await machine.kill('SIGKILL');
    await machine.spawn();
    assert.equal(statusOf(await machine.type('one', overVsock(statOf(token)))), 200);
    // Until QEMU has connected again there is nobody at the port's other end.
    await until(
      'the port to answer',
      async () => statusOf(await machine.type('one', overSerial(statOf(token), 'HTTP/1'))) === 200,
    );
  });

  await t.test('and a thief that is faster than the agent ends the machine', async () => {
    const before = (await show()).bootNumber;
    await client.call('writeConsole', { params: { name: 'one' }, body: Buffer.from('reboot -f\n') });
    await until(
      'the next boot',
      async () => {
        const { bootNumber, status } = await show();
        return bootNumber > before && status === 'running';
      },
      120_000,
    );
    await until('its shell', async () => (await machine.console('one')).split('tiny: ready').length > 2, 120_000);
    await ready('one');
    assert.equal(statusOf(await machine.type('one', overVsock(statOf(token)))), 401, 'the boot before has no token');
    assert.equal(statusOf(await machine.type('one', overVsock(claimOf('t'), 604))), 200, 'the thief');
    const agent = Buffer.from(`${overVsock(claimOf('a'), 605)}\n`);
    await client.call('writeConsole', { params: { name: 'one' }, body: agent });
    await until('the machine to be off', async () => (await show()).status === 'compromised', 60_000);
    assert.equal(machine.qemuPid('one'), undefined);
    const { reason, metadataServer } = await show();
    assert.match(reason, /asked for this boot's token before/);
    assert.equal(metadataServer?.token?.state, 'compromised');
    const { events } = await client.call('queryAudit', { query: { operation: 'token-compromised' } });
    assert.deepEqual(
      events.map(({ vm, verdict }) => [vm, verdict]),
      [['one', 'denied']],
    );
    // Nor does the next daemon start it; whoever looks at it does.
    await machine.kill('SIGKILL');
    await machine.spawn();
    assert.equal((await show()).status, 'compromised');
    await machine.done(await client.call('startVm', { params: { name: 'one' } }));
    const { status, metadataServer: anew } = await show();
    assert.deepEqual([status, anew?.token?.state], ['running', 'unclaimed']);
  });
});
