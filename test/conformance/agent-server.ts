/** The metadata server of a world, on a socket, for an agent. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { MetadataServer, TokenDesk, tokenStoreInMemory } from '../../src/imds/index.ts';
import { Replica } from '../../src/tree/index.ts';
import type { World } from '../tree/world.ts';

const HOLDER = 'metadata server';
const plenty = { burst: 1_000_000, perSecond: 1_000_000 };

export class AgentServer implements AsyncDisposable {
  readonly #server: MetadataServer;
  readonly #leave: () => void;

  private constructor(server: MetadataServer, leave: () => void) {
    this.#server = server;
    this.#leave = leave;
  }

  /** What comes by the socket is taken for the guest's root. */
  static async start(world: World, socket: string, boot = 'boot'): Promise<AgentServer> {
    const replica = new Replica();
    const leave = world.authority.subscribe(HOLDER, (delta) => replica.apply(delta));
    const { monotonicMs, wallMs } = world.clock;
    const tokens = new TokenDesk({
      store: tokenStoreInMemory(),
      onEvent: (event) => assert.fail(event.event),
      randomBytes,
      monotonicMs,
      wallMs,
    });
    await tokens.boot(boot);
    const server = new MetadataServer({
      vm: 'test',
      replica,
      commit: (mutation, way, sequence, settle) =>
        world.authority.commit(mutation, way, mutation.op === 'drop' ? HOLDER : `${HOLDER} ${boot}`, sequence, settle),
      audit: world.sink,
      clock: world.clock,
      tokens,
      facades: [],
      sessionSecret: () => randomBytes(32),
      // The suite's clock may stand still: no bucket would fill again.
      limits: { uidRate: plenty, agentRate: plenty },
      onError: (error) => assert.fail(error as Error),
    });
    await server.listen({ unix: socket, privileged: true });
    return new AgentServer(server, leave);
  }

  /** True once every connected agent has applied a commit. */
  applied(revision: number, withinMs = 10_000): Promise<boolean> {
    return this.#server.applied(revision, withinMs);
  }

  /** An agent has its stream of commits: from now on `applied` waits for it. */
  get isFollowed(): boolean {
    return this.#server.counters()['inFlight']! > 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server[Symbol.asyncDispose]();
    this.#leave();
  }
}
