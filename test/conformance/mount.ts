/** A mount through /dev/fuse on this machine, served by a device process; every case has its own. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { ways } from '../../src/tree/index.ts';
import type { WorldSpec } from '../tree/world.ts';
import { DeviceDriver } from './device-driver.ts';
import { agentDirectory, type StartAgent } from './posix-agent.ts';

const startHere =
  (program: string, prefix: string): StartAgent =>
  ({ uid, gid, groups }, receive) => {
    const child = spawn(program, [prefix, String(uid), String(gid), groups.join(',')], {
      stdio: ['pipe', 'pipe', 'inherit'],
      cwd: '/',
    });
    const gone = new Promise<void>((resolve) => {
      child.once('close', (code, signal) => {
        receive(undefined, `it ended with ${signal ?? code}`);
        resolve();
      });
    });
    child.stdout.on('data', receive);
    // What is written to an agent that is gone is answered by `receive`.
    child.stdin.on('error', () => {});
    return {
      write: (text) => child.stdin.write(text),
      interrupt: () => child.kill('SIGUSR1'),
      end: () => {
        child.kill('SIGKILL');
        return gone;
      },
    };
  };

export class MountDriver extends DeviceDriver {
  readonly way = 'mount';
  readonly heartbeatMs = ways.mount.heartbeatMs;
  readonly #directory: string;
  #open = false;

  constructor() {
    const directory = mkdtempSync(path.join(tmpdir(), 'porthole-conformance-'));
    super(startHere(path.join(agentDirectory(), 'posix-agent'), directory));
    this.#directory = directory;
  }

  async begin(spec: WorldSpec): Promise<void> {
    await this.newWorld(spec);
    this.#open = true;
    await this.startDevice({ vhostUser: [], mounts: [{ path: this.#directory }] });
  }

  async end(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    try {
      await this.recallActors();
      await this.assertNothingHeld();
    } finally {
      await this.stopDevice();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
    await this.endActors();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
