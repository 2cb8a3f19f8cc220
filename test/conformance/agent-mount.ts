/** The mount of an agent, whose metadata server is in this process as well: everything between the two is HTTP on a socket. */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { AgentTree, callerFromProc, parseServerAddress } from '../../src/agent/index.ts';
import { DevFuse, FuseSession } from '../../src/fuse/index.ts';
import { POLLIN, pollOne } from '../../src/sys/index.ts';
import { ways } from '../../src/tree/index.ts';
import type { World } from '../tree/world.ts';
import { AgentServer } from './agent-server.ts';
import type { Actor, Identity } from './driver.ts';
import { startHere } from './mount.ts';
import { eventually } from './people.ts';
import { AgentPool, agentProgram } from './posix-agent.ts';
import { WorldDriver } from './world-driver.ts';

const POLL_MS = 1;
const BUDGET = 64;

export class AgentMountDriver extends WorldDriver {
  readonly way = 'agent';
  readonly heartbeatMs = ways.agent.heartbeatMs;
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-agent-'));
  readonly #mountPath = path.join(this.#directory, 'mnt');
  readonly #socket = path.join(this.#directory, 'server.sock');
  readonly #pool = new AgentPool(startHere(agentProgram(), this.#mountPath));
  #server: AgentServer | undefined;
  #session: FuseSession | undefined;
  #ends: (() => Promise<unknown>)[] = [];
  #pumping = false;

  constructor() {
    super();
    chmodSync(this.#directory, 0o711);
    mkdirSync(this.#mountPath);
  }

  protected override async open(world: World): Promise<void> {
    const server = await AgentServer.start(world, this.#socket);
    this.#server = server;
    this.#ends.unshift(() => server[Symbol.asyncDispose]());
    const { clock } = world;
    const tree = new AgentTree({
      server: parseServerAddress(`unix:${this.#socket}`),
      clock,
      onWaiting: (why) => assert.fail(why),
      onConnected: () => {},
    });
    const following = tree.follow();
    this.#ends.unshift(async () => {
      await tree.close();
      await following;
    });
    await tree.loaded;
    const transport = DevFuse.mount(this.#mountPath);
    const caller = callerFromProc();
    this.#session = new FuseSession(tree.fileSystem, { transport: 'dev-fuse', notifier: transport, clock, caller });
    transport.attach(this.#session);
    this.#pumping = true;
    const pump = this.#serve(transport);
    this.#ends.unshift(async () => {
      this.#pumping = false;
      await pump;
      transport.close();
    });
  }

  /** Serves in turns with everything else: this process must not touch the mount itself. */
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

  protected override async shown(world: World): Promise<void> {
    assert.ok(await this.#server!.applied(world.authority.snapshot.revision), 'the agent applies it');
  }

  protected override tick(nowMs: number): void {
    this.#session!.tick(nowMs);
  }

  protected override async shut(): Promise<void> {
    try {
      await this.#pool.recall();
      // The kernel tells of a close when it has returned.
      if (this.#session !== undefined)
        await eventually(async () => {
          await Promise.resolve();
          const { bugs, held } = this.#session!;
          assert.deepEqual({ bugs, handles: held.handles }, { bugs: 0, handles: 0 });
        });
    } finally {
      this.#session = undefined;
      for (const end of this.#ends.splice(0)) await end();
    }
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#pool.end();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
