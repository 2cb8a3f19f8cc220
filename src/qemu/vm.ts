/** One VM: drives its states (`vm-state.ts`) with real processes. The daemon may be replaced at any time; `adopt` goes on. */
import { Boot, type BootEnd, type BootOptions, type VmRuntime } from './boot.ts';
import { messageOf, QemuError } from './error.ts';
import type { VmMachine } from './machine.ts';
import { machineBootId } from './process-identity.ts';
import type { Qmp, QmpEvent } from './qmp.ts';
import { unlessAborted } from './unless-aborted.ts';
import { isDown, newVm, step, type VmAction, type VmEvent, type VmPolicy, type VmState } from './vm-state.ts';

export interface VmOptions extends Omit<BootOptions, 'keep' | 'onEvent'> {
  readonly name: string;
  /** Asked for before every boot, so that it may have changed since the last one. Aborted: nobody waits for it any more. */
  readonly machine: (signal: AbortSignal) => Promise<VmMachine> | VmMachine;
  readonly policy: VmPolicy;
  /** What a first boot needs (its disk) is made here; called again until it has succeeded. */
  readonly create?: (signal: AbortSignal) => Promise<void>;
  /** A new id; random unless given. */
  readonly newBootId?: () => string;
  /** Must have committed the boot id before it resolves. QEMU starts after it, and not at all when it rejects. */
  readonly commitBoot: (bootId: string) => Promise<void>;
  /** Must have kept the record before it resolves; undefined when nothing runs. Called in order. */
  readonly saveRuntime: (runtime: VmRuntime | undefined) => Promise<void>;
  /** After each change of status or reason, in order. */
  readonly onState: (state: VmState) => void;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
}

export interface VmSaved {
  /** What `saveRuntime` was given last. */
  readonly runtime: VmRuntime | undefined;
  /** The state that `onState` told last. */
  readonly state: VmState;
}

const powerdownDefaultMs = 30_000;
/** How often a guest whose disk found no room is made to try again. */
const retryWriteEveryMs = 5_000;

export class Vm {
  readonly #options: VmOptions;
  readonly #now: () => number;
  readonly #watchers = new Set<() => void>();
  readonly #released = new AbortController();
  #state: VmState;
  #boot: Boot | undefined;
  #booting: AbortController | undefined;
  #creating: AbortController | undefined;
  #made: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #retryWrite: NodeJS.Timeout | undefined;

