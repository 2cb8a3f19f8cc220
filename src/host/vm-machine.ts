/** What a VM's record says, as the machine that QEMU is told of. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import {
  type Accelerator,
  type Architecture,
  type BootSource,
  type DiskAttachment,
  ensureDisk,
  type GuardingLease,
  type NetworkAttachment,
  type NetworkDisk,
  relayProgram,
  type StoredImage,
  type VmMachine,
  type VmPaths,
} from '../qemu/index.ts';
import type { VmRecord } from '../records/index.ts';
import type { DevicePaths } from './device-paths.ts';
import type { HostLease } from './host-lease.ts';
import type { ImageCache } from './image-cache.ts';
import { metadataAddress, metadataPort } from './metadata-sockets.ts';

export interface MachineOptions {
  readonly record: VmRecord;
  readonly lease?: GuardingLease | undefined;
  readonly networkDisk?: NetworkDisk | undefined;
  readonly paths: VmPaths;
  readonly image: StoredImage;
  readonly accelerator: Accelerator;
  readonly vhostUserSocket: string;
  readonly ninepSocket: string;
  readonly vsockSocket: string;
  /** Of a VM that has one. */
  readonly tap: string | undefined;
  readonly metadataSockets: Pick<DevicePaths['metadata'], 'serial' | 'network'>;
}

const hexOf = (id: string, what: string): string => createHash('sha256').update(`${what} ${id}`).digest('hex');

/** The same for a VM's whole life. */
export const uuidOf = (id: string): string =>
  hexOf(id, 'uuid').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*$/, '$1-$2-$3-$4-$5');

/** Locally administered, in QEMU's own range. */
export const macOf = (id: string): string => `52:54:00:${hexOf(id, 'mac').replace(/^(..)(..)(..).*$/, '$1:$2:$3')}`;

/** Makes the VM's disk where it has none yet, or grows it. Errors as `ensureDisk` and `ImageCache.of`. */
export const makeDisk = async (
  { record, paths, images }: Pick<MachineOptions, 'record' | 'paths'> & { readonly images: ImageCache },
  user: {
    readonly uid?: number | undefined;
    readonly gid?: number | undefined;
    readonly groups?: readonly number[] | undefined;
  },
  signal: AbortSignal,
): Promise<void> => {
  const image = await images.of(record, signal);
  const { diskBytes } = record;
  // A kernel runs from memory; it has a disk where one was asked for.
  if (image.kind === 'kernel' && (diskBytes === undefined || record.disk === 'network')) return;
  await ensureDisk({
    path: paths.disk,
    ...(image.kind === 'disk' && { base: { path: image.path, virtualBytes: image.virtualBytes } }),
    ...(diskBytes !== undefined && { sizeBytes: diskBytes }),
    ...user,
    signal,
  });
};

/** That a VM runs under which may start elsewhere: this host's, waited for until it has one. */
export const leaseOf = async (
  { restartWhere, name }: VmRecord,
  lease: HostLease | undefined,
  signal: AbortSignal,
): Promise<GuardingLease | undefined> => {
  if (restartWhere !== 'elsewhere') return undefined;
  if (lease === undefined) throw new Error(`"${name}" may start elsewhere, and this host has no lease of any manager`);
  return lease.held(signal);
};

export const machineOf = (options: MachineOptions): VmMachine => {
  const { record, image, paths, accelerator, vhostUserSocket, ninepSocket, vsockSocket, metadataSockets } = options;
  const hasDisk = image.kind === 'disk' || (record.diskBytes !== undefined && record.disk !== 'network');
  const disk: DiskAttachment = {
    path: paths.disk,
    format: 'qcow2',
    ...(image.kind === 'disk' && { base: { path: image.path, format: 'qcow2' } }),
  };
  const boot: BootSource =
    image.kind === 'disk'
      ? { from: 'disk' }
      : {
          from: 'kernel',
          kernel: image.kernel,
          ...(image.initrd !== undefined && { initrd: image.initrd }),
          commandLine: image.commandLine,
        };
  const ways = new Set(record.metadataServer?.ways);
  if (record.network.mode === 'user' && ways.has('network') && !existsSync(relayProgram))
    throw new Error(
      `a metadata server on a user-mode network needs ${relayProgram}; install it (Debian's package socat), then start the VM`,
    );
  const network = networkOf(record, options.tap, metadataSockets.network);
  return {
    name: record.name,
    uuid: uuidOf(record.id),
    type: { cpus: record.vcpus, memoryMiB: record.memoryMiB },
    accelerator,
    architecture: process.arch as Architecture,
    boot,
    disks: hasDisk ? [disk] : [],
    ...(network && { network: { ...network, mac: macOf(record.id) } }),
    virtiofs: { socket: vhostUserSocket },
    ...(record.ninep && { ninep: { socket: ninepSocket } }),
    ...(record.vsock && { vsock: { socket: vsockSocket } }),
    ...(ways.has('serial') && { metadata: { socket: metadataSockets.serial } }),
    ...(options.networkDisk && { networkDisk: options.networkDisk }),
    ...(options.lease && { lease: options.lease }),
    sockets: { qmp: paths.qmp, watch: paths.watch, serial: paths.serial },
  };
};

/** What QEMU is to connect it to; undefined: nothing. `relayTo`: where a user-mode network leads what asks for metadata. */
export const networkOf = (
  { network, metadataServer }: Pick<VmRecord, 'network' | 'metadataServer'>,
  tap: string | undefined,
  relayTo: string,
): NetworkAttachment | undefined => {
  switch (network.mode) {
    case 'none':
      return undefined;
    case 'tap':
    case 'routed':
      return tap === undefined ? undefined : { kind: 'tap', interfaceName: tap };
    case 'user':
      return {
        kind: 'user',
        isolated: network.isolated ?? false,
        ...(metadataServer?.ways.includes('network') && {
          relay: { address: metadataAddress, port: metadataPort, socket: relayTo },
        }),
        forwards: network.forwards.map(({ protocol, hostAddress, hostPort, guestPort }) => ({
          protocol,
          hostAddress,
          hostPort,
          guestPort,
        })),
      };
  }
};
