/** From a machine's description to QEMU's arguments. Nothing that a user gives can add an option. */

import { checkMachine, type DiskAttachment, type PortForward, type Relay, type VmMachine } from './machine.ts';
import { diskKeyUser } from './network-disk.ts';

const programs = { x64: 'qemu-system-x86_64', arm64: 'qemu-system-aarch64' } as const;

/** Devices that our machines do without: what is not there is not attacked, and not probed at boot. */
const boards = { x64: 'q35,hpet=off,smm=off,vmport=off,i8042=off,sata=off,smbus=off', arm64: 'virt' } as const;

const consoles = { x64: 'ttyS0', arm64: 'ttyAMA0' } as const;

/** With QEMU's default of translated code kept (1 GiB), ending a guest that had run a while takes seconds. */
const accelerators = { kvm: 'kvm', tcg: 'tcg,tb-size=256' } as const;

/**
 * QEMU needs to start no program, gain no right and change no priority. (`-run-with user=` came with QEMU 9.0; the launcher
 * sets the user before QEMU starts, so that not even its start is root's.)
 */
const sandbox = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny';

/**
 * With a relay QEMU starts a program for each connection, in a session of its own: setsid(2) is among what `elevateprivileges`
 * denies, also to children. No right is to be gained by the others: the filter comes with no_new_privs, and QEMU's user has
 * none (ADR 13).
 */
const sandboxOfRelay = 'on,obsolete=deny,elevateprivileges=allow,spawn=allow,resourcecontrol=deny';

/**
 * Threads for disks, all made at the start. QEMU makes them when they are needed otherwise, and aborts when it can't: a guest's
 * connections, a process each, may have taken all that it may have.
 */
const poolOfRelay = 'main-loop,id=main-loop,thread-pool-min=16,thread-pool-max=16';

type Value = string | number | boolean;

/** `kind,key=value,…` as QEMU reads it: a comma in a value is doubled. Keys and kinds are ours. */
function option(kind: string, values: Readonly<Record<string, Value | undefined>>): string {
  const words = [kind];
  for (const [key, value] of Object.entries(values)) {
    if (value === undefined) continue;
    const text = typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value);
    words.push(`${key}=${text.replaceAll(',', ',,')}`);
  }
  return words.filter(Boolean).join(',');
}

export interface CommandLine {
  readonly program: string;
  readonly args: readonly string[];
}

/**
 * The arguments for one boot. The guest's CPUs wait for `cont`, so that nothing of its console is lost before somebody
 * listens; a reboot ends QEMU. Throws MACHINE_INVALID.
 */
export function commandLine(machine: VmMachine): CommandLine {
  checkMachine(machine);
  const { architecture, accelerator, type, sockets } = machine;
  const memory = `${type.memoryMiB}M`;
  const args = [
    ['-name', option('', { guest: machine.name, 'debug-threads': true })],
    machine.uuid === undefined ? [] : ['-uuid', machine.uuid],
    ['-nodefaults', '-no-user-config', '-display', 'none', '-sandbox', hasRelay(machine) ? sandboxOfRelay : sandbox],
    ['-msg', 'timestamp=on', '-action', 'reboot=shutdown,panic=shutdown', '-S'],
    ['-accel', accelerators[accelerator], '-cpu', accelerator === 'kvm' ? 'host' : 'max'],
    ['-machine', `${boards[architecture]},memory-backend=mem`, '-smp', String(type.cpus), '-m', memory],
    hasRelay(machine) ? ['-object', poolOfRelay] : [],
    ['-object', option('memory-backend-memfd', { id: 'mem', size: memory, share: true })],
    bootArgs(machine),
    listening('qmp', sockets.qmp),
    ['-mon', 'chardev=qmp,mode=control'],
    listening('watch', sockets.watch),
    ['-mon', 'chardev=watch,mode=control'],
    listening('serial', sockets.serial),
    ['-serial', 'chardev:serial'],
    ['-object', 'rng-builtin,id=rng', '-device', 'virtio-rng-pci,rng=rng,max-bytes=4096,period=1000'],
    ['-device', 'pvpanic-pci'],
    machine.disks.flatMap((disk, index) => diskArgs(disk, index, machine.boot.from === 'disk')),
    networkDiskArgs(machine),
    networkArgs(machine),
    virtiofsArgs(machine),
    machine.ninep === undefined ? [] : ninepArguments(machine.ninep.socket),
    machine.vsock === undefined ? [] : vsockArguments(machine.vsock.socket),
    machine.metadata === undefined ? [] : metadataPortArguments(machine.metadata.socket),
  ].flat();
  return { program: programs[architecture], args };
}

const hasRelay = ({ network }: VmMachine): boolean => network?.kind === 'user' && network.relay !== undefined;

const listening = (id: string, path: string): string[] => [
  '-chardev',
  option('socket', { id, path, server: true, wait: false }),
];

function bootArgs({ boot, architecture }: VmMachine): string[] {
  if (boot.from === 'disk') return boot.firmware === undefined ? [] : ['-bios', boot.firmware];
  const append = `console=${consoles[architecture]} ${boot.commandLine}`.trim();
  const initrd = boot.initrd === undefined ? [] : ['-initrd', boot.initrd];
  return ['-kernel', boot.kernel, ...initrd, '-append', append];
}

