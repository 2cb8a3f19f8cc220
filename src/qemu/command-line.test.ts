import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { commandLine } from './command-line.ts';
import { QemuError } from './error.ts';
import type { VmMachine } from './machine.ts';

const sockets = { qmp: '/run/p/qmp.sock', watch: '/run/p/qmp-watch.sock', serial: '/run/p/serial.sock' };
const kernelBoot: VmMachine = {
  name: 'web-1',
  type: { cpus: 1, memoryMiB: 256 },
  accelerator: 'tcg',
  architecture: 'x64',
  boot: { from: 'kernel', kernel: '/i/kernel', initrd: '/i/initrd', commandLine: 'quiet' },
  disks: [],
  sockets,
};
const everything: VmMachine = {
  ...kernelBoot,
  uuid: '0d9a6a4e-5f1c-4d0e-9d3c-6a4f4b1b7c11',
  type: { cpus: 4, memoryMiB: 2048 },
  accelerator: 'kvm',
  boot: { from: 'disk' },
  disks: [
    { path: '/s/disk.qcow2', format: 'qcow2', base: { path: '/s/base.qcow2', format: 'qcow2' }, serial: 'root' },
    { path: '/s/seed.raw', format: 'raw', readOnly: true },
  ],
  network: {
    kind: 'user',
    mac: '52:54:00:12:34:56',
    forwards: [
      { protocol: 'tcp', hostPort: 2222, guestPort: 22 },
      { protocol: 'udp', hostAddress: '0.0.0.0', hostPort: 5353, guestPort: 53 },
    ],
  },
  virtiofs: { socket: '/run/p/fs.sock' },
};

/** One option a line, as people read it. */
const lines = (machine: VmMachine): string[] => {
  const { program, args } = commandLine(machine);
  return [program, ...args.join(' ').split(/ (?=-[a-zA-Z])/)];
};

test('commandLine of a kernel boot is exactly this', () => {
  assert.deepEqual(lines(kernelBoot), [
    'qemu-system-x86_64',
    '-name guest=web-1,debug-threads=on',
    '-nodefaults',
    '-no-user-config',
    '-display none',
    '-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny',
    '-msg timestamp=on',
    '-action reboot=shutdown,panic=shutdown',
    '-S',
    '-accel tcg,tb-size=256',
    '-cpu max',
    '-machine q35,hpet=off,smm=off,vmport=off,i8042=off,sata=off,smbus=off,memory-backend=mem',
    '-smp 1',
    '-m 256M',
    '-object memory-backend-memfd,id=mem,size=256M,share=on',
    '-kernel /i/kernel',
    '-initrd /i/initrd',
    '-append console=ttyS0 quiet',
    '-chardev socket,id=qmp,path=/run/p/qmp.sock,server=on,wait=off',
    '-mon chardev=qmp,mode=control',
    '-chardev socket,id=watch,path=/run/p/qmp-watch.sock,server=on,wait=off',
    '-mon chardev=watch,mode=control',
    '-chardev socket,id=serial,path=/run/p/serial.sock,server=on,wait=off',
    '-serial chardev:serial',
    '-object rng-builtin,id=rng',
    '-device virtio-rng-pci,rng=rng,max-bytes=4096,period=1000',
    '-device pvpanic-pci',
  ]);
});

test('commandLine of a machine with everything is exactly this', () => {
  const changed = lines(everything).filter((line) => !lines(kernelBoot).includes(line));
  assert.deepEqual(changed, [
    '-uuid 0d9a6a4e-5f1c-4d0e-9d3c-6a4f4b1b7c11',
    '-accel kvm',
    '-cpu host',
    '-smp 4',
    '-m 2048M',
    '-object memory-backend-memfd,id=mem,size=2048M,share=on',
    '-blockdev driver=qcow2,node-name=disk0,read-only=off,discard=unmap,file.driver=file,file.filename=/s/disk.qcow2,backing.driver=qcow2,backing.read-only=on,backing.file.driver=file,backing.file.filename=/s/base.qcow2,backing.file.read-only=on',
    '-device virtio-blk-pci,drive=disk0,id=disk0-device,serial=root,bootindex=0',
    '-blockdev driver=raw,node-name=disk1,read-only=on,discard=unmap,file.driver=file,file.filename=/s/seed.raw',
    '-device virtio-blk-pci,drive=disk1,id=disk1-device,bootindex=1',
    '-netdev user,id=net0,restrict=off,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:0.0.0.0:5353-:53',
    '-device virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=',
    '-chardev socket,id=metadata,path=/run/p/fs.sock',
    '-device vhost-user-fs-pci,chardev=metadata,tag=metadata,queue-size=1024',
  ]);
});

