/** What a virtual machine of ours is made of, checked before anything is started. */
import { isIP } from 'node:net';
import { QemuError } from './error.ts';
import type { GuardingLease } from './guard.ts';
import type { NetworkDisk } from './network-disk.ts';

export type Accelerator = 'kvm' | 'tcg';
export type Architecture = 'x64' | 'arm64';

export interface VmType {
  readonly cpus: number;
  readonly memoryMiB: number;
}

export interface DiskAttachment {
  readonly path: string;
  readonly format: 'qcow2' | 'raw';
  readonly readOnly?: boolean;
  /** What a qcow2 overlay stands on. Given here, it replaces whatever the overlay's own header names. */
  readonly base?: { readonly path: string; readonly format: 'qcow2' | 'raw' };
  /** Shown under /dev/disk/by-id in the guest: at most 20 of `[A-Za-z0-9_-]`. */
  readonly serial?: string;
}

export interface PortForward {
  readonly protocol: 'tcp' | 'udp';
  /** IPv4 address of this machine to listen on; 127.0.0.1 unless given. */
  readonly hostAddress?: string;
  readonly hostPort: number;
  readonly guestPort: number;
}

/** What the guest reaches at an address that nothing else answers: a unix socket of this machine. */
export interface Relay {
  /** IPv4, and none of the first 15 of its /24, which the network needs itself. */
  readonly address: string;
  readonly port: number;
  readonly socket: string;
}

export type NetworkAttachment =
  /**
   * QEMU's user-mode network: the guest gets 10.0.2.15 and reaches out through this machine, its loopback at 10.0.2.2
   * included. `isolated` lets nothing out but answers through the forwards. With a `relay` the network is the /24 of its
   * address, and the guest gets .15 there.
   */
  | {
      readonly kind: 'user';
      readonly forwards: readonly PortForward[];
      readonly isolated?: boolean;
      readonly relay?: Relay;
    }
  /** A tap device that exists and belongs to QEMU's user. */
  | { readonly kind: 'tap'; readonly interfaceName: string };

export type BootSource =
  | {
      readonly from: 'kernel';
      readonly kernel: string;
      readonly initrd?: string;
      /** In addition to `console=`, which is set to the serial port. */
      readonly commandLine: string;
    }
  /** The first disk, by the firmware that comes with QEMU or by that of the file `firmware`. */
  | { readonly from: 'disk'; readonly firmware?: string };

/** Everything that QEMU is told of one boot. All paths are absolute. */
export interface VmMachine {
  /** A DNS label. */
  readonly name: string;
  /** Shown to the guest as the machine's own; stable over boots. */
  readonly uuid?: string;
  readonly type: VmType;
  readonly accelerator: Accelerator;
  readonly architecture: Architecture;
  readonly boot: BootSource;
  readonly disks: readonly DiskAttachment[];
  /** Behind `disks`. */
  readonly networkDisk?: NetworkDisk;
  readonly network?: NetworkAttachment & { readonly mac?: string };
  readonly virtiofs?: { readonly socket: string };
  /** Where 9P is spoken; the guest has it as a console, hvc1. */
  readonly ninep?: { readonly socket: string };
  /** The back end of a vsock device. */
  readonly vsock?: { readonly socket: string };
  /** Whoever listens there has the other end of the virtio-serial port org.porthole.metadata. */
  readonly metadata?: { readonly socket: string };
  /** It runs only while this lease of its host holds. */
  readonly lease?: GuardingLease;
  /** Where QEMU listens. */
  readonly sockets: { readonly qmp: string; readonly watch: string; readonly serial: string };
}

/** A unix socket's path is this long at most (unix(7): sun_path with its NUL is 108). */
export const SOCKET_PATH_BYTES = 107;

const limits = { cpus: 255, memoryMiB: 4 * 1024 * 1024, disks: 16, forwards: 64, commandLineBytes: 2_000 } as const;

const invalid = (message: string): never => {
  throw new QemuError('MACHINE_INVALID', message);
};

const isWholeWithin = (value: number, low: number, high: number): boolean =>
  Number.isInteger(value) && value >= low && value <= high;

const hasControl = (text: string): boolean => /\p{Cc}/u.test(text);

/** Whether a VM may be named so: a DNS label of lower-case letters, digits and `-`. */
export const isVmName = (name: string): boolean => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name);

function checkPath(what: string, path: string): void {
  if (!path.startsWith('/') || hasControl(path))
    invalid(`${what} "${path}" is no absolute path without control characters`);
}

/** Throws MACHINE_INVALID where the path is too long to bind or connect to. */
export function checkSocketPath(what: string, path: string): void {
  checkPath(what, path);
  const bytes = Buffer.byteLength(path);
  if (bytes > SOCKET_PATH_BYTES)
    invalid(
      `the path of ${what} has ${bytes} bytes, and a socket's may have ${SOCKET_PATH_BYTES}: "${path}"; use a shorter run directory or name`,
    );
}

