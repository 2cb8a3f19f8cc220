/** What a machine that others start needs, to have a tree of ours: arguments, domain XML, the mount line. */
import { metadataPortArguments, metadataPortName, ninepArguments, vsockArguments } from '../qemu/index.ts';
import type { Attachment, MetadataWayName } from '../records/index.ts';
import { type DevicePaths, ninepPort } from './device-paths.ts';
import { type DomainWish, domainParts, metadataChannel, ninepConsole, wholeDomain } from './libvirt-domain.ts';
import { metadataPort } from './metadata-sockets.ts';

/** The tag is the monitor's: it builds the device's configuration space. */
const tag = 'metadata';

/** Of the console that speaks 9P: hvc1, for on hvc0 systemd starts a getty. */
export const ninepMountCommand = 'mount -t porthole hvc1 /run/metadata';

export const mountCommand = `mount -t virtiofs -o nosuid,nodev ${tag} /run/metadata`;

/** Where a program of the guest finds this boot's token (docs/9p.md). */
const tokenFile = '/run/porthole.token';

/**
 * The vsock devices of Cloud Hypervisor and Firecracker, which connect for a guest to `<path>_<port>` and hide which of its
 * programs it is.
 */
export const vsockOfOthers = (path: string, port: number): VsockOfOthers => ({
  cloudHypervisor: ['--vsock', `cid=3,socket=${path}`],
  firecracker: { guest_cid: 3, uds_path: path },
  mount: `mount -t porthole vsock:${port} /run/metadata -o token-file=${tokenFile}`,
});

interface VsockOfOthers {
  readonly cloudHypervisor: readonly string[];
  /** The body of `PUT /vsock`. */
  readonly firecracker: { readonly guest_cid: number; readonly uds_path: string };
  readonly mount: string;
}

/** Guest memory must be shared with the device process, so its size is said where it is allocated: `memory`, as in "1G". */
export const qemuArguments = (socketPath: string, memory: string): readonly string[] => [
  '-object',
  `memory-backend-memfd,id=mem,size=${memory},share=on`,
  '-machine',
  'q35,memory-backend=mem',
  '-m',
  memory,
  '-chardev',
  `socket,id=${tag},path=${socketPath.replaceAll(',', ',,')}`,
  '-device',
  `vhost-user-fs-pci,chardev=${tag},tag=${tag},queue-size=1024`,
];

/** Where the front ends of an attached VM connect. */
interface AttachedPaths {
  /** Of the VM. */
  readonly name: string;
  readonly vhostUser: string;
  readonly ninep?: string;
  readonly vsock?: { readonly front: string; readonly host: string; readonly ofOthers: string };
  readonly metadata?: AttachedMetadata | undefined;
}

/** By the ways that its metadata server was given. */
export interface AttachedMetadata {
  readonly serial?: string;
  readonly vsock?: { readonly socketPath: string; readonly port: number };
  readonly sockets?: { readonly any: string; readonly privileged: string };
}

export const attachedMetadata = (
  { serial, vsock, relay, privileged }: DevicePaths['metadata'],
  ways: readonly MetadataWayName[],
): AttachedMetadata => ({
  ...(ways.includes('serial') && { serial }),
  ...(ways.includes('vsock') && { vsock: { socketPath: vsock, port: metadataPort } }),
  ...(ways.includes('socket') && { sockets: { any: relay, privileged } }),
});

/** Cloud Hypervisor splits at commas and has no way to write one. */
export const attachWords = (
  { name, vhostUser: socketPath, ninep, vsock, metadata }: AttachedPaths,
  machine: DomainWish,
): Attachment => {
  const { memoryMiB } = machine;
  const channel = metadata?.serial && metadataChannel(metadata.serial, metadataPortName);
  const memory = memoryMiB % 1024 === 0 ? `${memoryMiB / 1024}G` : `${memoryMiB}M`;
  return {
    socketPath,
    tag,
    qemu: qemuArguments(socketPath, memory),
    cloudHypervisor: [
      '--memory',
      `size=${memory},shared=on`,
      '--fs',
      `tag=${tag},socket=${socketPath},num_queues=1,queue_size=1024`,
    ],
    libvirtXml: domainParts(socketPath, tag),
    libvirtDomain: wholeDomain(socketPath, tag, { ...machine, ninep, devices: channel }),
    mount: mountCommand,
    ...(ninep !== undefined && {
      ninep: {
        socketPath: ninep,
        qemu: ninepArguments(ninep),
        libvirtXml: ninepConsole(ninep),
        mount: ninepMountCommand,
      },
    }),
    ...(metadata !== undefined && {
      metadataServer: {
        ...(metadata.vsock && { vsock: metadata.vsock }),
        ...(metadata.sockets && { sockets: metadata.sockets }),
        ...(metadata.serial !== undefined &&
          channel !== undefined && {
            serial: {
              socketPath: metadata.serial,
              qemu: metadataPortArguments(metadata.serial),
              libvirtXml: channel,
            },
          }),
      },
    }),
    ...(vsock !== undefined && {
      vsock: {
        hostPath: vsock.host,
        qemu: vsockArguments(vsock.front),
        mount: `mount -t porthole vsock:${ninepPort} /run/metadata`,
        ofOthers: { socketPath: vsock.ofOthers, ...vsockOfOthers(`/run/${name}.vsock`, ninepPort) },
      },
    }),
  };
};