test('commandLine of a tap, of firmware, and of arm64', () => {
  const tap = commandLine({ ...kernelBoot, network: { kind: 'tap', interfaceName: 'ph-web-1' } });
  assert.ok(tap.args.includes('tap,id=net0,ifname=ph-web-1,script=no,downscript=no'));
  const firmware = commandLine({ ...everything, architecture: 'arm64', boot: { from: 'disk', firmware: '/f/efi.fd' } });
  assert.equal(firmware.program, 'qemu-system-aarch64');
  assert.equal(firmware.args[firmware.args.indexOf('-bios') + 1], '/f/efi.fd');
  assert.ok(firmware.args.includes('virt,memory-backend=mem'));
  assert.ok(commandLine({ ...kernelBoot, architecture: 'arm64' }).args.includes('console=ttyAMA0 quiet'));
});

test('commandLine lets QEMU start programs for a relay alone, and those gain no rights', () => {
  const relay = { address: '169.254.169.254', port: 80, socket: '/run/p/n.sock' };
  const relayed = lines({ ...kernelBoot, network: { kind: 'user', forwards: [], isolated: true, relay } });
  const without = lines({ ...kernelBoot, network: { kind: 'user', forwards: [], isolated: true } });
  assert.deepEqual(
    relayed.filter((line) => !without.includes(line)),
    [
      '-sandbox on,obsolete=deny,elevateprivileges=allow,spawn=allow,resourcecontrol=deny',
      '-object main-loop,id=main-loop,thread-pool-min=16,thread-pool-max=16',
      '-netdev user,id=net0,restrict=on,net=169.254.169.0/24,guestfwd=tcp:169.254.169.254:80-cmd:/usr/bin/socat',
      '-lf /dev/null',
      '-t 30 - UNIX-CONNECT:/run/p/n.sock',
    ],
  );
  for (const socket of ['/run/p q/n.sock', '/run/p,q/n.sock', '/run/p:q/n.sock', "/run/'/n.sock"])
    assert.throws(
      () => commandLine({ ...kernelBoot, network: { kind: 'user', forwards: [], relay: { ...relay, socket } } }),
      /a relay cannot lead to .*; use a run directory/,
    );
});

test('commandLine gives a machine the port of its metadata server', () => {
  const changed = lines({ ...kernelBoot, metadata: { socket: '/run/p/s.sock' } }).slice(-3);
  assert.deepEqual(changed, [
    '-device virtio-serial-pci,id=metadata-port,max_ports=2',
    '-chardev socket,id=metadata-server,path=/run/p/s.sock,reconnect=1',
    '-device virtserialport,bus=metadata-port.0,nr=1,chardev=metadata-server,name=org.porthole.metadata',
  ]);
});

test('commandLine of a network disk has its key nowhere', () => {
  const networkDisk = { address: 'fd00::1', port: 10_809, name: 'i-1', keyDirectory: '/run/p/a,b' };
  const { args } = commandLine({ ...kernelBoot, networkDisk });
  assert.deepEqual(args.slice(-6), [
    '-object',
    'tls-creds-psk,id=disk-key,endpoint=client,username=porthole,dir=/run/p/a,,b',
    '-blockdev',
    'driver=raw,node-name=network-disk,discard=unmap,file.driver=nbd,file.server.type=inet,file.server.host=fd00::1,file.server.port=10809,file.export=i-1,file.tls-creds=disk-key,file.reconnect-delay=60,file.open-timeout=60',
    '-device',
    'virtio-blk-pci,drive=network-disk,id=network-disk-device',
  ]);
  for (const wrong of [{ address: 'disks.example' }, { port: 0 }, { keyDirectory: 'run' }])
    assert.throws(() => commandLine({ ...kernelBoot, networkDisk: { ...networkDisk, ...wrong } }), {
      code: 'MACHINE_INVALID',
    });
});

/** Reads `key=value,…` as QEMU does (util/keyval.c): a comma ends a value unless it is doubled. */
function parsed(option: string): Record<string, string> {
  const values: Record<string, string> = {};
  for (const [, key, value] of option.matchAll(/([^,=]+)(?:=((?:[^,]|,,)*))?(?:,|$)/g))
    values[key!] = (value ?? '').replaceAll(',,', ',');
  return values;
}

