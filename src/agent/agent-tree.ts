/** The tree of a metadata server, as a file system: the token, the copy of what everybody may read, and the way to the rest. */
import type { ConnectionJournal } from '../device/index.ts';
import { type Clock, Replica } from '../tree/index.ts';
import { AgentFileSystem } from './agent-file-system.ts';
import { BootToken } from './boot-token.ts';
import type { StreamLoop } from './fd-stream.ts';
import type { TokenFile } from './kept-token.ts';
import type { KeptTree } from './kept-tree.ts';
import { Publisher } from './publisher.ts';
import { Remote } from './remote.ts';
import type { ServerAddress } from './server-address.ts';
import { ServerClient } from './server-client.ts';
import { TreeFollower } from './tree-follower.ts';

export interface AgentTreeOptions {
  readonly server: ServerAddress;
  /** How long requests wait for a server that is away, before EIO. Default 0. */
  readonly waitMs?: number | undefined;
  /** Of a request to a server that is there. Default 5 s. */
  readonly askMs?: number | undefined;
  readonly clock: Clock;
  /** Where the token outlives this process. */
  readonly token?: TokenFile;
  /** Where all else outlives this process. */
  readonly kept?: KeptState | undefined;
  /** No token yet, why; it is asked for again. */
  readonly onWaiting: (why: string) => void;
  /** It follows the server, or does not: why. */
  readonly onConnected: (why: string | undefined) => void;
  /** The loop of this thread, where one blocks it. */
  readonly loop?: StreamLoop;
}

/** What outlives this process, of the tree and of what is open in it. */
export interface KeptState {
  readonly tree: KeptTree;
  readonly journal: ConnectionJournal;
}

const ASK_MS = 5_000;

export class AgentTree {
  readonly replica = new Replica();
  readonly fileSystem: AgentFileSystem;
  /** A predecessor has left the tree: it can be served before the server answers. */
  readonly isLeft: boolean;
  readonly #client: ServerClient;
  readonly #token: BootToken;
  readonly #remote: Remote;
  readonly #follower: TreeFollower;
  readonly #publisher: Publisher;
  readonly #stop = new AbortController();
  readonly #loaded = Promise.withResolvers<void>();
  #lastSequence = 0;
  #isConnected = false;

  constructor(options: AgentTreeOptions) {
    const { clock, kept, onWaiting, onConnected } = options;
    const { replica } = this;
    this.isLeft = kept?.tree.load(replica) ?? false;
    if (kept !== undefined) replica.onApply((delta) => kept.tree.keep(delta, replica));
    this.#client = new ServerClient(options.server, options.loop);
    this.#token = new BootToken({
      client: this.#client,
      kept: options.token?.load(),
      keep: (kept) => options.token?.save(kept),
      onWaiting,
    });
    const onTokenInvalid = (token: string): void => this.#token.forget(token);
    const remote = new Remote({
      client: this.#client,
      replica,
      token: () => this.#token.current,
      onTokenInvalid,
      nextSequence: () => this.#nextSequence(),
      askMs: options.askMs ?? ASK_MS,
      waitMs: options.waitMs ?? 0,
    });
    this.#publisher = new Publisher({
      replica,
      submit: (mutation, settle) => remote.submit(mutation, settle),
      onBusy: () => options.loop?.yieldToNode(),
    });
    this.#remote = remote;
    const fetch: Remote['fetch'] = (opener, ino, done) => remote.fetch(opener, ino, done);
    const upstream = { fetch, ...(kept?.journal.log.upstream(remote) ?? { submit: remote.submit.bind(remote) }) };
    this.fileSystem = new AgentFileSystem({ replica, remote, upstream, journal: kept?.journal, vm: '', clock });
    this.#follower = new TreeFollower({
      client: this.#client,
      replica,
      clock,
      token: () => this.#token.get(),
      onTokenInvalid,
      onConnected: (why) => {
        this.#isConnected = why === undefined;
        // Not before: whoever changes the tree then waits for us.
        if (why === undefined) this.#loaded.resolve();
        onConnected(why);
      },
      onApplied: () => remote.applied(),
      isLoaded: this.isLeft,
    });
  }

  /** Resolves when the tree is that of the server. */
  get loaded(): Promise<void> {
    return this.#loaded.promise;
  }

  /** Whether Node has timers or answers to look after. */
  get isBusy(): boolean {
    return !this.#isConnected || this.#client.inFlight > 0;
  }

  /** Tells the server of the guest's inside until `close`. */
  publish(): Promise<void> {
    return this.#publisher.run(this.#stop.signal);
  }

  /** Claims the token and keeps the tree until `close`. Rejects with an AgentError `TOKEN_DENIED` or `ADDRESS`. */
  follow(): Promise<void> {
    return this.#follower.run();
  }

  /** Ends, and leaves token and all that is open to a successor. */
  leave(): void {
    this.#remote.leave();
    this.#stop.abort();
    this.#follower.stop();
    this.#token.stop();
    this.#client[Symbol.dispose]();
  }

  /** Resolves with whether the token was handed back. */
  async close(): Promise<boolean> {
    this.#stop.abort();
    this.#follower.stop();
    this.fileSystem.close();
    const isReturned = await this.#token.handBack();
    this.#remote.leave();
    this.#client[Symbol.dispose]();
    return isReturned;
  }

  /** Rises over all agents of a boot: the boot's clock in microseconds, or one more than before. */
  #nextSequence(): number {
    const bootMicros = Number(process.hrtime.bigint() / 1000n);
    this.#lastSequence = Math.max(this.#lastSequence + 1, bootMicros);
    return this.#lastSequence;
  }
}
