/** Keeps a replica at the server's tree: loads it, follows its commits, and begins again where it was when that breaks. */
import type { IncomingMessage } from 'node:http';
import type { Clock, Replica } from '../tree/index.ts';
import { AgentError } from './agent-error.ts';
import type { ServerClient } from './server-client.ts';
import { commitOf, treeOf } from './told-tree.ts';

export const followLimits = {
  /** Of a request; a tree takes longer on a slow link. */
  askMs: 15_000,
  /** The server beats every 10 s: what is silent for longer is gone. */
  silenceMs: 25_000,
  /** Waits before the next try; the last one repeats. */
  retriesMs: [50, 100, 250, 500, 1_000, 2_000, 5_000],
  /** One commit: 100 nodes of 1 MiB at most, in base64. */
  lineCharacters: 192 * 1024 * 1024,
} as const;

export interface TreeFollowerOptions {
  readonly client: ServerClient;
  readonly replica: Replica;
  readonly clock: Clock;
  /** Of this boot; asked anew before each connection. Rejects: nothing can be followed any more. */
  readonly token: () => Promise<string>;
  /** The server knows our token no more: the next `token` is another, or rejects. */
  readonly onTokenInvalid: (token: string) => void;
  /** It follows, or does not: why. */
  readonly onConnected: (why: undefined | string) => void;
  readonly onApplied: () => void;
  /** The replica holds what a predecessor had: it is followed from there. */
  readonly isLoaded: boolean;
}

export class TreeFollower {
  readonly #options: TreeFollowerOptions;
  readonly #stop = new AbortController();
  #stream: IncomingMessage | undefined;
  #boot: string | undefined;
  /** The replica may hold what the server has not: it is loaded anew. */
  #mustLoad: boolean;

  constructor(options: TreeFollowerOptions) {
    this.#options = options;
    this.#mustLoad = !options.isLoaded;
  }

  get boot(): string | undefined {
    return this.#boot;
  }

  /** Follows until `stop`; rejects only with what `token` rejects with. */
  async run(): Promise<void> {
    const { replica, clock, onConnected } = this.#options;
    let failures = 0;
    while (!this.#stop.signal.aborted) {
      const token = await this.#options.token();
      try {
        await this.#connect(token, () => {
          failures = 0;
          replica.cutOffSinceMs = undefined;
          onConnected(undefined);
        });
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (!(error instanceof AgentError)) this.#mustLoad = true;
        else if (error.code === 'TOKEN_INVALID') this.#options.onTokenInvalid(token);
        else if (error.code !== 'SERVER_AWAY' && error.code !== 'SERVER_UNREACHED') this.#mustLoad = true;
        if (failures === 0 && replica.snapshot.revision > 0) replica.cutOffSinceMs = clock.monotonicMs();
        onConnected(error instanceof Error ? error.message : String(error));
      }
      const { retriesMs } = followLimits;
      await pause(retriesMs[Math.min(failures++, retriesMs.length - 1)]!, this.#stop.signal);
    }
  }

  stop(): void {
    this.#stop.abort();
    this.#stream?.destroy();
  }

  /** Returns, or rejects, when the stream has ended. */
  async #connect(token: string, connected: () => void): Promise<void> {
    const { client, replica } = this.#options;
    const options = { token, withinMs: followLimits.askMs };
    if (this.#mustLoad) {
      const { status, body } = await client.ask('GET', 'tree', undefined, options);
      if (status === 401) throw new AgentError('TOKEN_INVALID', "the server does not know this boot's token");
      if (status !== 200) throw new AgentError('SERVER_AWAY', `the server answered the tree with ${status}`);
      const { boot, delta } = treeOf(body);
      replica.apply(delta);
      this.#mustLoad = false;
      this.#boot = boot;
      this.#options.onApplied();
    }
    const { stream, id } = await client.follow(replica.snapshot.revision, options);
    this.#stream = stream;
    connected();
    try {
      await this.#read(stream, () => void this.#acknowledge(token, id));
    } finally {
      this.#stream = undefined;
      stream.destroy();
    }
    throw new AgentError('SERVER_AWAY', 'the server ended the stream of commits');
  }

  async #read(stream: IncomingMessage, applied: () => void): Promise<void> {
    const { replica, onApplied } = this.#options;
    stream.setEncoding('utf8');
    const silence = setTimeout(
      () => stream.destroy(new AgentError('SERVER_AWAY', 'the server is silent')),
      followLimits.silenceMs,
    );
    let rest = '';
    try {
      for await (const part of stream) {
        silence.refresh();
        const lines = (rest + (part as string)).split('\n');
        rest = lines.pop()!;
        if (rest.length > followLimits.lineCharacters) throw new AgentError('SERVER_GARBAGE', 'a commit has no end');
        const before = replica.snapshot.revision;
        for (const line of lines) {
          const delta = commitOf(line);
          if (delta !== undefined && delta.revision > replica.snapshot.revision) replica.apply(delta);
        }
        if (replica.snapshot.revision === before) continue;
        onApplied();
        applied();
      }
    } catch (error) {
      throw error instanceof AgentError ? error : new AgentError('SERVER_AWAY', 'the stream of commits broke');
    } finally {
      clearTimeout(silence);
    }
  }

  async #acknowledge(token: string, stream: number): Promise<void> {
    const { client, replica } = this.#options;
    const { revision } = replica.snapshot;
    try {
      await client.ask('POST', 'applied', { stream, revision }, { token, withinMs: followLimits.askMs });
    } catch {
      // Whoever waits for it is told that we have not; the stream will say why.
    }
  }
}

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done);
    if (signal.aborted) done();
  });
