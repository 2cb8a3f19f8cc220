/** A machine that libvirt's own daemon starts, with what `porthole vm attach` prints. */
import assert from 'node:assert/strict';
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { tinyImage } from '../../images/tiny/image.ts';
import { quickArgs } from '../guest/own-vm.ts';
import { until } from '../until.ts';
import { connectAs } from './connect.ts';
import { Libvirt } from './libvirt.ts';
import { UpMachine } from './machine.ts';
import { claimOf, overSerial, requestOf, statusOf } from './metadata-words.ts';
import { runPorthole } from './porthole.ts';

const spec = `porthole: 1
metadata:
  instance: { hostname: web-1 }
  secrets: { db: hunter2 }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;
const domain = 'web 1';

test('libvirt starts the domain that porthole vm attach prints, and its boots are seen, daemon or not', async (t) => {
  const libvirt = new Libvirt(t);
  const machine = new UpMachine(t);
  const options = ['--attach-group', 'libvirt-qemu', '--libvirt', libvirt.uri];
  await Promise.all([machine.spawn(...options), libvirt.untilReady()]);

  // libvirt gives what its QEMU reads to that user.
  const { kernel, initramfs } = await tinyImage();
  const files = { kernel: join(machine.directory, 'kernel'), initrd: join(machine.directory, 'initrd') };
  copyFileSync(kernel, files.kernel);
  copyFileSync(initramfs, files.initrd);
  const specFile = join(machine.directory, 'web.yaml');
  writeFileSync(specFile, spec);
  const console = process.arch === 'arm64' ? 'ttyAMA0' : 'ttyS0';
  const attached = await runPorthole(
    machine,
    ...['vm', 'attach', 'web-1', '--metadata', specFile, '--domain', domain, '--for', 'libvirt-domain'],
    ...['--metadata-server', 'serial'],
    ...['--memory', '192M', '--kernel', files.kernel, '--initrd', files.initrd],
    ...['--append', `console=${console} ${quickArgs}`],
  );
  assert.deepEqual([attached.code, attached.err], [0, '']);
  const xml = join(machine.directory, 'web.xml');
  writeFileSync(xml, attached.out);

  const { socketPath } = await machine.client.call('getAttachment', { params: { name: 'web-1' }, query: {} });
  assert.equal(connectAs('nobody', socketPath), 'Permission denied');
  // As a VM of ours has one, and a device process: the next one's.
  assert.equal(connectAs(700_001, socketPath), 'Permission denied');
  assert.equal(connectAs('libvirt-qemu', socketPath), 'connected');

  const boots = async (name = 'web-1') => {
    const { bootNumber, bootId } = await machine.client.call('getVm', { params: { name } });
    return { bootNumber, bootId };
  };
  const untilBoot = (number: number, name = 'web-1') =>
    until(
      `boot ${number} of ${name}`,
      async () => {
        const boot = await boots(name);
        assert.ok(boot.bootNumber <= number, `it has had ${boot.bootNumber} boots`);
        return boot.bootNumber === number && boot.bootId;
      },
      60_000,
    );
  const ids = new Set<string>();

  assert.equal((await boots()).bootNumber, 0);
  await libvirt.virsh('create', xml);
  ids.add(await untilBoot(1));
  const guest = await libvirt.console(t, domain);
  await guest.ready();
  assert.match(await guest.type('grep virtiofs /proc/mounts'), /^metadata \/run\/metadata virtiofs /);
  assert.equal(await guest.type('cat /run/metadata/instance/hostname'), 'web-1');
  assert.equal(
    await guest.type('/usr/bin/setpriv --reuid 1000 --clear-groups cat /run/metadata/secrets/db'),
    'hunter2',
  );
  assert.match(
    await guest.type('/usr/bin/setpriv --reuid 1001 --clear-groups cat /run/metadata/secrets/db 2>&1'),
    /Permission denied/,
  );

  guest.write('reboot -f\n');
  ids.add(await untilBoot(2));
  await guest.ready(2);
  assert.equal(await guest.type('cat /run/metadata/instance/hostname'), 'web-1');

  // A daemon that comes back knows the life that it finds. Another VM of the same domain shows that it has looked.
  await machine.kill('SIGKILL');
  await machine.spawn(...options);
  const second = await runPorthole(machine, 'vm', 'attach', 'web-2', '--domain', domain);
  assert.deepEqual([second.code, second.err], [0, '']);
  await untilBoot(1, 'web-2');
  assert.equal((await boots()).bootNumber, 2);
  assert.equal(await guest.type('cat /run/metadata/instance/hostname'), 'web-1');

  await machine.kill('SIGKILL');
  await libvirt.virsh('destroy', domain);
  await libvirt.virsh('create', xml);
  const next = await libvirt.console(t, domain);
  await next.ready();
  assert.equal(await next.type('cat /run/metadata/instance/hostname'), 'web-1');
  await machine.spawn(...options);
  ids.add(await untilBoot(3));
  assert.equal(ids.size, 3, 'each boot has an id of its own');

  const overPort = (request: string, line: string) => next.type(overSerial(request, line));
  // Until QEMU has connected to the daemon that came back there is nobody at the port's other end.
  await until(
    'the metadata server by the virtio-serial port',
    async () => statusOf(await overPort(requestOf('GET', '/openstack'), 'HTTP/1')) === 200,
  );
  assert.equal(statusOf(await overPort(claimOf('t'), 'HTTP/1')), 200, 'the thief');
  next.write(`${overSerial(claimOf('a'), 'HTTP/1')}\n`);
  await until('libvirt to have destroyed it', async () => !(await libvirt.virsh('list', '--all')).includes(domain));
  const { status, reason } = await machine.client.call('getVm', { params: { name: 'web-1' } });
  assert.equal(status, 'compromised');
  assert.match(reason, /asked for this boot's token before/);
});
