/** `porthole serve`: one spec file, one tree, one device process, any number of ways in. */
import { basename } from 'node:path';
import { type LinkConfig, type LinkOptions, type LinkTarget, monotonicMs, type ToHost } from '../device/index.ts';
import { type Mutation, type Outcome, type Settle, ways } from '../tree/index.ts';
import { EIO } from '../wire/index.ts';
import { Audit } from './audit.ts';
import { DeviceProcess } from './device-process.ts';
import { printable } from './printable.ts';
import { cleanUp, groupId, prepareMount, prepareSocket, ServeError } from './serve-targets.ts';
import { ServedTree, type ServedTreeOptions } from './served-tree.ts';
import { loadSpecOrThrow } from './spec-file.ts';
import type { SpecError, SpecProblem } from './spec-problem.ts';
import { State } from './state.ts';

/** What to serve, and by which ways in. */
export interface ServeOptions {
  readonly file: string;
  /** Paths of sockets for vhost-user front ends. */
  readonly vhostUser: readonly string[];
  /** Group by name or number that may connect to the sockets. Default: only the owner may. */
  readonly socketGroup?: string;
  /** Directories of this machine to mount on. */
  readonly mounts: readonly string[];
  readonly stateDirectory?: string;
  /** File for the audit log, or '-'. */
  readonly audit?: string;
  readonly writeStdout: (text: string) => boolean;
  readonly onEvent: (event: ServeEvent) => void;
  readonly device?: Partial<LinkOptions>;
  /** Another device process than that of this checkout. */
  readonly deviceCommand?: readonly [string, ...string[]];
}

/** What people or programs are told while serving. `--json` prints one a line. */
export type ServeEvent =
  | {
      readonly event: 'loaded';
      readonly vm: string;
      readonly file: string;
      readonly revision: number;
      readonly nodes: number;
    }
  | { readonly event: 'warning'; readonly problem: SpecProblem }
  | { readonly event: 'ready'; readonly target: LinkTarget }
  | { readonly event: 'failed'; readonly target: LinkTarget; readonly reason: string }
  | { readonly event: 'target'; readonly target: LinkTarget; readonly what: string; readonly detail: string }
  /** `applied`: whoever opens a file from now on sees it. False when the device process did not say so in time. */
  | { readonly event: 'reloaded'; readonly revision: number; readonly changes: number; readonly applied: boolean }
  | { readonly event: 'rejected'; readonly error: SpecError | Error }
  /** After `rejected`: the file says again what is served. */
  | { readonly event: 'mended'; readonly revision: number }
  | { readonly event: 'device-ended'; readonly reason: string; readonly restartInMs: number }
  | { readonly event: 'trouble'; readonly what: string }
  | { readonly event: 'stopped' };

/** Waits before a device process that ended is started again; the last one repeats. */
const restartsMs = [200, 1_000, 5_000, 30_000] as const;
/** A device process that lived this long starts the waits anew. */
const healthyMs = 60_000;
const refused: Outcome = { errno: EIO, revision: 0, ino: 0 };
/** How long a reload waits to be applied before it is told without. */
const applyWithinMs = 2_000;
const answerWithinMs = 2_000;

/** Values of the device process by name, such as `fuse.OPEN`. */
export type Counters = Readonly<Record<string, number>>;

/**
 * Starts serving; resolves when every target is ready. SpecError, StoreError, ServeError: nothing is left behind.
 * The caller stops it.
 */
export const serve = async (options: ServeOptions): Promise<Server> => {
  // Before anything is made on the disk.
  const loaded = loadSpecOrThrow(options.file);
  const gid = options.socketGroup === undefined ? undefined : groupId(options.socketGroup);
  const vhostUser = await Promise.all(options.vhostUser.map((path) => prepareSocket(path, gid)));
  const mounts = options.mounts.map(prepareMount);
  const twice = [...vhostUser, ...mounts].map(({ path }) => path).find((path, i, all) => all.indexOf(path) !== i);
  if (twice !== undefined) throw new ServeError(`"${twice}" is given twice; give it once`);
  const vm = basename(options.file).replace(/\.ya?ml$/, '');
  const server = new Server(options, loaded, {
    type: 'config',
    vm,
    vhostUser,
    mounts,
    options: { spinMicros: 50, allowUnsealedMemory: false, ...options.device },
  });
  try {
    await server.start();
    return server;
  } catch (error) {
    await server.stop();
    throw error;
  }
};

