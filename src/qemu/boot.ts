/** One boot of a VM: a QEMU, its watcher and its monitor, started or adopted, until QEMU has ended. */
import { renameSync, rmSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { commandLine } from './command-line.ts';
import { carryOn } from './console-log.ts';
import { messageOf, QemuError } from './error.ts';
import { guarded, guardedPid } from './guard.ts';
import { type LastWords, readLastWords } from './last-words.ts';
import { leaseEnded } from './lease-file.ts';
import type { VmMachine } from './machine.ts';
import { makeVmDirectories, type VmPaths } from './paths.ts';
import { type Ending, endingInWords, type LastingProcess, type ProcessIdentity } from './process-identity.ts';
import { Qmp, type QmpEvent } from './qmp.ts';
import { killStrays } from './strays.ts';
import { type Launcher, type LaunchSpec, lastLine } from './units.ts';
import { startWatcher, watchedLog } from './watcher-process.ts';

/** What is kept about a boot, so that the next daemon finds its processes; plain JSON. */
export interface VmRuntime {
  readonly bootId: string;
  readonly startedAtMs: number;
  /** Absent when the daemon ended before it had started QEMU, or before it could write so. */
  readonly qemu?: ProcessIdentity;
  readonly watcher?: ProcessIdentity;
  /** `qemu` is the guard that has it as its child. */
  readonly isGuarded?: boolean;
}

export interface BootOptions {
  readonly paths: VmPaths;
  readonly launcher: Launcher;
  /** QEMU's user and group, and groups besides: those that may read images, and `kvm`. Root only. */
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  readonly groups?: readonly number[] | undefined;
  readonly consoleLogBytes: number;
  readonly replayBytes: number;
  readonly logBytes: number;
  /** From starting QEMU until the guest's CPUs run. */
  readonly startWithinMs: number;
  readonly watcherCommand?: readonly [string, ...string[]] | undefined;
  /** Must have kept it before the promise resolves. */
  readonly keep: (runtime: VmRuntime) => Promise<void>;
  readonly onEvent: (event: QmpEvent) => void;
  /** Something that does not end the boot: a watcher that had to be started again, a monitor that does not answer. */
  readonly onTrouble: (what: string) => void;
}

/** Memory of QEMU itself beside the guest's; measured are 60 to 150 MB, and translated code under TCG. */
const overheadBytes = 512 * 1024 * 1024;
/**
 * Its pool for disks has 64 threads, and it aborts when it can't make one. With a relay the pool is made at its start (see
 * `commandLine`), for then a guest's connections can take all that is left.
 */
const processesOf = (cpus: number): number => 128 + cpus * 2;
/** Address space of stacks, arenas and libraries. */
const addressSpaceBytes = 8 * 1024 ** 3;
const lookEveryMs = 20;
const againAfterMs = 1_000;
const watchAgainAfterMs = 5_000;
const lastWordsWithinMs = 2_000;
const silentMs = 10_000;
/** The longest that a timer can wait: 24 days. */
const forEverMs = 0x7fffffff;

export interface BootEnd {
  /** For people. */
  readonly words: string;
  /** QEMU's reason for its SHUTDOWN, if it said one. */
  readonly shutdown: string | undefined;
  /** It ran for as long as it might: its host's lease had run out. */
  readonly leaseEnded: boolean;
}

export class Boot {
  readonly bootId: string;
  /** Resolves when QEMU has ended. */
  readonly ended: Promise<BootEnd>;
  readonly #name: string;
  readonly #options: BootOptions;
  readonly #qemu: LastingProcess;
  readonly #released = new AbortController();
  #runtime: VmRuntime;
  #watcher: LastingProcess | undefined;
  #watcherMakesWay = false;
  #watching: Promise<void> | undefined;
  readonly #over = new AbortController();
  #qmp: Qmp | undefined;
  #shutdown: string | undefined;
  /** Whether the guest may have run; a QEMU that was found and has not said otherwise has. */
  #hasRun = false;

  private constructor(name: string, options: BootOptions, runtime: VmRuntime, qemu: LastingProcess) {
    this.#name = name;
    this.#options = options;
    this.#runtime = runtime;
    this.#qemu = qemu;
    this.bootId = runtime.bootId;
    this.ended = qemu.ended.then((ending) => this.#end(ending));
  }

  /**
   * Starts QEMU for a boot id that is already committed, and resolves once the guest's CPUs run. When it rejects nothing of the
   * boot runs any more.
   */
  static async start(machine: VmMachine, bootId: string, options: BootOptions, signal: AbortSignal): Promise<Boot> {
    const { paths, launcher, uid, gid, groups } = options;
    const { program, args } = commandLine(machine);
    makeVmDirectories(paths, uid, gid);
    killStrays(monitorArgument(paths));
    for (const file of [paths.qmp, paths.watch, paths.serial, paths.lastWords]) rmSync(file, { force: true });
    keepOneLog(paths.qemuLog);
    let runtime: VmRuntime = { bootId, startedAtMs: Date.now() };
    await options.keep(runtime);
    signal.throwIfAborted();
    const spec: LaunchSpec = {
      name: unitName('vm', machine.name, bootId),
      description: `Porthole: VM ${machine.name}`,
      command: [program, ...args],
      limits: {
        memoryBytes: machine.type.memoryMiB * 1024 * 1024 + overheadBytes,
        addressSpaceBytes: machine.type.memoryMiB * 1024 * 1024 + addressSpaceBytes,
        processes: processesOf(machine.type.cpus),
        openFiles: 4_096,
      },
      logFile: paths.qemuLog,
      ...(uid !== undefined && { uid }),
      ...(gid !== undefined && { gid }),
      ...(groups !== undefined && { groups }),
    };
    const { lease } = machine;
    const qemu = await launcher.launch(lease === undefined ? spec : guarded(spec, lease));
    runtime = { ...runtime, qemu: qemu.identity, ...(lease && { isGuarded: true }) };
    const boot = new Boot(machine.name, options, runtime, qemu);
    try {
      await options.keep(runtime);
      await boot.#run(signal, options.startWithinMs);
      return boot;
    } catch (error) {
      qemu.signal('SIGKILL');
      const { words, leaseEnded } = await boot.ended;
      if (leaseEnded) throw new QemuError('LEASE_ENDED', words, error);
      if (signal.aborted || !(error instanceof QemuError && error.code === 'QMP_LOST')) throw error;
      throw new QemuError('START_FAILED', words, error);
    }
  }

  /**
   * Takes up a boot that an earlier daemon started; returns how it ended where it has. Where that daemon had not yet let the
   * guest run, it runs now. `onFound` is given the boot before its monitor answers, which a QEMU that hangs never does: it can be
   * killed and released from then on.
   */
  static async adopt(
    name: string,
    runtime: VmRuntime,
    options: BootOptions,
    signal: AbortSignal,
    onFound: (boot: Boot) => void,
  ): Promise<Boot | BootEnd> {
    const { paths, launcher } = options;
    const qemu = runtime.qemu && launcher.adopt(runtime.qemu, paths.qemuLog);
    if (!qemu) {
      killStrays(monitorArgument(paths));
      const words = readLastWords(paths.lastWords, runtime.bootId);
      const line = lastLine(paths.qemuLog);
      return {
        shutdown: words?.shutdown?.reason,
        words: `QEMU ended while the host daemon was away${line && `: ${line}`}`,
        leaseEnded: line === leaseEnded.words,
      };
    }
    const boot = new Boot(name, options, runtime, qemu);
    boot.#watcher = runtime.watcher && launcher.adopt(runtime.watcher, paths.watcherLog);
    boot.#hasRun = true;
    onFound(boot);
    try {
      await boot.#takeUpWatcher();
      await boot.#run(signal, undefined);
      return boot;
    } catch (error) {
      if (signal.aborted) throw error;
      boot.#qemu.look();
      if (boot.#hasRun && boot.#qemu.alive) {
        options.onTrouble(`it runs, and cannot be told how to: ${messageOf(error)}`);
        return boot;
      }
      boot.kill();
      return boot.ended;
    }
  }

  get qemuPid(): number {
    const { pid } = this.#qemu.identity;
    return this.#runtime.isGuarded === true ? guardedPid(pid) : pid;
  }

  /** The monitor; undefined while it is not connected. */
  get qmp(): Qmp | undefined {
    return this.#qmp;
  }

  /** Whether the console's socket is that of a watcher which stays: what another is told may be lost. */
  get hasWatcher(): boolean {
    return this.#watcher?.alive === true && !this.#watcherMakesWay;
  }

  /** Presses the guest's power button. */
  async powerdown(): Promise<void> {
    await this.#qmp?.execute('system_powerdown');
  }

  async quit(): Promise<void> {
    await this.#qmp?.execute('quit');
  }

  kill(): void {
    this.#qemu.signal('SIGKILL');
  }

  /** Lets go: QEMU and watcher live on, for the next daemon. */
  release(): void {
    this.#released.abort();
    this.#qmp?.close();
    this.#qemu.release();
    this.#watcher?.release();
  }

  /**
   * Connects monitor and watcher, and lets the guest run once its console is heard. Without a limit it waits for a QEMU that
   * does not answer, as one that is adopted may have long been serving.
   */
  async #run(signal: AbortSignal, withinMs: number | undefined): Promise<void> {
    const limits = withinMs === undefined ? [signal] : [signal, AbortSignal.timeout(withinMs)];
    const late = AbortSignal.any([...limits, this.#over.signal]);
    const ask = { signal: late, timeoutMs: withinMs ?? forEverMs };
    const start = async (): Promise<void> => {
      const watching = this.#watch();
      const isAdopted = withinMs === undefined;
      const [qmp] = await Promise.all([this.#connect(ask), isAdopted ? watching.catch(() => {}) : watching]);
      const status = await qmp.execute('query-status', undefined, ask);
      if ((status as { readonly status?: string }).status !== 'prelaunch') {
        // A guest that runs goes on, also while there is no room for its console's log.
        watching.catch((error: unknown) => this.#watchAgain(error));
        return;
      }
      this.#hasRun = false;
      await watching;
      await this.#attached(late);
      await qmp.execute('cont', undefined, ask);
      this.#hasRun = true;
    };
    try {
      await start();
    } catch (error) {
      if (limits[1]?.aborted === true && !signal.aborted)
        throw new QemuError('START_FAILED', `QEMU was not ready within ${withinMs} ms`, error);
      this.#qemu.look();
      if (signal.aborted || (this.#qemu.alive && !this.#over.signal.aborted)) throw error;
      const { words } = await this.ended;
      throw new QemuError('START_FAILED', words, error);
    }
  }

  /** Tries until there is a monitor that answers, or `signal` aborts. */
  async #connect({ signal, timeoutMs }: { signal: AbortSignal; timeoutMs: number }): Promise<Qmp> {
    const silent = setTimeout(() => {
      this.#options.onTrouble(`QEMU's monitor does not answer; waiting for it`);
    }, silentMs);
    try {
      return await this.#connectTo(signal, timeoutMs);
    } finally {
      clearTimeout(silent);
    }
  }

  async #connectTo(signal: AbortSignal, timeoutMs: number): Promise<Qmp> {
    for (;;) {
      signal.throwIfAborted();
      try {
        const qmp = await Qmp.connect(this.#options.paths.qmp, { signal, timeoutMs });
        this.#hear(qmp);
        return qmp;
      } catch (error) {
        if (!(error instanceof QemuError && (error.code === 'QMP_LOST' || error.code === 'QMP_TIMEOUT'))) throw error;
      }
      await pause(lookEveryMs, undefined, { signal });
    }
  }

  #hear(qmp: Qmp): void {
    this.#qmp = qmp;
    qmp.onEvent((event) => {
      if (event.event === 'SHUTDOWN') this.#shutdown = String(event.data['reason'] ?? 'unknown');
      this.#options.onEvent(event);
    });
    void this.#afterLoss(qmp);
  }

  async #afterLoss(qmp: Qmp): Promise<void> {
    await qmp.closed;
    this.#qmp = undefined;
    if (this.#released.signal.aborted) return;
    this.#qemu.look();
    // It is most often gone; else its monitor broke, and is connected again.
    if (this.#qemu.alive) await this.#connectAgain();
  }

  async #connectAgain(): Promise<void> {
    const { signal } = this.#released;
    try {
      for (let told = false; this.#qemu.alive && !signal.aborted; told = true) {
        await pause(againAfterMs, undefined, { signal });
        if (!this.#qemu.alive) return;
        if (!told) this.#options.onTrouble('QEMU closed its monitor and goes on; connecting again');
        if (await this.#connect({ signal, timeoutMs: forEverMs }).catch(() => undefined)) return;
      }
    } catch {
      // Let go meanwhile.
    }
  }

  /**
   * Follows the watcher that was found. One that keeps the log in another state directory, as after a restore into a new one,
   * makes way for one that goes on with it here: nobody would ever read that log again.
   */
  async #takeUpWatcher(): Promise<void> {
    const { paths } = this.#options;
    const watcher = this.#watcher;
    if (watcher === undefined) return;
    const log = watchedLog(paths.watcherConfig);
    if (log === undefined || log === paths.consoleLog) {
      void this.#follow(watcher);
      return;
    }
    // At once, so that it can be read; then what was said until the watcher ended.
    this.#carryOn(log);
    this.#watcherMakesWay = true;
    await this.#endWatcher(watcher, false);
    if (this.#released.signal.aborted) return;
    this.#carryOn(log);
    this.#watcher = undefined;
    this.#watcherMakesWay = false;
  }

  #carryOn(log: string): void {
    const { paths, uid, gid, onTrouble } = this.#options;
    try {
      makeVmDirectories(paths, uid, gid);
      carryOn(log, paths.consoleLog);
    } catch (error) {
      onTrouble(`what its console said until now stays in "${log}": ${messageOf(error)}`);
    }
  }

  /** Starts a watcher unless one lives. */
  async #watch(): Promise<void> {
    if (this.#watcher || this.#over.signal.aborted) return;
    this.#watching = this.#startWatcher();
    await this.#watching;
  }

  async #startWatcher(): Promise<void> {
    const { paths, launcher, consoleLogBytes, replayBytes, logBytes, startWithinMs, watcherCommand } = this.#options;
    const watcher = await startWatcher({
      launcher,
      unit: unitName('watch', this.#name, this.bootId),
      vm: this.#name,
      configFile: paths.watcherConfig,
      logFile: paths.watcherLog,
      command: watcherCommand,
      config: {
        bootId: this.bootId,
        qmpSocket: paths.watch,
        serialSocket: paths.serial,
        consoleSocket: paths.console,
        consoleLog: paths.consoleLog,
        consoleLogBytes,
        replayBytes,
        lastWordsFile: paths.lastWords,
        trim: [paths.qemuLog, paths.watcherLog].map((path) => ({ path, limitBytes: logBytes })),
        connectWithinMs: startWithinMs,
      },
    });
    this.#watcher = watcher;
    this.#runtime = { ...this.#runtime, watcher: watcher.identity };
    await this.#options.keep(this.#runtime);
    void this.#follow(watcher);
  }

  /** Starts another watcher when this one dies before QEMU; meanwhile what the guest prints is lost. */
  async #follow(watcher: LastingProcess): Promise<void> {
    const ending = await watcher.ended;
    const { signal } = this.#released;
    try {
      await pause(againAfterMs, undefined, { signal });
      if (!this.#qemu.alive || this.#watcher !== watcher) return;
      const line = ending.how === 'signal' ? '' : lastLine(this.#options.paths.watcherLog);
      this.#options.onTrouble(`the watcher ${endingInWords(ending)}${line && `: ${line}`}; starting another`);
      this.#watcher = undefined;
      await this.#watch();
    } catch (error) {
      await this.#watchAgain(error);
    }
  }

  /** Tries until a watcher has started: `failure` is why it did not. Never rejects. */
  async #watchAgain(failure: unknown): Promise<void> {
    const { signal } = this.#released;
    if (signal.aborted) return;
    this.#options.onTrouble(`starting a watcher failed, trying again: ${messageOf(failure)}`);
    while (this.#qemu.alive && !signal.aborted) {
      try {
        await pause(watchAgainAfterMs, undefined, { signal });
        return await this.#watch();
      } catch {
        // It was told of once.
      }
    }
  }

  /** Resolves when the watcher hears console and monitor. */
  async #attached(signal: AbortSignal): Promise<void> {
    const { paths } = this.#options;
    while (readLastWords(paths.lastWords, this.bootId)?.attachedAtMs === undefined) {
      if (this.#watcher?.alive === false)
        throw new QemuError('START_FAILED', `the watcher of the console ended: ${lastLine(paths.watcherLog)}`);
      await pause(lookEveryMs, undefined, { signal });
    }
  }

  async #end(ending: Ending): Promise<BootEnd> {
    const { paths } = this.#options;
    this.#over.abort();
    // A guard that was killed has it killed by the kernel, which takes a moment.
    if (this.#runtime.isGuarded === true) killStrays(monitorArgument(paths));
    this.#qmp?.close();
    await this.#watching?.catch(() => {});
    let words: LastWords | undefined;
    const deadline = performance.now() + lastWordsWithinMs;
    do {
      words = readLastWords(paths.lastWords, this.bootId);
      if (this.#shutdown !== undefined || words?.endedAtMs !== undefined || words?.attachedAtMs === undefined) break;
      await pause(lookEveryMs);
    } while (this.#watcher?.alive === true && performance.now() < deadline);
    // Its socket goes with it, and the next boot's has the same path.
    if (this.#watcher?.alive === true) await this.#endWatcher(this.#watcher, words?.attachedAtMs !== undefined);
    const line = lastLine(paths.qemuLog);
    const how = endingInWords(ending);
    return {
      shutdown: this.#shutdown ?? words?.shutdown?.reason,
      words: `QEMU ${how}${line && `: ${line}`}`,
      leaseEnded: line === leaseEnded.words,
    };
  }

  /** It ends with QEMU by itself, if it had reached it; one that does not is ended. */
  async #endWatcher(watcher: LastingProcess, isAttached: boolean): Promise<void> {
    if (!isAttached) watcher.signal('SIGTERM');
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const ended = await Promise.race([watcher.ended, pause(lastWordsWithinMs, 'late' as const)]);
      if (ended !== 'late') return;
      watcher.signal(signal);
    }
  }
}

/** Its own for each boot, so that what systemd still has of the last one is not in the way. */
const unitName = (kind: string, vm: string, bootId: string): string =>
  `porthole-${kind}-${vm}-${bootId.replaceAll(/[^A-Za-z0-9]/g, '').slice(0, 8)}`;

/** An argument that no process has but the QEMU of this VM. */
const monitorArgument = (paths: VmPaths): string =>
  `socket,id=qmp,path=${paths.qmp.replaceAll(',', ',,')},server=on,wait=off`;

/** Kills QEMU, its guard and its watcher, whoever started them. */
export const killMachine = (paths: VmPaths): void => {
  for (const argument of [monitorArgument(paths), paths.watcherConfig]) killStrays(argument);
};

/** The log of the boot before is kept as `LOG.1`. */
function keepOneLog(path: string): void {
  try {
    renameSync(path, `${path}.1`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
