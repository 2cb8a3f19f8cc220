/** A virtiofs mount in a QEMU guest, served by a device process; every case mounts anew. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Guest } from '../../images/tiny/guest.ts';
import { ways } from '../../src/tree/index.ts';
import type { WorldSpec } from '../tree/world.ts';
import { DeviceDriver } from './device-driver.ts';
import { plain } from './people.ts';
import { agentProgram, type StartAgent } from './posix-agent.ts';

const MOUNT = '/run/metadata';
const SHARE = 'conformance';
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

export class GuestDriver extends DeviceDriver {
  readonly way = 'virtiofs';
  readonly heartbeatMs = ways.virtiofs.heartbeatMs;
  readonly #directory: string;
  #guest: Guest | undefined;
  #mounted = false;

  private constructor(directory: string, guest: () => Guest) {
    super(startIn(guest));
    this.#directory = directory;
  }

  static async start(): Promise<GuestDriver> {
    const directory = mkdtempSync(path.join(tmpdir(), 'porthole-conformance-'));
    const driver: GuestDriver = new GuestDriver(directory, () => driver.#guest!);
    try {
      await driver.#boot();
      return driver;
    } catch (error) {
      await driver[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #boot(): Promise<void> {
    const socket = path.join(this.#directory, 'fs');
    await this.newWorld(plain);
    await this.startDevice({ vhostUser: [{ path: socket, mode: 0o600 }], mounts: [] });
    this.#guest = await Guest.start({
      virtiofs: [{ socket, tag: 'metadata' }],
      shares: [{ tag: SHARE, path: path.dirname(agentProgram()) }],
    });
    await this.#guest.sh(
      `mkdir -p /run/${SHARE} ${MOUNT} && mount -t 9p -o trans=virtio,version=9p2000.L,ro ${SHARE} /run/${SHARE}`,
    );
  }

  async begin(spec: WorldSpec): Promise<void> {
    await this.newWorld(spec);
    await this.#guest!.sh(`mount -t virtiofs -o nosuid,nodev metadata ${MOUNT}`);
    this.#mounted = true;
  }

  async end(): Promise<void> {
    if (!this.#mounted) return;
    this.#mounted = false;
    try {
      await this.recallActors();
      await this.assertNothingHeld();
    } finally {
      await this.#guest!.sh(`umount ${MOUNT}`);
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