  /** A VM that does not run. */
  constructor(options: VmOptions, state?: VmState) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#state = state ?? newVm(this.#now());
    this.#arm();
  }

  /**
   * Goes on with what an earlier daemon left: `state` as it was told last, and its processes, which are found again or found to
   * have ended meanwhile. Resolves at once; `onState` tells what became of it.
   */
  static adopt(options: VmOptions, saved: VmSaved): Vm {
    const vm = new Vm(options, saved.state);
    void vm.#adopt(saved);
    return vm;
  }

  get state(): VmState {
    return this.#state;
  }

  /** QEMU's monitor while it runs and is connected. */
  get qmp(): Qmp | undefined {
    return this.#boot?.qmp;
  }

  get qemuPid(): number | undefined {
    return this.#boot?.qemuPid;
  }

  /** Whether what is typed at its console reaches it. */
  get hasWatcher(): boolean {
    return this.#boot?.hasWatcher === true;
  }

  create(): void {
    this.#take({ type: 'create' });
  }

  /** Has what is being made for the first boot given up: the VM fails. */
  cancelCreate(): void {
    this.#creating?.abort(new Error('it was cancelled'));
  }

  start(): void {
    this.#take({ type: 'start' });
  }

  /** Asks the guest to power off for `deadlineMs` (30 s unless given), then switches it off. */
  stop(deadlineMs = powerdownDefaultMs): void {
    this.#take({ type: 'stop', deadlineMs });
  }

  /** Ends it at once, and leaves it `compromised` for this reason until it is started. Nothing happens where nothing runs. */
  compromise(reason: string): void {
    this.#take({ type: 'compromised', reason });
  }

  /** The same, and then a new boot. */
  reboot(deadlineMs = powerdownDefaultMs): void {
    this.#take({ type: 'reboot', deadlineMs });
  }

  /** Resolves with the first state, from now on, that `is` says yes to. */
  async until(is: (state: VmState) => boolean, signal?: AbortSignal): Promise<VmState> {
    while (!is(this.#state)) {
      signal?.throwIfAborted();
      await new Promise<void>((resolve) => {
        const done = (): void => {
          this.#watchers.delete(done);
          signal?.removeEventListener('abort', done);
          resolve();
        };
        this.#watchers.add(done);
        signal?.addEventListener('abort', done, { once: true });
      });
    }
    return this.#state;
  }

  /**
   * Lets go of everything: the VM lives on without us. No callback is called after it. Resolves when nothing is being made for
   * it any more, which would be in the way of whoever takes it up.
   */
  async release(): Promise<void> {
    this.#released.abort();
    clearTimeout(this.#timer);
    clearInterval(this.#retryWrite);
    this.#boot?.release();
    await this.#made;
  }

  #take(event: VmEvent): void {
    if (this.#released.signal.aborted) return;
    const before = this.#state;
    const { state, actions } = step(before, event, this.#options.policy, this.#now());
    this.#state = state;
    this.#arm();
    if (state !== before) this.#options.onState(state);
    for (const action of actions) this.#act(action);
    for (const watcher of [...this.#watchers]) watcher();
  }

  #arm(): void {
    const { wakeAtMs } = this.#state;
    clearTimeout(this.#timer);
    if (wakeAtMs === undefined) return;
    this.#timer = setTimeout(() => this.#take({ type: 'tick' }), Math.max(0, wakeAtMs - this.#now()));
  }

  #act(action: VmAction): void {
    switch (action) {
      case 'create':
        this.#made = this.#create();
        return;
      case 'boot':
        void this.#start();
        return;
      case 'abort-boot':
        this.#booting?.abort(new Error('it was stopped while it started'));
        return;
      case 'kill':
        this.#boot?.kill();
        return;
      case 'powerdown':
      case 'quit': {
        const boot = this.#boot;
        // A QEMU that does not answer is killed in time by the next step.
        boot?.[action]().catch((error: unknown) => {
          // It ends, which is what it was asked for.
          if (error instanceof QemuError && error.code === 'QMP_LOST') return;
          this.#trouble(`${action}: ${messageOf(error)}`);
        });
        return;
      }
    }
  }

  #trouble(what: string): void {
    if (!this.#released.signal.aborted && this.#state.status !== 'stopped') this.#options.onTrouble(what);
  }

  async #create(): Promise<void> {
    this.#creating = new AbortController();
    try {
      await this.#options.create?.(AbortSignal.any([this.#released.signal, this.#creating.signal]));
      this.#take({ type: 'created' });
    } catch (error) {
      this.#take({ type: 'create-failed', reason: messageOf(error) });
    }
  }

  #bootOptions(): BootOptions {
    return {
      ...this.#options,
      keep: (runtime) => this.#options.saveRuntime(runtime),
      onEvent: (event) => this.#hear(event),
      onTrouble: (what) => this.#trouble(what),
    };
  }

  async #start(): Promise<void> {
    const { newBootId = () => crypto.randomUUID(), commitBoot, machine, create } = this.#options;
    const booting = new AbortController();
    this.#booting = booting;
    try {
      await create?.(booting.signal);
      const description = await unlessAborted(machine(booting.signal), booting.signal);
      const bootId = newBootId();
      booting.signal.throwIfAborted();
      await commitBoot(bootId);
      this.#take({ type: 'booting', bootId });
      const boot = await Boot.start(description, bootId, this.#bootOptions(), booting.signal);
      this.#follow(boot);
    } catch (error) {
      await this.#forget();
      const isOfLease = error instanceof QemuError && error.code === 'LEASE_ENDED';
      this.#take(isOfLease ? { type: 'lease-ended' } : { type: 'boot-failed', reason: messageOf(error) });
    } finally {
      if (this.#booting === booting) this.#booting = undefined;
    }
  }

  async #adopt({ runtime, state }: VmSaved): Promise<void> {
    let end: BootEnd;
    if (runtime?.qemu === undefined && (state.status === 'starting' || state.status === 'creating')) {
      // The guest has not run yet: it is begun again, and ends a QEMU that was started and not written down.
      this.#act(state.status === 'starting' ? 'boot' : 'create');
      return;
    }
    if (runtime === undefined) {
      const words = 'QEMU ended while the host daemon was away';
      if (!isDown(state)) await this.#over({ words, shutdown: undefined, leaseEnded: false });
      return;
    }
    try {
      const found = await Boot.adopt(
        this.#options.name,
        runtime,
        this.#bootOptions(),
        this.#released.signal,
        (boot) => {
          this.#boot = boot;
        },
      );
      if (found instanceof Boot) {
        this.#follow(found);
        return;
      }
      end = found;
    } catch (error) {
      if (this.#released.signal.aborted) return;
      end = { words: messageOf(error), shutdown: undefined, leaseEnded: false };
    }
    const isOfThisRun = runtime.qemu === undefined || runtime.qemu.machineBootId === machineBootId();
    await this.#over(end, { machineRestarted: !isOfThisRun && end.shutdown === undefined });
  }

  #follow(boot: Boot): void {
    if (this.#released.signal.aborted) {
      boot.release();
      return;
    }
    this.#boot = boot;
    this.#take({ type: 'running' });
    void boot.ended.then((end) => this.#over(end));
  }

  async #over({ words, shutdown, leaseEnded }: BootEnd, { machineRestarted = false } = {}): Promise<void> {
    if (this.#released.signal.aborted) return;
    clearInterval(this.#retryWrite);
    this.#boot = undefined;
    await this.#forget();
    if (machineRestarted) return this.#take({ type: 'machine-restarted' });
    if (leaseEnded) return this.#take({ type: 'lease-ended' });
    if (shutdown !== undefined) this.#take({ type: 'shutdown', reason: shutdown });
    if (this.#state.status === 'starting') this.#take({ type: 'boot-failed', reason: words });
    else this.#take({ type: 'ended', words });
  }

  async #forget(): Promise<void> {
    if (this.#released.signal.aborted) return;
    try {
      await this.#options.saveRuntime(undefined);
    } catch (error) {
      this.#options.onTrouble(`the record of the last boot could not be removed: ${messageOf(error)}`);
    }
  }

  #hear({ event, data }: QmpEvent): void {
    if (event === 'BLOCK_IO_ERROR' && data['action'] === 'stop') {
      const full = data['nospace'] === true;
      const what = full
        ? "there is no room for its disk's data on this machine"
        : 'its disk could not be written or read';
      this.#take({ type: 'paused', reason: `paused: ${what}; it goes on by itself when that is mended` });
      clearInterval(this.#retryWrite);
      this.#retryWrite = setInterval(() => {
        this.qmp?.execute('cont').catch((error: unknown) => this.#trouble(`cont: ${messageOf(error)}`));
      }, retryWriteEveryMs);
    }
    if (event === 'RESUME') {
      clearInterval(this.#retryWrite);
      this.#take({ type: 'resumed' });
    }
  }
}
