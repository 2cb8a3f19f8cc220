/** A VM of ours from the tiny image, in directories of its own. */
import { chmodSync, constants, copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { tinyImage } from '../../images/tiny/image.ts';
import {
  makeVmDirectories,
  readConsole,
  SessionLauncher,
  Vm,
  type VmMachine,
  type VmOptions,
  type VmPaths,
  type VmRuntime,
  type VmState,
  vmPaths,
} from '../../src/qemu/index.ts';
import { until } from '../until.ts';

export const bootLimitMs = 120_000;
export const quickArgs =
  'tiny=vm quiet panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr random.trust_cpu=on';
/** Nobody's on this machine. */
export const testUid = 700_123;

export class OwnVm implements AsyncDisposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'porthole-vm-'));
  readonly paths: VmPaths;
  readonly states: VmState[] = [];
  readonly boots: string[] = [];
  readonly troubles: string[] = [];
  runtime: VmRuntime | undefined;
  vm: Vm;
  /** What is made before each boot. */
  create: () => Promise<void> = async () => {};
  #machine: VmMachine;
  readonly #options: VmOptions;

  private constructor(image: Awaited<ReturnType<typeof tinyImage>>, changes: OwnVmChanges) {
    chmodSync(this.dir, 0o711);
    this.paths = vmPaths(join(this.dir, 'state'), join(this.dir, 'run'), 'tiny');
    makeVmDirectories(this.paths, testUid);
    const { qmp, watch, serial } = this.paths;
    this.#machine = {
      name: 'tiny',
      type: { cpus: 1, memoryMiB: 128 },
      accelerator: 'tcg',
      architecture: process.arch === 'arm64' ? 'arm64' : 'x64',
      boot: {
        from: 'kernel',
        kernel: this.#readable(image.kernel),
        initrd: this.#readable(image.initramfs),
        commandLine: quickArgs,
      },
      disks: [],
      sockets: { qmp, watch, serial },
      ...changes.machine,
    };
    this.#options = {
      name: 'tiny',
      machine: () => this.#machine,
      create: () => this.create(),
      policy: { restart: 'no', guestReboot: 'boot' },
      paths: this.paths,
      launcher: new SessionLauncher(),
      uid: testUid,
      consoleLogBytes: 1024 * 1024,
      replayBytes: 64 * 1024,
      logBytes: 64 * 1024,
      startWithinMs: bootLimitMs,
      commitBoot: async (bootId) => {
        this.boots.push(bootId);
      },
      saveRuntime: async (runtime) => {
        this.runtime = runtime;
      },
      onState: (state) => this.states.push(state),
      onTrouble: (what) => this.troubles.push(what),
      ...changes.options,
    };
    this.vm = new Vm(this.#options);
  }

  /** A copy that the VM's uid can reach: the checkout may lie where it can't, as below /root. */
  #readable(file: string): string {
    const copy = join(this.dir, basename(file));
    copyFileSync(file, copy, constants.COPYFILE_FICLONE);
    chmodSync(copy, 0o644);
    return copy;
  }

  static async make(changes: OwnVmChanges = {}): Promise<OwnVm> {
    return new OwnVm(await tinyImage(), changes);
  }

  /** Of the next boot. */
  change(changes: Partial<VmMachine>): void {
    this.#machine = { ...this.#machine, ...changes };
  }

  /** What the guest has printed. */
  get console(): string {
    return Buffer.from(readConsole(this.paths.consoleLog, -1024 * 1024, 1024 * 1024).bytes).toString('latin1');
  }

  /** Resolves when the guest's shell waits for the `count`th time since the console log began. */
  async ready(count = 1): Promise<void> {
    // The shell asks the terminal for its width behind the prompt.
    const isReady = (): boolean =>
      this.console.split('tiny: ready').length > count &&
      ['# ', '# \u{1b}[6n'].some((end) => this.console.endsWith(end));
    await until("the guest's shell", isReady, bootLimitMs).catch((cause: unknown) => {
      throw new Error(`${this.story.join(', ')}; the console: ${JSON.stringify(this.console.slice(-500))}`, { cause });
    });
  }

  /** The statuses that it went through, with their reasons. */
  get story(): string[] {
    const words = this.states.map(({ status, reason }) => (reason === '' ? status : `${status}: ${reason}`));
    return words.filter((word, index) => word !== words[index - 1]);
  }

  /** Ends as a daemon that is killed does, and begins as its successor. */
  restartDaemon(): void {
    const saved = { runtime: this.runtime, state: this.vm.state };
    void this.vm.release();
    this.vm = Vm.adopt(this.#options, structuredClone(saved));
  }

  attach(): { readonly socket: Socket; readonly text: () => string } {
    const socket = connect(this.paths.console);
    let text = '';
    socket.setEncoding('latin1').on('data', (more: string) => {
      text += more;
    });
    return { socket, text: () => text };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.vm.stop(0);
    await this.vm.until(({ status, wakeAtMs }) => ['stopped', 'failed'].includes(status) && wakeAtMs === undefined);
    await this.vm.release();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

interface OwnVmChanges {
  readonly machine?: Partial<VmMachine>;
  readonly options?: Partial<VmOptions>;
}

/** Runs a command on the guest's console; resolves with what it printed. */
export async function shell(own: OwnVm, command: string): Promise<string> {
  const { socket, text } = own.attach();
  const mark = `mark${Math.random().toString(36).slice(2)}`;
  socket.write(`echo "begin-${mark}"; ${command}; echo "${mark}"-end\n`);
  // The shell echoes the line, and breaks it where the terminal ends.
  const pattern = new RegExp(`\nbegin-${mark}\r\n([^]*?)${mark}-end`);
  try {
    return await until(`the end of ${command}`, () => pattern.exec(text())?.[1], bootLimitMs);
  } finally {
    socket.destroy();
  }
}
