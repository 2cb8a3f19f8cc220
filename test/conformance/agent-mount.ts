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
import { World, type WorldSpec } from '../tree/world.ts';
import { AgentServer } from './agent-server.ts';
import type { Actor, Driver, Identity, OutsideView } from './driver.ts';
import { startHere } from './mount.ts';
import { eventually } from './people.ts';
import { AgentPool, agentProgram } from './posix-agent.ts';
import { lookAt } from './world-driver.ts';

const POLL_MS = 1;
const BUDGET = 64;

export class AgentMountDriver implements Driver {
  readonly way = 'agent';
  readonly heartbeatMs = ways.agent.heartbeatMs;
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-agent-'));
  readonly #mountPath = path.join(this.#directory, 'mnt');
  readonly #socket = path.join(this.#directory, 'server.sock');
  readonly #pool = new AgentPool(startHere(agentProgram(), this.#mountPath));
  #world: World | undefined;
  #server: AgentServer | undefined;
  #session: FuseSession | undefined;
  #ends: (() => Promise<unknown>)[] = [];
  #pumping = false;

  constructor() {
    chmodSync(this.#directory, 0o711);
    mkdirSync(this.#mountPath);
  }

  get #here(): World {
    return this.#world!;
  }

  async begin(spec: WorldSpec): Promise<void> {
    await this.end();
    const world = new World(spec);
    this.#world = world;
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

  async load(spec: WorldSpec): Promise<void> {
    this.#here.load(spec);
    assert.ok(await this.#server!.applied(this.#here.authority.snapshot.revision), 'the agent applies it');
  }

  look(path: string): Promise<OutsideView | undefined> {
    return Promise.resolve(lookAt(this.#here, path));
  }

  audit() {
    return Promise.resolve([...this.#here.audit]);
  }

  breakAudit(broken: boolean): Promise<void> {
    this.#here.auditWorks = !broken;
    return Promise.resolve();
  }

  nowMs(): number {
    return this.#here.clock.nowMs;
  }

  pass(ms: number): Promise<void> {
    const { clock } = this.#here;
    clock.advance(ms);
    this.#session!.tick(clock.nowMs);
    return Promise.resolve();
  }

  async end(): Promise<void> {
    if (this.#world === undefined) return;
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
      this.#world = undefined;
      this.#session = undefined;
      for (const end of this.#ends.splice(0)) await end();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
    await this.#pool.end();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
