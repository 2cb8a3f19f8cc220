/** The mount of an agent in a guest. Each case is another boot to it: another tree of a server that came back. */
import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { ROOT_INO, ways } from '../../src/tree/index.ts';
import type { World, WorldSpec } from '../tree/world.ts';
import { AgentServer } from './agent-server.ts';
import type { Actor, Identity } from './driver.ts';
import { eventually, root, textIn } from './people.ts';
import { AgentPool, type StartAgent } from './posix-agent.ts';
import { machineTimePasses, unseenWorld } from './unseen-world.ts';
import { WorldDriver } from './world-driver.ts';

export interface AgentGuestOptions {
  /** Where the metadata server is to listen: what comes there is the guest's agent. */
  readonly socket: string;
  /** In the guest. */
  readonly mountPath: string;
  /** Of `posix-agent.c`, in the guest. */
  readonly program: string;
  /** A shell of the guest's root, that reads a byte at a time. */
  readonly shell: () => Promise<Socket>;
}

const isToldAbove = (): void => {};

/** A process of the guest by a shell that becomes it; the shell says its number first. */
const startIn =
  ({ shell, program, mountPath }: AgentGuestOptions): StartAgent =>
  ({ uid, gid, groups }, receive) => {
    const connection = shell();
    const pid = Promise.withResolvers<string>();
    let said = '';
    const become = async (): Promise<void> => {
      const socket = await connection;
      const gone = (reason: string): void => receive(undefined, reason);
      socket.once('error', ({ message }) => gone(message)).once('close', () => gone('its connection ended'));
      socket.once('end', () => socket.end());
      const takeLine = (chunk: Buffer): void => {
        said += chunk.toString('latin1');
        const newline = said.indexOf('\n');
        if (newline < 0) return;
        pid.resolve(said.slice(0, newline));
        socket.off('data', takeLine);
        socket.on('data', receive);
        if (newline + 1 < said.length) receive(Buffer.from(said.slice(newline + 1), 'latin1'));
      };
      socket.on('data', takeLine);
      socket.write(`cd /; echo $$; exec ${program} ${mountPath} ${uid} ${gid} ${groups.join(',')}\n`);
    };
    become().catch((error: Error) => receive(undefined, error.message));
    const kill = async (signal: string): Promise<void> => {
      const killer = await shell();
      killer.end(`kill -${signal} ${await pid.promise}\n`);
      killer.resume();
    };
    return {
      write: (text) => void connection.then((socket) => socket.write(text), isToldAbove),
      interrupt: () => void kill('USR1'),
      end: async () => {
        const socket = await connection;
        const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
        await kill('KILL');
        await closed;
      },
    };
  };

export class AgentGuestDriver extends WorldDriver {
  readonly way = 'agent';
  readonly heartbeatMs = ways.agent.heartbeatMs;
  readonly #options: AgentGuestOptions;
  readonly #pool: AgentPool;
  #server: AgentServer | undefined;
  #case = 0;
  #revision = 0;

  constructor(options: AgentGuestOptions) {
    super();
    this.#options = options;
    this.#pool = new AgentPool(startIn(options));
  }

  protected override worldOf(spec: WorldSpec): World {
    return unseenWorld(spec, ++this.#case, ++this.#revision);
  }

  protected override async open(world: World): Promise<void> {
    this.#server = await AgentServer.start(world, this.#options.socket, `boot ${this.#case}`);
    const expected = String(world.authority.snapshot.node(ROOT_INO)!.dataRevision);
    const actor = this.as(root);
    await eventually(async () => {
      assert.equal(textIn(await actor.getxattr('/', 'system.porthole.revision')), expected, 'the agent has the tree');
      assert.ok(this.#server?.isFollowed, 'the agent follows it');
    });
  }

  as(identity: Identity): Actor {
    return this.#pool.take(identity);
  }

  protected override async shown(world: World): Promise<void> {
    assert.ok(await this.#server!.applied(world.authority.snapshot.revision), 'the agent applies it');
  }

  /** Nobody moves the machine's time, nor the guest's. */
  protected override tick(): void {}

  override nowMs(): number {
    return Date.now();
  }

  /** Both decide by their own clocks, and the guest's may be late: an emulated one was by 0.3 s. */
  override async pass(ms: number): Promise<void> {
    await machineTimePasses(ms);
    const guest = await this.#options.shell();
    guest.end(`until [ $(date +%s%3N) -ge ${this.nowMs()} ]; do sleep 0.01; done; echo passed\n`);
    assert.equal(await text(guest), 'passed\n');
  }

  protected override async shut(world: World): Promise<void> {
    try {
      await this.#pool.recall();
    } finally {
      this.#revision = Math.max(this.#revision, world.authority.snapshot.revision);
      await this.#server?.[Symbol.asyncDispose]();
      this.#server = undefined;
    }
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#pool.end();
  }
}
