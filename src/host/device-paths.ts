/** Where the files of one VM's device process are, and whose they are. */
import { chmodSync, chownSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { makeSearchable } from '../qemu/index.ts';
import { HostRefusal } from './host-error.ts';

export interface DevicePaths {
  /** Of the run directory: the device process's own. It writes there and into `front` alone. */
  readonly directory: string;
  readonly link: string;
  readonly keeper: string;
  readonly auditRing: string;
  /** Where front ends connect: searchable by those who may. */
  readonly front: string;
  readonly vhostUser: string;
  /** Of a VM with a console that speaks 9P. */
  readonly ninep: string;
  /** Of a VM with a vsock device: where programs of the host reach it, and where its front end connects. */
  readonly vsock: string;
  readonly vsockFront: string;
  /** Of an attached one: where vsock devices that are not ours lead what their guest sends to the port of 9P. */
  readonly ninepOfOthers: string;
  /** Of a VM with a metadata server: made by us alone, each for one way in. */
  readonly metadata: {
    readonly directory: string;
    readonly vsock: string;
    readonly serial: string;
    /** For what the guest asks of 169.254.169.254 on a user-mode network. */
    readonly network: string;
    /** For relays of what any program of the guest may open, and of what only its root may. */
    readonly relay: string;
    readonly privileged: string;
  };
  readonly log: string;
}

/** IANA's of 9P, on vsock as on TCP. */
export const ninepPort = 564;

/** sockaddr_un.sun_path less its NUL (unix(7)). */
const socketPathBytes = 107;

/** HOST_INVALID when a socket's path would be too long. */
export const devicePaths = (stateDir: string, runDir: string, name: string): DevicePaths => {
  const run = join(runDir, 'vms', name);
  const directory = join(run, 'device');
  const front = join(run, 'fs');
  const metadata = join(run, 'imds');
  const paths = {
    directory,
    link: join(directory, 'link.sock'),
    // Made by the keeper: where the device process may write, it could put a link in its way.
    keeper: join(run, 'keeper.sock'),
    auditRing: join(directory, 'audit.ring'),
    front,
    vhostUser: join(front, 'fs.sock'),
    ninep: join(front, '9p.sock'),
    vsock: join(front, 'vsock'),
    vsockFront: join(front, 'vsock.vhost-user'),
    ninepOfOthers: join(front, `9p_${ninepPort}`),
    metadata: {
      directory: metadata,
      vsock: join(metadata, 'v.sock'),
      serial: join(metadata, 's.sock'),
      network: join(metadata, 'n.sock'),
      relay: join(metadata, 'any.sock'),
      privileged: join(metadata, 'root.sock'),
    },
    log: join(stateDir, 'vms', name, 'device.log'),
  };
  for (const socket of [
    paths.link,
    paths.keeper,
    paths.vhostUser,
    paths.ninep,
    paths.vsockFront,
    paths.metadata.privileged,
  ]) {
    const bytes = Buffer.byteLength(socket);
    if (bytes > socketPathBytes)
      throw new HostRefusal(
        'HOST_INVALID',
        `the socket path "${socket}" has ${bytes} bytes, ${socketPathBytes} are allowed; use a shorter run directory`,
      );
  }
  return paths;
};

export interface DeviceOwner {
  /** Undefined: everything runs as this user. */
  readonly uid: number | undefined;
  /** Who else may connect to the front end's socket. */
  readonly gid: number | undefined;
}

/** Makes the directories where they are not there. Above them all may search and none but us may write. */
export const makeDeviceDirectories = (paths: DevicePaths, { uid, gid }: DeviceOwner): void => {
  for (const directory of [dirname(paths.directory), dirname(paths.log)]) {
    makeSearchable(dirname(directory));
    makeSearchable(directory);
  }
  for (const directory of [paths.directory, paths.front]) mkdirSync(directory, { recursive: true, mode: 0o700 });
  if (uid !== undefined) for (const directory of [paths.directory, paths.front]) chownSync(directory, uid, uid);
  if (gid === undefined) return;
  chownSync(paths.front, uid ?? process.getuid!(), gid);
  chmodSync(paths.front, 0o710);
};
