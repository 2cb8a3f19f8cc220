/** A mount through /dev/fuse on this machine, made anew for every case, served here. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { DevFuse, FuseSession } from '../../src/fuse/index.ts';
import { POLLIN, pollOne } from '../../src/sys/index.ts';
import { type TreeFileSystem, ways } from '../../src/tree/index.ts';
import type { World } from '../tree/world.ts';
import type { Actor, Identity } from './driver.ts';
import { eventually } from './people.ts';
import { AgentPool, agentProgram, type StartAgent } from './posix-agent.ts';
import { WorldDriver } from './world-driver.ts';

export const startHere =
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

/** How long one turn of the pump waits for a request; answers of actors wait as long at most. */
const POLL_MS = 1;
/** Requests served before anything else in this process has its turn. */
const BUDGET = 64;

export class MountDriver extends WorldDriver {
  readonly way = 'mount';
  readonly heartbeatMs = ways.mount.heartbeatMs;
  readonly #directory: string;
  readonly #pool: AgentPool;
  #fs: TreeFileSystem | undefined;
  #session: FuseSession | undefined;
  #transport: DevFuse | undefined;
  #pump: Promise<void> | undefined;
  #pumping = false;

  constructor() {
    super();
    this.#directory = mkdtempSync(path.join(tmpdir(), 'porthole-conformance-'));
    this.#pool = new AgentPool(startHere(agentProgram(), this.#directory));
  }

  protected open(world: World): void {
    this.#fs = world.fileSystem(ways.mount);
    this.#transport = DevFuse.mount(this.#directory);
    this.#session = new FuseSession(this.#fs, {
      transport: 'dev-fuse',
      notifier: this.#transport,
      clock: world.clock,
    });
    this.#transport.attach(this.#session);
    this.#pumping = true;
    this.#pump = this.#serve(this.#transport);
  }

  /** Serves in turns with the actors' pipes: this process must not touch the mount itself. */
  async #serve(transport: DevFuse): Promise<void> {
    while (this.#pumping) {
      pollOne(transport.fd, POLLIN, POLL_MS);
      while (transport.process(BUDGET)) continue;
      await setImmediate();
    }
  }

  as(identity: Identity): Actor {
    return this.#pool.take(identity);
  }

  protected tick(nowMs: number): void {
    this.#session!.tick(nowMs);
  }

  protected async shut(): Promise<void> {
    try {
      await this.#pool.recall();
      // The kernel tells of a close when it has returned.
      await eventually(async () => {
        await Promise.resolve();
        const { bugs, held } = this.#session!;
        assert.deepEqual({ bugs, handles: held.handles }, { bugs: 0, handles: 0 });
      });
    } finally {
      this.#pumping = false;
      await this.#pump;
      this.#transport!.close();
      this.#fs!.close();
    }
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#pool.end();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
