/** The agent: this boot's token, a copy of the tree, and a mount of it. */
import { statSync } from 'node:fs';
import { Loop, type Served } from '../device/index.ts';
import { DevFuse, FuseSession } from '../fuse/index.ts';
import { MNT_DETACH, unmount } from '../sys/index.ts';
import { AgentError } from './agent-error.ts';
import { AgentTree } from './agent-tree.ts';
import { TokenFile } from './kept-token.ts';
import type { ServerAddress } from './server-address.ts';
import { ServiceManager } from './service-manager.ts';
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
  /** Of this process: systemd says in it how it is spoken to. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
  readonly onEvent: (event: AgentEvent) => void;
}

/** How often Node looks at its timers while something hangs on them, and else. */
const TURN_MS = { busy: 20, idle: 1_000 } as const;
const clock = { wallMs: () => performance.timeOrigin + performance.now(), monotonicMs: () => performance.now() };

export class Agent {
  readonly #options: AgentOptions;
  readonly #loop = new Loop(0);
  readonly #tree: AgentTree;
  readonly #manager: ServiceManager;
  #isConnected = false;
  #isStopping = false;

  constructor(options: AgentOptions) {
    this.#options = options;
    const { server, waitMs, askMs, onEvent } = options;
    this.#manager = new ServiceManager(options.environment ?? {}, process.pid);
    this.#tree = new AgentTree({
      server,
      token: new TokenFile(this.#manager),
      waitMs,
      askMs,
      clock,
      onWaiting: (why) => onEvent({ event: 'waiting', why }),
      onConnected: (why) => this.#connection(why),
      onBusy: () => this.#loop.yieldToNode(),
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
    const following = this.#tree.follow().catch((error: unknown) => {
      if (this.#isStopping) return;
      failure = error;
      failed.reject(error);
      this.#loop.stop();
    });
    try {
      const boot = await Promise.race([this.#tree.loaded, failed.promise, stopped.promise]);
      if (boot !== undefined) await this.#serve(boot);
      if (failure !== undefined) throw failure;
    } catch (error) {
      if (error instanceof AgentError && error.code === 'TOKEN_DENIED')
        this.#options.onEvent({ event: 'token-denied', why: error.message });
      throw error;
    } finally {
      signal.removeEventListener('abort', stop);
      this.#isStopping = true;
      this.#manager.stopping();
      const tokenReturned = await this.#tree.close();
      await following;
      this.#loop.close();
      this.#options.onEvent({ event: 'stopped', tokenReturned });
    }
  }

  async #serve(boot: string): Promise<void> {
    const { mountPath, onEvent } = this.#options;
    let transport: DevFuse;
    leaveDeadMount(mountPath);
    try {
      transport = DevFuse.mount(mountPath);
    } catch (error) {
      throw new AgentError('MOUNT', error instanceof Error ? error.message : String(error), { cause: error });
    }
    const log = (what: string): void => onEvent({ event: 'trouble', what });
    const session = new FuseSession(this.#tree.fileSystem, {
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
    this.#manager.ready();
    onEvent({ event: 'mounted', path: mountPath, boot, revision: this.#tree.replica.snapshot.revision });
    try {
      if (!this.#isStopping) await this.#loop.run();
    } finally {
      this.#loop.unwatch(transport.fd);
      this.#loop.unserve(served);
      transport.close();
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
      nextDeadlineMs: () => last + (this.#tree.isBusy ? TURN_MS.busy : TURN_MS.idle),
      tick: (nowMs) => {
        last = nowMs;
        this.#loop.yieldToNode();
      },
    };
  }

  #connection(why: string | undefined): void {
    const wasConnected = this.#isConnected;
    this.#isConnected = why === undefined;
    if (why === undefined)
      this.#options.onEvent({ event: 'connected', revision: this.#tree.replica.snapshot.revision });
    else if (wasConnected) this.#options.onEvent({ event: 'cut-off', why });
  }
}

/** A predecessor that was killed leaves its mount behind, on which every call fails. */
const leaveDeadMount = (path: string): void => {
  try {
    statSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOTCONN') unmount(path, MNT_DETACH);
  }
};