test('commandLine lets no value add an option', () => {
  const path = fc.string({ unit: fc.constantFrom('a', ',', '=', '-', ' ', '"', '\\', '%', ':'), maxLength: 60 });
  fc.assert(
    fc.property(path, path, (one, two) => {
      const { args } = commandLine({
        ...everything,
        disks: [{ path: `/${one}`, format: 'raw', base: { path: `/${two}`, format: 'raw' } }],
        virtiofs: { socket: `/${two}` },
        sockets: { ...sockets, qmp: `/${one}` },
      });
      assert.equal(args.length, commandLine({ ...everything, disks: everything.disks.slice(0, 1) }).args.length);
      const after = (option: string, index: number): Record<string, string> =>
        parsed(args.filter((_, at) => args[at - 1] === option)[index]!);
      assert.deepEqual(after('-chardev', 0), { socket: '', id: 'qmp', path: `/${one}`, server: 'on', wait: 'off' });
      assert.deepEqual(after('-chardev', 3), { socket: '', id: 'metadata', path: `/${two}` });
      assert.deepEqual(after('-blockdev', 0), {
        driver: 'raw',
        'node-name': 'disk0',
        'read-only': 'off',
        discard: 'unmap',
        'file.driver': 'file',
        'file.filename': `/${one}`,
        'backing.driver': 'raw',
        'backing.read-only': 'on',
        'backing.file.driver': 'file',
        'backing.file.filename': `/${two}`,
        'backing.file.read-only': 'on',
      });
    }),
  );
});

test('commandLine refuses what a machine must not be, and says what would be right', () => {
  const refuses = (changes: Partial<VmMachine>, pattern: RegExp): void =>
    assert.throws(
      () => commandLine({ ...everything, ...changes }),
      (error) => error instanceof QemuError && error.code === 'MACHINE_INVALID' && pattern.test(error.message),
      String(pattern),
    );
  for (const name of ['', 'Web', '-a', 'a-', 'a,b', 'a b', 'a\n', 'x'.repeat(64), 'é'])
    refuses({ name }, /cannot be named/);
  refuses({ uuid: 'x' }, /no UUID/);
  for (const cpus of [0, 1.5, 256, Number.NaN]) refuses({ type: { cpus, memoryMiB: 64 } }, /vCPUs; give 1 to 255/);
  for (const memoryMiB of [0, 8, 64.5]) refuses({ type: { cpus: 1, memoryMiB } }, /MiB of memory; give 16/);
  refuses({ disks: [] }, /boots from its disk and has none/);
  refuses({ disks: [{ path: 'disk', format: 'raw' }] }, /the disk "disk" is no absolute path/);
  refuses({ disks: [{ path: '/a\0b', format: 'raw' }] }, /is no absolute path without control characters/);
  refuses({ disks: [{ path: '/d', format: 'raw', serial: 'a,b' }] }, /serial cannot be "a,b"/);
  refuses(
    { disks: Array.from({ length: 17 }, () => ({ path: '/d', format: 'raw' as const })) },
    /17 disks; at most 16/,
  );
  refuses({ boot: { from: 'kernel', kernel: '/k', commandLine: 'a\nb' } }, /one line of at most 2000 bytes/);
  refuses({ boot: { from: 'kernel', kernel: '-k', commandLine: '' } }, /the kernel "-k"/);
  refuses({ network: { kind: 'tap', interfaceName: 'a,b' } }, /interface cannot be named "a,b"/);
  refuses({ network: { kind: 'tap', interfaceName: 'tap0', mac: '53:54:00:12:34:56' } }, /no unicast MAC/);
  const forward = (change: object) => ({
    kind: 'user' as const,
    forwards: [{ protocol: 'tcp' as const, hostPort: 1, guestPort: 1, ...change }],
  });
  refuses({ network: forward({ hostPort: 0 }) }, /0 is no port/);
  refuses({ network: forward({ guestPort: 65_536 }) }, /65536 is no port/);
  refuses({ network: forward({ hostAddress: '::1' }) }, /IPv4 address only, not "::1"/);
  refuses({ network: forward({ hostAddress: '1.2.3.4,x' }) }, /IPv4 address only/);
  const long = `/${'x'.repeat(107)}`;
  refuses(
    { virtiofs: { socket: long } },
    /virtiofs socket has 108 bytes, and a socket's may have 107: .*; use a shorter run/,
  );
  refuses({ sockets: { ...sockets, serial: long } }, /serial port has 108 bytes/);
});