/** What `serve` started. */
export class Server implements AsyncDisposable {
  readonly #options: ServeOptions;
  readonly #config: Omit<LinkConfig, 'auditRing'>;
  readonly #targets: readonly LinkTarget[];
  readonly #tree: ServedTree;
  readonly #audit: Audit;
  readonly #state: State | undefined;
  readonly #ended = Promise.withResolvers<void>();
  /** Whether the spec file was wrong when it was last read. */
  #rejected = false;
  #device: DeviceProcess | undefined;
  #unsubscribe: (() => void) | undefined;
  #restart: NodeJS.Timeout | undefined;
  #restarts = 0;
  #generation = 0;
  #startedMs = 0;
  /** Targets that have not said ready or failed since the device process started, by path; and who waits for that. */
  readonly #awaited = new Map<string, PromiseWithResolvers<void>>();
  /** The commit up to which the device process has told that it applied them. */
  #appliedRevision = 0;
  readonly #unapplied = new Set<{ readonly revision: number; readonly tell: (applied: boolean) => void }>();
  #questions = 0;
  readonly #asked = new Map<number, (counters: Counters | undefined) => void>();
  #hasWarnedOfOnce = false;
  #stopping: Promise<void> | undefined;
  #kills = new AbortController();

  constructor(options: ServeOptions, loaded: ServedTreeOptions['loaded'], config: LinkConfig) {
    this.#options = options;
    this.#config = config;
    this.#targets = [
      ...config.vhostUser.map(({ path }): LinkTarget => ({ kind: 'vhost-user', path })),
      ...config.mounts.map(({ path }): LinkTarget => ({ kind: 'mount', path })),
    ];
    const onTrouble = (what: string): void => this.#emit({ event: 'trouble', what });
    this.#audit = new Audit({
      vm: config.vm,
      target: options.audit,
      writeStdout: options.writeStdout,
      onTrouble,
      onLie: (reason) => {
        if (this.#device === undefined)
          onTrouble(`the audit ring of a device process that ended has nonsense: ${reason}`);
        else this.#device.lied(`its audit ring: ${reason}`);
      },
    });
    try {
      const { stateDirectory } = options;
      this.#state = stateDirectory === undefined ? undefined : new State(stateDirectory);
      this.#audit.openRing(stateDirectory);
      this.#tree = new ServedTree({
        vm: config.vm,
        file: options.file,
        loaded,
        state: this.#state,
        audit: this.#audit.record,
        wallMs: Date.now,
      });
    } catch (error) {
      this.#state?.close();
      this.#audit[Symbol.dispose]();
      throw error;
    }
  }

  get tree(): ServedTree {
    return this.#tree;
  }

  /** Process id of the device process, while there is one. */
  get devicePid(): number | undefined {
    return this.#device?.pid;
  }

  /** Resolves when it has stopped. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /**
   * Resolves with true once the device process has applied the commit: whoever opens a file from then on sees it. With false
   * when it did not say so in time.
   */
  applied(revision: number, withinMs = applyWithinMs): Promise<boolean> {
    return new Promise((resolve) => this.#whenApplied(revision, withinMs, resolve));
  }

  /** Counters of the device process, summed over its ways in; undefined when there is none, or it does not answer in time. */
  statistics(withinMs = answerWithinMs): Promise<Counters | undefined> {
    return new Promise((resolve) => {
      const id = ++this.#questions;
      const answer = (counters: Counters | undefined): void => {
        clearTimeout(late);
        this.#asked.delete(id);
        resolve(counters);
      };
      const late = setTimeout(answer, withinMs, undefined);
      this.#asked.set(id, answer);
      if (this.#device === undefined) answer(undefined);
      else this.#device.send({ type: 'askStatistics', id });
    });
  }

  async start(): Promise<void> {
    const { snapshot } = this.#tree.authority;
    const { vm } = this.#config;
    this.#emit({ event: 'loaded', vm, file: this.#tree.file, revision: snapshot.revision, nodes: snapshot.nodes.size });
    for (const problem of this.#tree.warnings) this.#emit({ event: 'warning', problem });
    this.#warnOfOnce();
    this.#tree.watch({
      onReload: ({ revision, changes, changed, warnings }) => {
        for (const problem of warnings) this.#emit({ event: 'warning', problem });
        this.#warnOfOnce();
        if (changed) this.#tellReload(revision, changes);
        else if (this.#rejected) this.#emit({ event: 'mended', revision });
        this.#rejected = false;
      },
      onRejected: (error) => {
        this.#rejected = true;
        this.#emit({ event: 'rejected', error });
      },
    });
    for (const { path } of this.#targets) this.#awaited.set(path, Promise.withResolvers());
    const ready = [...this.#awaited.values()].map(({ promise }) => promise);
    this.#startDevice();
    await Promise.all(ready);
  }

  /** Which values were read is known in memory alone where there is no state directory. */
  #warnOfOnce(): void {
    if (this.#hasWarnedOfOnce || this.#state !== undefined || !this.#tree.authority.replica.policy.hasOnce) return;
    this.#hasWarnedOfOnce = true;
    const what = 'a rule says "once", and there is no --state: after a restart its values can be read once more';
    this.#emit({ event: 'trouble', what });
  }

  /** Ends the device process, which unmounts and removes its sockets, and closes everything. Any number of times. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  /** Opens the audit log by its name again, where it was moved away (SIGHUP). */
  reopenAudit(): void {
    if (this.#stopping === undefined) this.#audit.reopen();
  }

  /** A stop that is under way kills instead of waiting. */
  force(): void {
    this.#kills.abort();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(): Promise<void> {
    clearTimeout(this.#restart);
    await this.#device?.stop(this.#kills.signal);
    this.#unsubscribe?.();
    for (const { tell } of this.#unapplied) tell(false);
    cleanUp(this.#targets);
    this.#tree[Symbol.dispose]();
    this.#state?.close();
    this.#audit[Symbol.dispose]();
    this.#emit({ event: 'stopped' });
    this.#ended.resolve();
  }

  #startDevice(): void {
    this.#startedMs = performance.now();
    const { deviceCommand } = this.#options;
    this.#restarts++;
    const holder = `device ${++this.#generation}`;
    this.#audit.renew();
    const device = new DeviceProcess({
      config: { ...this.#config, auditRing: this.#audit.ringPath },
      ...(deviceCommand && { command: deviceCommand }),
      onMessage: (message) => this.#onMessage(device, holder, message),
      onEnd: (reason) => this.#onDeviceEnd(reason),
    });
    this.#device = device;
    this.#unsubscribe = this.#tree.authority.subscribe(holder, (delta) => device.send({ type: 'delta', delta }));
  }

  #onMessage(device: DeviceProcess, holder: string, message: ToHost): void {
    switch (message.type) {
      case 'hello':
        return;
      case 'mutation': {
        // The guest has been told that it failed, so it must not take effect any more.
        const expired = monotonicMs() > message.expiresMs;
        const settle: Settle = (outcome) => device.send({ type: 'outcome', sequence: message.sequence, outcome });
        if (expired) settle(refused);
        else this.#commit(message.mutation, message.way, holder, settle);
        return;
      }
      case 'auditWaiting':
        this.#audit.doorbell();
        return;
      case 'ready':
      case 'failed': {
        const target = this.#ours(message.target);
        if (target === undefined) return;
        const awaited = this.#awaited.get(target.path);
        this.#awaited.delete(target.path);
        if (message.type === 'ready') {
          this.#emit({ event: 'ready', target });
          awaited?.resolve();
          return;
        }
        const reason = printable(message.reason);
        if (awaited === undefined) this.#emit({ event: 'failed', target, reason });
        else awaited.reject(new ServeError(`serving on "${target.path}" failed: ${reason}`));
        return;
      }
      case 'event':
        if (this.#ours(message.target) === undefined) return;
        this.#emit({
          event: 'target',
          target: message.target,
          what: message.event,
          detail: printable(message.detail),
        });
        return;
      case 'applied':
        this.#deviceApplied(message.revision);
        return;
      case 'statistics':
        this.#asked.get(message.id)?.(message.counters);
        return;
    }
  }

  /** Two ways in, and only one that was asked for: a device process can't claim the rights of another way. */
  #commit(mutation: Mutation, way: 'virtiofs' | 'mount', holder: string, settle: Settle): void {
    const kind = way === 'mount' ? 'mount' : 'vhost-user';
    if (!this.#targets.some((target) => target.kind === kind)) return settle(refused);
    const { authority } = this.#tree;
    try {
      authority.commit(mutation, ways[way], holder, undefined, (outcome) => {
        if (outcome.errno === EIO && authority.persistFailure !== undefined)
          this.#emit({ event: 'trouble', what: `a guest's write was refused: ${authority.persistFailure.message}` });
        settle(outcome);
      });
    } catch (error) {
      const what = error instanceof Error ? error.message : String(error);
      this.#emit({ event: 'trouble', what: `a ${mutation.op} failed by a mistake in Porthole: ${what}` });
      settle(refused);
    }
  }

  #tellReload(revision: number, changes: number): void {
    this.#whenApplied(revision, applyWithinMs, (applied) =>
      this.#emit({ event: 'reloaded', revision, changes, applied }),
    );
  }

  #whenApplied(revision: number, withinMs: number, told: (applied: boolean) => void): void {
    if (revision <= this.#appliedRevision) return told(true);
    const tell = (applied: boolean): void => {
      clearTimeout(late);
      this.#unapplied.delete(waiting);
      told(applied);
    };
    const waiting = { revision, tell };
    const late = setTimeout(tell, withinMs, false);
    this.#unapplied.add(waiting);
  }

  #deviceApplied(revision: number): void {
    this.#appliedRevision = revision;
    for (const waiting of this.#unapplied) if (waiting.revision <= revision) waiting.tell(true);
  }

  /** A target that was asked for, whatever else the device process may name. */
  #ours(target: LinkTarget): LinkTarget | undefined {
    return this.#targets.find(({ kind, path }) => kind === target.kind && path === target.path);
  }

  #onDeviceEnd(reason: string | undefined): void {
    this.#unsubscribe?.();
    this.#unsubscribe = undefined;
    this.#device = undefined;
    this.#appliedRevision = 0;
    this.#audit.drain();
    for (const answer of this.#asked.values()) answer(undefined);
    if (this.#stopping !== undefined) return;
    const why = reason ?? 'it ended without being told to';
    if (this.#awaited.size > 0) {
      for (const awaited of this.#awaited.values())
        awaited.reject(new ServeError(`the device process could not start: ${why}`));
      this.#awaited.clear();
      if (this.#restarts === 1) return;
    }
    if (performance.now() - this.#startedMs > healthyMs) this.#restarts = 1;
    const restartInMs = restartsMs[Math.min(this.#restarts - 1, restartsMs.length - 1)]!;
    this.#emit({ event: 'device-ended', reason: why, restartInMs });
    this.#restart = setTimeout(() => {
      cleanUp(this.#targets);
      this.#startDevice();
    }, restartInMs);
  }

  #emit(event: ServeEvent): void {
    this.#options.onEvent(event);
  }
}