/** Formats are said, never probed: a raw disk could else claim to be a qcow2 with a file of this machine behind it. */
function diskArgs(disk: DiskAttachment, index: number, bootable: boolean): string[] {
  const id = `disk${index}`;
  const readOnly = disk.readOnly ?? false;
  const base = disk.base;
  const node = option('', {
    driver: disk.format,
    'node-name': id,
    'read-only': readOnly,
    discard: 'unmap',
    'file.driver': 'file',
    'file.filename': disk.path,
    ...(base && {
      'backing.driver': base.format,
      'backing.read-only': true,
      'backing.file.driver': 'file',
      'backing.file.filename': base.path,
      'backing.file.read-only': true,
    }),
  });
  const device = option('virtio-blk-pci', {
    drive: id,
    id: `${id}-device`,
    serial: disk.serial,
    bootindex: bootable ? index : undefined,
  });
  return ['-blockdev', node, '-device', device];
}

/** What it sends to a server that is away waits for so long, then fails. */
const diskAwaySeconds = 60;

function networkDiskArgs({ networkDisk }: VmMachine): string[] {
  if (networkDisk === undefined) return [];
  const { address, port, name, keyDirectory } = networkDisk;
  const key = { id: 'disk-key', endpoint: 'client', username: diskKeyUser, dir: keyDirectory };
  const node = option('', {
    driver: 'raw',
    'node-name': 'network-disk',
    discard: 'unmap',
    'file.driver': 'nbd',
    'file.server.type': 'inet',
    'file.server.host': address,
    'file.server.port': port,
    'file.export': name,
    'file.tls-creds': 'disk-key',
    'file.reconnect-delay': diskAwaySeconds,
    'file.open-timeout': diskAwaySeconds,
  });
  const device = option('virtio-blk-pci', { drive: 'network-disk', id: 'network-disk-device' });
  return ['-object', option('tls-creds-psk', key), '-blockdev', node, '-device', device];
}

function networkArgs({ network }: VmMachine): string[] {
  if (!network) return [];
  const device = option('virtio-net-pci', { netdev: 'net0', mac: network.mac, romfile: '' });
  if (network.kind === 'tap') {
    const { interfaceName: ifname } = network;
    return ['-netdev', option('tap', { id: 'net0', ifname, script: 'no', downscript: 'no' }), '-device', device];
  }
  const { relay } = network;
  const user = option('user', {
    id: 'net0',
    restrict: network.isolated ?? false,
    ...(relay && { net: relay.address.replace(/\d+$/, '0/24'), guestfwd: relayOption(relay) }),
  });
  return ['-netdev', [user, ...network.forwards.map(forwardOption)].join(','), '-device', device];
}

/**
 * What the program says in trouble must not go to its standard error, which is the connection too. A program for each
 * connection: with a socket of QEMU's own all connections would be one stream, for the machine's whole life.
 * Nothing of what is written here comes from a user but a path that was checked.
 */
const relayOption = ({ address, port, socket }: Relay): string =>
  `tcp:${address}:${port}-cmd:${relayProgram} -lf /dev/null -t ${relayLastSeconds} - UNIX-CONNECT:${socket}`;

export const relayProgram = '/usr/bin/socat';
/** What a client that has sent all waits for its answer, at most. */
const relayLastSeconds = 30;

const forwardOption = ({ protocol, hostAddress = '127.0.0.1', hostPort, guestPort }: PortForward): string =>
  `hostfwd=${protocol}:${hostAddress}:${hostPort}-:${guestPort}`;

function virtiofsArgs({ virtiofs }: VmMachine): string[] {
  if (!virtiofs) return [];
  const chardev = option('socket', { id: 'metadata', path: virtiofs.socket });
  return ['-chardev', chardev, '-device', 'vhost-user-fs-pci,chardev=metadata,tag=metadata,queue-size=1024'];
}

/**
 * A virtio console whose other end speaks 9P. It is hvc1: systemd starts a getty on hvc0, which leads nowhere. QEMU connects
 * again within a second of the other end hanging up.
 */
export const ninepArguments = (socket: string): readonly string[] => [
  '-device',
  'virtio-serial-pci,id=porthole',
  '-chardev',
  'null,id=nowhere',
  '-device',
  'virtconsole,bus=porthole.0,nr=0,chardev=nowhere',
  '-chardev',
  option('socket', { id: 'ninep', path: socket, reconnect: 1 }),
  '-device',
  'virtconsole,bus=porthole.0,nr=1,chardev=ninep,name=porthole.9p',
];

/** The name by which a guest finds the port, below /dev/virtio-ports. */
export const metadataPortName = 'org.porthole.metadata';

/** A virtio-serial port to the metadata server. QEMU connects again within a second of the other end hanging up. */
export const metadataPortArguments = (socket: string): readonly string[] => [
  '-device',
  'virtio-serial-pci,id=metadata-port,max_ports=2',
  '-chardev',
  option('socket', { id: 'metadata-server', path: socket, reconnect: 1 }),
  '-device',
  `virtserialport,bus=metadata-port.0,nr=1,chardev=metadata-server,name=${metadataPortName}`,
];

/** A vsock device, beside guest memory that is shared. */
export const vsockArguments = (socket: string): readonly string[] => [
  '-chardev',
  option('socket', { id: 'vsock', path: socket }),
  '-device',
  'vhost-user-vsock-pci,chardev=vsock',
];