/** Throws MACHINE_INVALID with what is wrong and what would be right. */
export function checkMachine(machine: VmMachine): void {
  const { name, uuid, type, boot, disks, networkDisk, network, virtiofs, ninep, vsock, metadata, sockets } = machine;
  if (!isVmName(name))
    invalid(`a VM cannot be named "${name}"; use at most 63 lower-case letters, digits and "-", none at the ends`);
  if (uuid !== undefined && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid))
    invalid(`"${uuid}" is no UUID in lower case`);
  if (!isWholeWithin(type.cpus, 1, limits.cpus))
    invalid(`a VM cannot have ${type.cpus} vCPUs; give 1 to ${limits.cpus}`);
  if (!isWholeWithin(type.memoryMiB, 16, limits.memoryMiB))
    invalid(`a VM cannot have ${type.memoryMiB} MiB of memory; give 16 to ${limits.memoryMiB}`);
  if (boot.from === 'kernel') {
    checkPath('the kernel', boot.kernel);
    if (boot.initrd !== undefined) checkPath('the initrd', boot.initrd);
    if (hasControl(boot.commandLine) || Buffer.byteLength(boot.commandLine) > limits.commandLineBytes)
      invalid(`a kernel's command line is one line of at most ${limits.commandLineBytes} bytes`);
  } else {
    if (disks.length === 0) invalid(`VM "${name}" boots from its disk and has none`);
    if (boot.firmware !== undefined) checkPath('the firmware', boot.firmware);
  }
  if (disks.length > limits.disks) invalid(`a VM cannot have ${disks.length} disks; at most ${limits.disks}`);
  for (const disk of disks) {
    checkPath('the disk', disk.path);
    if (disk.base) checkPath("the disk's base", disk.base.path);
    if (disk.serial !== undefined && !/^[A-Za-z0-9_-]{1,20}$/.test(disk.serial))
      invalid(`a disk's serial cannot be "${disk.serial}"; use at most 20 letters, digits, "_" and "-"`);
  }
  if (networkDisk) {
    checkPath('the key of the network disk', networkDisk.keyDirectory);
    if (isIP(networkDisk.address) === 0 || !isWholeWithin(networkDisk.port, 1, 65_535))
      invalid(`"${networkDisk.address}" port ${networkDisk.port} is no place of a network disk`);
  }
  if (network) checkNetwork(network);
  if (virtiofs) checkSocketPath('the virtiofs socket', virtiofs.socket);
  if (ninep) checkSocketPath('the 9P socket', ninep.socket);
  if (vsock) checkSocketPath('the vsock socket', vsock.socket);
  if (metadata) checkSocketPath('the metadata socket', metadata.socket);
  checkSocketPath("QEMU's monitor", sockets.qmp);
  checkSocketPath("QEMU's second monitor", sockets.watch);
  checkSocketPath("QEMU's serial port", sockets.serial);
}

/** Of QEMU's own on a user-mode network: its gateway, its name server, and the guest. */
const lastOfQemu = 15;

/** What `socat` and QEMU's options would read as something else. */
const plainPath = /^[A-Za-z0-9_./-]+$/;

function checkRelay({ address, port, socket }: Relay): void {
  if (isIP(address) !== 4 || Number(address.split('.')[3]) <= lastOfQemu || !isWholeWithin(port, 1, 65_535))
    invalid(`"${address}" port ${port} is no place for a relay`);
  checkSocketPath('the relay', socket);
  if (!plainPath.test(socket))
    invalid(`a relay cannot lead to "${socket}"; use a run directory with a path of letters, digits, ".", "_" and "-"`);
}

function checkNetwork(network: NonNullable<VmMachine['network']>): void {
  // The lowest bit of the first byte is that of multicast addresses.
  if (network.mac !== undefined && !/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/.test(network.mac))
    invalid(`"${network.mac}" is no unicast MAC address in lower case, like 52:54:00:12:34:56`);
  if (network.kind === 'tap') {
    if (!/^[A-Za-z0-9_.-]{1,15}$/.test(network.interfaceName))
      invalid(`a network interface cannot be named "${network.interfaceName}"`);
    return;
  }
  if (network.relay) checkRelay(network.relay);
  if (network.forwards.length > limits.forwards)
    invalid(`a VM cannot have ${network.forwards.length} port forwards; at most ${limits.forwards}`);
  for (const { hostAddress = '127.0.0.1', hostPort, guestPort } of network.forwards) {
    if (isIP(hostAddress) !== 4) invalid(`ports can be forwarded from an IPv4 address only, not "${hostAddress}"`);
    for (const port of [hostPort, guestPort])
      if (!isWholeWithin(port, 1, 65_535)) invalid(`${port} is no port; give 1 to 65535`);
  }
}
