/** A mount in a QEMU guest, served by a device process; every case mounts anew. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Guest } from '../../images/tiny/guest.ts';
import { ninepArguments, qemuVsockArguments } from '../../src/host/index.ts';
import { ways } from '../../src/tree/index.ts';
import { mountHelper } from '../ninep/guest-mount.ts';
import type { WorldSpec } from '../tree/world.ts';
import { DeviceDriver } from './device-driver.ts';
import type { WayName } from './driver.ts';
import { plain, stranger, visitor } from './people.ts';
import { agentProgram, type StartAgent } from './posix-agent.ts';

const MOUNT = '/run/metadata';
const SHARE = 'conformance';
const HELPER = 'helper';
const SIGUSR1 = 10;
const SIGKILL = 9;

const startIn =
  (guest: () => Guest): StartAgent =>
  ({ uid, gid, groups }, receive) => {
    const job = guest().spawn(`cd /; exec /run/${SHARE}/posix-agent ${MOUNT} ${uid} ${gid} ${groups.join(',')}`);
    job.stream(receive);
    const gone = job.done.then(
      ({ exitCode, errorText }) => receive(undefined, `it ended with ${exitCode}: ${errorText}`),
      (error: Error) => receive(undefined, error.message),
    );
    return {
      write: (text) => job.write(text),
      interrupt: () => job.kill(SIGUSR1),
      end: () => {
        job.kill(SIGKILL);
        return gone;
      },
    };
  };

/** How the guest's kernel comes to the tree. */
interface Path {
  readonly way: WayName;
  readonly heartbeatMs: number;
  readonly mount: string;
}

const helper = (source: string, options: string): string =>
  `/run/${HELPER}/mount.porthole ${source} ${MOUNT} -o ${options}`;

const paths = {
  virtiofs: {
    way: 'virtiofs',
    heartbeatMs: ways.virtiofs.heartbeatMs,
    mount: `mount -t virtiofs -o nosuid,nodev metadata ${MOUNT}`,
  },
  console: { way: 'v9fs', heartbeatMs: ways.ninep.heartbeatMs, mount: helper('hvc1', 'access=user') },
  'console, access=client': {
    way: 'v9fs-client',
    heartbeatMs: ways.ninep.heartbeatMs,
    mount: helper('hvc1', 'access=client,posixacl'),
  },
  vsock: { way: 'v9fs', heartbeatMs: ways.ninep.heartbeatMs, mount: helper('vsock:564', 'access=user') },
  'vsock, access=client': {
    way: 'v9fs-client',
    heartbeatMs: ways.ninep.heartbeatMs,
    mount: helper('vsock:564', 'access=client,posixacl'),
  },
} as const satisfies Record<string, Path>;

const VSOCK_PORT = 564;

export class GuestDriver extends DeviceDriver {
  readonly way: WayName;
  readonly heartbeatMs: number;
  readonly #mountCommand: string;
  readonly #overVsock: boolean;
  readonly #directory: string;
  #guest: Guest | undefined;
  #mounted = false;

  private constructor(by: keyof typeof paths, directory: string, guest: () => Guest) {
    super(startIn(guest));
    const { way, heartbeatMs, mount } = paths[by];
    this.way = way;
    this.heartbeatMs = heartbeatMs;
    this.#mountCommand = mount;
    this.#overVsock = by.startsWith('vsock');
    this.#directory = directory;
  }

  static async start(by: keyof typeof paths): Promise<GuestDriver> {
    const directory = mkdtempSync(path.join(tmpdir(), 'porthole-conformance-'));
    const driver: GuestDriver = new GuestDriver(by, directory, () => driver.#guest!);
    try {
      await driver.#boot();
      return driver;
    } catch (error) {
      await driver[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #boot(): Promise<void> {
    const socket = path.join(this.#directory, 'socket');
    const listening = [{ path: socket, mode: 0o600 }];
    const isVirtiofs = this.way === 'virtiofs';
    await this.newWorld(plain);
    const vsock = { path: `${socket}.vhost-user`, mode: 0o600, host: { path: socket, mode: 0o600 }, guestCid: 3 };
    const ninep = this.#overVsock ? [{ path: `vsock:${VSOCK_PORT}`, vsockPort: VSOCK_PORT }] : listening;
    await this.startDevice({
      vhostUser: isVirtiofs ? listening : [],
      mounts: [],
      ninep: isVirtiofs ? [] : ninep,
      vsock: this.#overVsock ? [vsock] : [],
    });
    const shares = [{ tag: SHARE, path: path.dirname(agentProgram()) }];
    this.#guest = await Guest.start(
      isVirtiofs
        ? { virtiofs: [{ socket, tag: 'metadata' }], shares }
        : {
            shares: [...shares, { tag: HELPER, path: path.dirname(mountHelper()) }],
            qemuArgs: [...(this.#overVsock ? qemuVsockArguments(vsock.path) : ninepArguments(socket))],
          },
    );
    await this.#guest.sh(`mkdir -p ${MOUNT}${this.#overVsock ? ' && modprobe vmw_vsock_virtio_transport' : ''}`);
    for (const tag of isVirtiofs ? [SHARE] : [SHARE, HELPER])
      await this.#guest.sh(
        `mkdir -p /run/${tag} && mount -t 9p -o trans=virtio,version=9p2000.L,ro ${tag} /run/${tag}`,
      );
  }

  /** By 9P, those whom the policy does not know are nobody: it knows all who act here. */
  #known(spec: WorldSpec): WorldSpec {
    if (this.way === 'virtiofs') return spec;
    const others = { stranger: stranger.uid, visitor: visitor.uid, fifth: 3000 };
    return { ...spec, policy: { ...spec.policy, users: { ...spec.policy?.users, ...others } } };
  }

  override load(spec: WorldSpec): Promise<void> {
    return super.load(this.#known(spec));
  }

  async begin(spec: WorldSpec): Promise<void> {
    await this.newWorld(this.#known(spec));
    await this.#guest!.sh(this.#mountCommand);
    this.#mounted = true;
  }

  async end(): Promise<void> {
    if (!this.#mounted) return;
    this.#mounted = false;
    let umount: (() => Promise<string>) | undefined = () => this.#guest!.sh(`umount ${MOUNT}`);
    try {
      // Linux's 9P client waits for an answer through every signal but the last.
      await this.recallActors(this.way === 'virtiofs' ? 'interrupt' : 'kill');
      if (this.way !== 'virtiofs') {
        // 9P holds a fid of the root for each user, as long as it is mounted.
        const once = umount;
        umount = undefined;
        await once();
      }
      await this.assertNothingHeld();
    } finally {
      await umount?.();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      if (this.#guest !== undefined) {
        await this.end();
        await this.endActors();
      }
    } finally {
      await this.#guest?.[Symbol.asyncDispose]();
      await this.stopDevice();
      rmSync(this.#directory, { recursive: true, force: true });
    }
  }
}
