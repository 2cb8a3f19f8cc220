/** The agent: this boot's token, a copy of the tree, and a mount of it. */
import { mkdirSync, statfsSync } from 'node:fs';
import { Loop, type Served } from '../device/index.ts';
import { DevFuse, FuseSession } from '../fuse/index.ts';
import { tearDown } from '../sys/index.ts';
import { AgentError } from './agent-error.ts';
import { AgentTree } from './agent-tree.ts';
import { KeptMount } from './kept-mount.ts';
import { TokenFile } from './kept-token.ts';
import { isMountedAt } from './mounts.ts';
import type { ServerAddress } from './server-address.ts';
import { ServiceManager } from './service-manager.ts';
import { callerFromProc } from './who.ts';

export type AgentEvent =
  /** No token yet: why. It is asked for again. */
  | { readonly event: 'waiting'; readonly why: string }
  /** `resumed`: the mount is a predecessor's, and goes on. */
  | { readonly event: 'mounted'; readonly path: string; readonly revision: number; readonly resumed: boolean }
  | { readonly event: 'connected'; readonly revision: number }
  | { readonly event: 'cut-off'; readonly why: string }
  | { readonly event: 'token-denied'; readonly why: string }
  | { readonly event: 'trouble'; readonly what: string }
  | { readonly event: 'stopped'; readonly tokenReturned: boolean }
  /** Token and mount are left to a successor. */
  | { readonly event: 'left' };

export interface AgentOptions {
  readonly server: ServerAddress;
  /** Made if it is not there. */
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
  readonly #kept: KeptMount | undefined;
  #isConnected = false;

  constructor(options: AgentOptions) {
    this.#options = options;
    const { server, waitMs, askMs, onEvent } = options;
    this.#manager = new ServiceManager(options.environment ?? {}, process.pid);
    this.#kept = this.#manager.isThere ? new KeptMount(this.#manager, options.mountPath) : undefined;
    this.#tree = new AgentTree({
      server,
      token: new TokenFile(this.#manager),
      kept: this.#kept,
      waitMs,
      askMs,
      clock,
      onWaiting: (why) => onEvent({ event: 'waiting', why }),
      onConnected: (why) => this.#connection(why),
      loop: this.#loop,
    });
  }

  /**
   * Claims the token, mounts, and serves until `signals.stop`, or until somebody unmounts it, or until `signals.leave`: then
   * token and mount are left to a successor, where somebody keeps them for it; else it stops. Rejects with an AgentError:
   * `TOKEN_DENIED`, `ADDRESS`, `MOUNT`; then nothing is mounted any more.
   */
  async run(signals: { readonly stop: AbortSignal; readonly leave?: AbortSignal }): Promise<void> {
    const ended = Promise.withResolvers<'stop' | 'leave'>();
    ended.promise.catch(() => {});
    const stops = [
      onAbort(signals.stop, () => ended.resolve('stop')),
      onAbort(signals.leave, () => ended.resolve(this.#kept === undefined ? 'stop' : 'leave')),
    ];
    this.#loop.serve(this.#turns());
    const looping = this.#loop.run();
    looping.catch(ended.reject);
    const following = this.#tree.follow().catch(ended.reject);
    let how: 'stop' | 'leave' = 'stop';
    let unmount = (_how: 'stop' | 'leave'): void => {};
    try {
      const ready = this.#tree.isLeft ? undefined : this.#tree.loaded;
      const endedEarly = await Promise.race([ready, ended.promise]);
      if (endedEarly === undefined) unmount = this.#mount(ended.reject);
      how = await ended.promise;
    } catch (error) {
      if (error instanceof AgentError && error.code === 'TOKEN_DENIED')
        this.#options.onEvent({ event: 'token-denied', why: error.message });
      throw error;
    } finally {
      for (const stop of stops) stop();
      unmount(how);
      await this.#end(how);
      await following;
      this.#loop.stop();
      await looping.catch(() => {});
      this.#loop.close();
    }
  }

  async #end(how: 'stop' | 'leave'): Promise<void> {
    this.#manager.stopping();
    if (how === 'leave') {
      this.#tree.leave();
      this.#options.onEvent({ event: 'left' });
      return;
    }
    const tokenReturned = await this.#tree.close();
    this.#kept?.end();
    this.#options.onEvent({ event: 'stopped', tokenReturned });
  }

  /** Serves from now on; `failed` is told when somebody unmounts it. Gives what ends it. */
  #mount(failed: (error: AgentError) => void): (how: 'stop' | 'leave') => void {
    const { mountPath, onEvent } = this.#options;
    const kept = this.#kept;
    const onBusy = (): void => this.#loop.yieldToNode();
    let transport: DevFuse;
    try {
      if (kept?.isLeft !== true) {
        leaveDeadMount(mountPath);
        mkdirSync(mountPath, { recursive: true });
      }
      transport = kept?.mount(onBusy) ?? DevFuse.mount(mountPath, { onBusy });
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
      ...(kept && { journal: kept.journal }),
    });
    kept?.restore(session, transport, this.#tree);
    transport.attach(session);
    const served: Served = {
      process: (budget) => {
        const more = transport.process(budget);
        if (transport.ended !== undefined) {
          failed(new AgentError('MOUNT', transport.ended));
          this.#loop.yieldToNode();
        }
        if (!transport.hasRedone) kept?.settle();
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
    this.#manager.ready();
    const { revision } = this.#tree.replica.snapshot;
    onEvent({ event: 'mounted', path: mountPath, revision, resumed: kept?.isLeft ?? false });
    void this.#tree.publish().catch((error: unknown) => log(`telling of the guest's inside failed: ${String(error)}`));
    return (how) => {
      this.#loop.unwatch(transport.fd);
      this.#loop.unserve(served);
      if (how === 'leave') {
        transport.leave();
        kept?.leave();
      } else transport.close();
    };
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

const onAbort = (signal: AbortSignal | undefined, then: () => void): (() => void) => {
  signal?.addEventListener('abort', then);
  if (signal?.aborted === true) then();
  return () => signal?.removeEventListener('abort', then);
};

/** A predecessor that was killed leaves its mount behind, on which every call fails that the kernel can't answer by itself. */
const leaveDeadMount = (path: string): void => {
  if (!isMountedAt(path)) return;
  try {
    statfsSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOTCONN') tearDown(path);
  }
};
