/** The agent: this boot's token, a copy of the tree, and a mount of it. */
import { Loop, type Served } from '../device/index.ts';
import { DevFuse, FuseSession } from '../fuse/index.ts';
import { Replica } from '../tree/index.ts';
import { AgentError } from './agent-error.ts';
import { AgentFileSystem } from './agent-file-system.ts';
import { BootToken } from './boot-token.ts';
import { Remote } from './remote.ts';
import type { ServerAddress } from './server-address.ts';
import { ServerClient } from './server-client.ts';
import { TreeFollower } from './tree-follower.ts';
import { callerFromProc } from './who.ts';

export type AgentEvent =
  /** No token yet: why. It is asked for again. */
  | { readonly event: 'waiting'; readonly why: string }
  | { readonly event: 'mounted'; readonly path: string; readonly boot: string; readonly revision: number }
  | { readonly event: 'connected'; readonly revision: number }
  | { readonly event: 'cut-off'; readonly why: string }
  | { readonly event: 'token-denied'; readonly why: string }
  | { readonly event: 'trouble'; readonly what: string }
  | { readonly event: 'stopped'; readonly tokenReturned: boolean };

export interface AgentOptions {
  readonly server: ServerAddress;
  /** An existing directory. */
  readonly mountPath: string;
  /** How long requests wait for a server that is away, before EIO. Default 0. */
  readonly waitMs?: number;
  /** Of a request to a server that is there. Default 5 s. */
  readonly askMs?: number;
  readonly onEvent: (event: AgentEvent) => void;
}

const ASK_MS = 5_000;
/** How often Node looks at its timers while something hangs on them, and else. */
const TURN_MS = { busy: 20, idle: 1_000 } as const;
const clock = { wallMs: () => performance.timeOrigin + performance.now(), monotonicMs: () => performance.now() };

export class Agent {
  readonly #options: AgentOptions;
  readonly #loop = new Loop(0);
  readonly #replica = new Replica();
  readonly #client: ServerClient;
  readonly #token: BootToken;
  readonly #remote: Remote;
  readonly #follower: TreeFollower;
  readonly #loaded = Promise.withResolvers<string>();
  #lastSequence = 0;
  #isConnected = false;
  #isStopping = false;

  constructor(options: AgentOptions) {
    this.#options = options;
    const { onEvent } = options;
    const replica = this.#replica;
    this.#client = new ServerClient(options.server, () => this.#loop.yieldToNode());
    this.#token = new BootToken({
      client: this.#client,
      keep: () => {},
      onWaiting: (why) => onEvent({ event: 'waiting', why }),
    });
    this.#remote = new Remote({
      client: this.#client,
      replica,
      token: () => this.#token.current,
      onTokenInvalid: (token) => this.#token.forget(token),
      nextSequence: () => this.#nextSequence(),
      askMs: options.askMs ?? ASK_MS,
      waitMs: options.waitMs ?? 0,
    });
    this.#follower = new TreeFollower({
      client: this.#client,
      replica,
      token: () => this.#token.get(),
      onTokenInvalid: (token) => this.#token.forget(token),
      onBoot: (boot) => this.#loaded.resolve(boot),
      onConnected: (why) => this.#connection(why),
      onApplied: () => this.#remote.applied(),
    });
  }

  /**
   * Claims the token, mounts, and serves until `signal`, or until somebody unmounts it. Rejects with an AgentError:
   * `TOKEN_DENIED`, `ADDRESS`, `MOUNT`; then nothing is mounted any more.
   */
  async run(signal: AbortSignal): Promise<void> {
    const failed = Promise.withResolvers<never>();
    failed.promise.catch(() => {});
    const stopped = Promise.withResolvers<undefined>();
    const stop = (): void => {
      this.#isStopping = true;
      stopped.resolve(undefined);
      this.#loop.stop();
    };
    signal.addEventListener('abort', stop);
    if (signal.aborted) stop();
    let failure: unknown;
    const following = this.#follower.run().catch((error: unknown) => {
      if (this.#isStopping) return;
      failure = error;
      failed.reject(error);
      this.#loop.stop();
    });
    try {
      const boot = await Promise.race([this.#loaded.promise, failed.promise, stopped.promise]);
      if (boot !== undefined) await this.#serve(boot);
      if (failure !== undefined) throw failure;
    } catch (error) {
      if (error instanceof AgentError && error.code === 'TOKEN_DENIED')
        this.#options.onEvent({ event: 'token-denied', why: error.message });
      throw error;
    } finally {
      signal.removeEventListener('abort', stop);
      this.#isStopping = true;
      this.#follower.stop();
      const tokenReturned = await this.#token.handBack();
      this.#token.stop();
      this.#client[Symbol.dispose]();
      await following;
      this.#loop.close();
      this.#options.onEvent({ event: 'stopped', tokenReturned });
    }
  }

  async #serve(boot: string): Promise<void> {
    const { mountPath, onEvent } = this.#options;
    const fileSystem = new AgentFileSystem({ replica: this.#replica, remote: this.#remote, vm: '', clock });
    let transport: DevFuse;
    try {
      transport = DevFuse.mount(mountPath);
    } catch (error) {
      throw new AgentError('MOUNT', error instanceof Error ? error.message : String(error), { cause: error });
    }
    const log = (what: string): void => onEvent({ event: 'trouble', what });
    const session = new FuseSession(fileSystem, {
      transport: 'dev-fuse',
      notifier: transport,
      clock,
      log,
      caller: callerFromProc(),
    });
    transport.attach(session);
    const served: Served = {
      process: (budget) => {
        const more = transport.process(budget);
        if (transport.ended !== undefined) this.#loop.stop();
        return more;
      },
      get servedCount() {
        return transport.served;
      },
      suppressKicks: () => false,
      nextDeadlineMs: () => session.nextDeadlineMs(),
      tick: (nowMs) => session.tick(nowMs),
    };
    this.#loop.watch(transport.fd, () => {});
    this.#loop.serve(served);
    this.#loop.serve(this.#turns());
    onEvent({ event: 'mounted', path: mountPath, boot, revision: this.#replica.snapshot.revision });
    try {
      if (!this.#isStopping) await this.#loop.run();
    } finally {
      this.#loop.unwatch(transport.fd);
      this.#loop.unserve(served);
      transport.close();
      fileSystem.close();
    }
    if (transport.ended !== undefined && !this.#isStopping) throw new AgentError('MOUNT', transport.ended);
  }

  /** Node's timers wait while this thread is blocked: it is woken for them. */
  #turns(): Served {
    let last = performance.now();
    return {
      process: () => false,
      servedCount: 0,
      suppressKicks: () => false,
      nextDeadlineMs: () => last + (this.#client.inFlight > 0 || !this.#isConnected ? TURN_MS.busy : TURN_MS.idle),
      tick: (nowMs) => {
        last = nowMs;
        this.#loop.yieldToNode();
      },
    };
  }

  #connection(why: string | undefined): void {
    const wasConnected = this.#isConnected;
    this.#isConnected = why === undefined;
    if (why === undefined) this.#options.onEvent({ event: 'connected', revision: this.#replica.snapshot.revision });
    else if (wasConnected) this.#options.onEvent({ event: 'cut-off', why });
  }

  /** Rises over all agents of a boot: the boot's clock in microseconds, or one more than before. */
  #nextSequence(): number {
    const bootMicros = Math.floor(Number(process.hrtime.bigint() / 1000n));
    this.#lastSequence = Math.max(this.#lastSequence + 1, bootMicros);
    return this.#lastSequence;
  }
}
