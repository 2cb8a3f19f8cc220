/** The Debian disk that `porthole image build debian` makes, as a VM of its own: what metadata alone makes of it. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { cloudConfig } from '../debian/cloud-config.ts';
import { debianDisk } from '../debian/image.ts';
import { GuestShell } from '../debian/shell.ts';
import { until } from '../until.ts';
import { bootLimitMs, UpMachine } from '../up/machine.ts';

const secret = 'of db alone, 8vQ2';
const key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@home';
const file = '/run/metadata/secrets/db-password';
/** `meta-data` is made of the rest. JSON is YAML. */
const spec = JSON.stringify({
  porthole: 1,
  metadata: {
    instance: { id: 'i-0001', hostname: 'web-1' },
    user: { 'ssh-keys': key },
    'cloud-init': {
      'user-data': cloudConfig({ services: { db: 900, web: 901 }, secret: file, once: ['echo once >>/root/ran'] }),
    },
    secrets: { 'db-password': secret },
  },
  users: { db: 900 },
  policy: [{ path: '/secrets/db-password', owner: 'db', mode: '0400', root: 'deny' }],
});

test('a VM of the Debian disk is what its metadata says, keeps a secret for the service that it is for, and powers off when asked to', async (t) => {
  const disk = debianDisk();
  const machine = new UpMachine(t);
  await machine.start();
  const { client, directory } = machine;
  await machine.done(await client.call('addImage', { body: { name: 'debian', version: '12', file: disk } }));
  const params = { name: 'one' };
  const wish = { type: 'small', image: { name: 'debian' }, network: { mode: 'none' }, vsock: true, spec } as const;
  await machine.done(await client.call('createVm', { body: { ...params, ...wish } }));
  const shell = new GuestShell(path.join(directory, 'run/vms/one/fs/vsock'));
  await shell.untilReady(() => {}, 3 * bootLimitMs);

  await t.test('cloud-init took name, users, keys and what runs once from the mounted tree', async () => {
    const said = await shell.sh(
      'hostname; cloud-id; id -u db; id -u debian; cat /root/ran ~debian/.ssh/authorized_keys',
    );
    assert.deepEqual(said.trim().split('\n'), ['web-1', 'nocloud', '900', '1000', 'once', key]);
    await until('a login', async () => /^web-1 login: root \(automatic login\)/m.test(await machine.console('one')));
    assert.notEqual(
      (await shell.run("su - debian -c 'su -c id </dev/null'")).code,
      0,
      'nobody becomes root for the asking',
    );
  });

  await t.test("a service reads its user's secret; another, a login user and root do not", async () => {
    assert.equal(await shell.sh('cat /run/db.out'), secret);
    assert.equal(await shell.sh('cat /run/web.out'), '');
    assert.match(await shell.sh('cat /run/web.err'), /Permission denied/);
    for (const asked of [`su - debian -c 'cat ${file}'`, `cat ${file}`])
      assert.match((await shell.run(asked)).out, /Permission denied/, asked);
    const { events } = await client.call('queryAudit', { query: { path: '/secrets/db-password', vm: 'one' } });
    assert.deepEqual(
      events.map(({ uid, verdict }) => [uid, verdict]),
      [
        [900, 'allowed'],
        [0, 'denied'],
      ],
    );
  });

  await machine.done(await client.call('stopVm', { params, body: { graceSeconds: 240 } }));
  const { status, reason } = await client.call('getVm', { params });
  assert.deepEqual([status, reason], ['stopped', 'the guest powered off when asked to']);
});
