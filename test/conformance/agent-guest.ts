/** The mount of an agent in a guest. Each case is another boot to it: another tree of a server that came back. */
import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { type AuditRecord, ROOT_INO, ways } from '../../src/tree/index.ts';
import type { World, WorldSpec } from '../tree/world.ts';
import { AgentServer } from './agent-server.ts';
import type { Actor, Driver, Identity, OutsideView } from './driver.ts';
import { eventually, root, textIn } from './people.ts';
import { AgentPool, type StartAgent } from './posix-agent.ts';
import { machineTimePasses, unseenWorld } from './unseen-world.ts';
import { lookAt } from './world-driver.ts';

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

export class AgentGuestDriver implements Driver {
  readonly way = 'agent';
  readonly heartbeatMs = ways.agent.heartbeatMs;
  readonly #options: AgentGuestOptions;
  readonly #pool: AgentPool;
  #world: World | undefined;
  #server: AgentServer | undefined;
  #case = 0;
  #revision = 0;

  constructor(options: AgentGuestOptions) {
    this.#options = options;
    this.#pool = new AgentPool(startIn(options));
  }

  get #here(): World {
    return this.#world!;
  }

  async begin(spec: WorldSpec): Promise<void> {
    await this.end();
    this.#world = unseenWorld(spec, ++this.#case, ++this.#revision);
    this.#server = await AgentServer.start(this.#world, this.#options.socket, `boot ${this.#case}`);
    const expected = String(this.#here.authority.snapshot.node(ROOT_INO)!.dataRevision);
    const actor = this.as(root);
    await eventually(async () => {
      assert.equal(textIn(await actor.getxattr('/', 'system.porthole.revision')), expected, 'the agent has the tree');
    });
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

  audit(): Promise<readonly AuditRecord[]> {
    return Promise.resolve([...this.#here.audit]);
  }

  breakAudit(broken: boolean): Promise<void> {
    this.#here.auditWorks = !broken;
    return Promise.resolve();
  }

  nowMs(): number {
    return Date.now();
  }

  pass(ms: number): Promise<void> {
    return machineTimePasses(ms);
  }

  async end(): Promise<void> {
    if (this.#world === undefined) return;
    try {
      await this.#pool.recall();
    } finally {
      this.#revision = Math.max(this.#revision, this.#here.authority.snapshot.revision);
      this.#world = undefined;
      await this.#server?.[Symbol.asyncDispose]();
      this.#server = undefined;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
    await this.#pool.end();
  }
}
