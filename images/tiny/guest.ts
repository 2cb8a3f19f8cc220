/** Boots the tiny image in QEMU and runs commands in it. For tests and benches. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import type { ReadStream, WriteStream } from 'node:tty';
import { type Json, Qmp } from '../../src/qemu/index.ts';
import { ConsoleLog } from './console.ts';
import { ControlChannel, type GuestJob, type RunOptions, type RunResult } from './control.ts';
import { type BootImage, tinyImage } from './image.ts';

interface VirtiofsDevice {
  /** Path of the back end's listening vhost-user socket. */
  readonly socket: string;
  readonly tag: string;
  /** 1024 unless given. */
  readonly queueSize?: number;
}

interface SharedDirectory {
  /** 9P mount tag. */
  readonly tag: string;
  /** Directory of this machine, served by QEMU itself read-only over 9P. */
  readonly path: string;
}

interface GuestOptions {
  /** What to boot; it must run the control service. The tiny image unless given. */
  readonly image?: BootImage;
  readonly virtiofs?: readonly VirtiofsDevice[];
  readonly shares?: readonly SharedDirectory[];
  /** Memory as QEMU writes it; `256M` unless given. Above 2G on x86 it is in two regions, one beyond 4 GiB. */
  readonly memory?: string;
  /** Virtual CPUs; 1 unless given. */
  readonly cpus?: number;
  readonly kernelArgs?: readonly string[];
  readonly qemuArgs?: readonly string[];
  /** Gives the guest a port on which `sendNumber` tells it numbers; `probe/floor.c` keeps the last one there. */
  readonly numbers?: boolean;
  /** How much translated code QEMU keeps; 64 MiB unless given, for which see `accelerator`. */
  readonly translatedMiB?: number;
  /** Lets the guest see its own kernel image, which `kexec()` needs. */
  readonly allowKexec?: boolean;
  /** Lets the guest reset instead of ending QEMU; needed for `reset()`. */
  readonly allowReset?: boolean;
  /** Time from starting QEMU to the control service's hello; 60,000 unless given. */
  readonly bootTimeoutMs?: number;
  readonly signal?: AbortSignal;
}

const defaultRunTimeoutMs = 60_000;

/** Makes the kernel skip what a short-lived emulated machine does not need. */
const quickKernelArgs =
  'quiet panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr random.trust_cpu=on audit=0 apparmor=0 \
cryptomgr.notests rcupdate.rcu_expedited=1 8250.nr_uarts=1'.split(' ');

/** With QEMU's default of translated code kept (1 GiB), a reset of a guest that had run a while took up to 12 s, not 3. */
const accelerator = (translatedMiB = 64): string => `tcg,tb-size=${translatedMiB}`;

const machines = {
  x64: {
    qemu: 'qemu-system-x86_64',
    machine: 'q35,hpet=off,smm=off,vmport=off,i8042=off,sata=off,smbus=off',
    cpu: 'max',
    console: 'ttyS0',
  },
  arm64: { qemu: 'qemu-system-aarch64', machine: 'virt', cpu: 'max', console: 'ttyAMA0' },
} as const;

const imageShare = { tag: 'porthole-image' };

export class Guest implements AsyncDisposable {
  /** Time from starting QEMU until commands could run. */
  readonly bootMs: number;
  readonly image: BootImage;
  /** Settles when QEMU has ended. */
  readonly ended: Promise<void>;
  readonly #dir: string;
  readonly #qemu: ChildProcess;
  readonly #control: ControlChannel;
  readonly #qmp: Qmp;
  readonly #numbers: Socket | undefined;
  readonly #options: GuestOptions;
  readonly #console: ConsoleLog;
  readonly #story: () => string;

  private constructor(parts: {
    bootMs: number;
    image: BootImage;
    dir: string;
    qemu: ChildProcess;
    ended: Promise<void>;
    control: ControlChannel;
    qmp: Qmp;
    numbers: Socket | undefined;
    options: GuestOptions;
    console: ConsoleLog;
    story: () => string;
  }) {
    this.bootMs = parts.bootMs;
    this.image = parts.image;
    this.ended = parts.ended;
    this.#dir = parts.dir;
    this.#qemu = parts.qemu;
    this.#control = parts.control;
    this.#qmp = parts.qmp;
    this.#numbers = parts.numbers;
    this.#options = parts.options;
    this.#console = parts.console;
    this.#story = parts.story;
  }

  /** Starts QEMU and resolves once commands can run. Rejects with QEMU's words and the guest's console. */
  static async start(options: GuestOptions = {}): Promise<Guest> {
    const image = options.image ?? (await tinyImage());
    const dir = mkdtempSync(join(tmpdir(), 'porthole-guest-'));
    const startedAt = performance.now();
    const console = await acceptOne(join(dir, 'console'));
    const control = await acceptOne(join(dir, 'control'));
    const qmp = await acceptOne(join(dir, 'qmp'));
    const numbers = options.numbers ? await acceptOne(join(dir, 'numbers')) : undefined;
    // QEMU must not outlive a killed test run, and it does not end when its sockets close.
    const { command, args } = commandLine(image, dir, options);
    const qemu = spawn('setpriv', ['--pdeathsig', 'SIGKILL', command, ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let stderr = '';
    qemu.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const log = new ConsoleLog(console.connection);
    const gone = Promise.withResolvers<void>();
    qemu.once('error', (error) => {
      stderr += error.message;
      gone.resolve();
    });
    qemu.once('close', () => gone.resolve());
    const story = (): string => `--- QEMU said:\n${stderr}\n--- the guest's console:\n${log.text}`;
    try {
      const connect = async (): Promise<{ channel: ControlChannel; client: Qmp }> => {
        const client = new Qmp(await qmp.connection);
        const channel = new ControlChannel(await control.connection);
        await client.negotiate();
        await channel.ready;
        return { channel, client };
      };
      const died = gone.promise.then(() => {
        throw new Error('QEMU ended');
      });
      const timeoutMs = options.bootTimeoutMs ?? 60_000;
      const { channel, client } = await within(timeoutMs, options.signal, Promise.race([connect(), died]));
      died.catch(() => {});
      return new Guest({
        image,
        dir,
        qemu,
        control: channel,
        qmp: client,
        numbers: await numbers?.connection,
        options,
        bootMs: performance.now() - startedAt,
        ended: gone.promise,
        console: log,
        story,
      });
    } catch (cause) {
      qemu.kill('SIGKILL');
      await gone.promise;
      const reason = cause instanceof Error ? cause.message : String(cause);
      const message = `guest did not become ready: ${reason}\n${story()}`;
      rmSync(dir, { recursive: true, force: true });
      throw new Error(message, { cause });
    } finally {
      console.server.close();
      control.server.close();
      qmp.server.close();
      numbers?.server.close();
    }
  }

  /** What the guest's console and QEMU have printed. */
  get consoleText(): string {
    return this.#story();
  }

  get qemuPid(): number {
    return this.#qemu.pid ?? 0;
  }

  /** Runs a script to its end. A result with an exit code other than 0 is a result, not an error. */
  async run(script: string, options: RunOptions = {}): Promise<RunResult> {
    const job = this.spawn(script, options);
    job.endInput();
    const timeoutMs = options.timeoutMs ?? defaultRunTimeoutMs;
    try {
      return await within(timeoutMs, options.signal, job.done);
    } catch (cause) {
      job.kill(9);
      const reason = cause instanceof Error ? cause.message : String(cause);
      const output = `standard output so far: ${job.stdoutText}\nstandard error so far: ${job.stderrText}`;
      throw new Error(`running ${JSON.stringify(script)} in the guest: ${reason}\n${output}\n${this.consoleText}`, {
        cause,
      });
    }
  }

  /** Like `run`, but an exit code other than 0 is an error; returns standard output as text. */
  async sh(script: string, options: RunOptions = {}): Promise<string> {
    const { exitCode, text, errorText } = await this.run(script, options);
    if (exitCode !== 0) {
      throw new Error(`${JSON.stringify(script)} in the guest exited with ${exitCode}: ${errorText}${text}`);
    }
    return text;
  }

  /** Starts a script and returns at once. Its standard input stays open until `endInput`. */
  spawn(script: string, options: Omit<RunOptions, 'timeoutMs' | 'signal'> = {}): GuestJob {
    return this.#control.spawn(script, options);
  }

  /**
   * Gives a terminal a root shell on the guest's console, and returns the shell's exit code. The terminal is raw
   * meanwhile, so that Ctrl-C goes to the guest. (`stty` at the end waits until the console has printed everything.)
   */
  async shell(
    input: ReadStream | Readable = process.stdin,
    output: WriteStream | Writable = process.stdout,
  ): Promise<number> {
    const term = (process.env['TERM'] ?? 'dumb').replaceAll(/[^\w-]/g, '');
    const size = 'columns' in output ? `stty rows ${output.rows} cols ${output.columns};` : '';
    const job = this.spawn(
      `cd /root; exec <>/dev/$(cat /sys/class/tty/console/active) >&0 2>&1; ${size}
       HOME=/root TERM=${term} PS1='root@guest:\\w# ' bash -i; code=$?; stty sane; exit $code`,
    );
    const detach = await this.#console.attach(input, output);
    try {
      const { exitCode } = await job.done;
      await setImmediate();
      return exitCode;
    } finally {
      detach();
    }
  }

  qmp(command: string, args?: Readonly<Record<string, Json>>): Promise<Json> {
    return this.#qmp.execute(command, args);
  }

  /** Mounts a virtiofs tag on a directory, made if absent. */
  async mount(tag: string, dir: string, options = 'nosuid,nodev'): Promise<void> {
    await this.sh(`mkdir -p '${dir}' && mount -t virtiofs -o '${options}' '${tag}' '${dir}'`);
  }

  /** Tells the guest a number, in order after those before it; where it is kept is up to `floor` in the guest. */
  sendNumber(value: number): void {
    if (!this.#numbers) throw new Error('guest.sendNumber: start the guest with { numbers: true }');
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt(value));
    this.#numbers.write(bytes);
  }

  /** Starts the program that keeps the numbers of `sendNumber` in a file of the guest, and waits until it listens. */
  async keepNumbers(file = '/dev/shm/floor'): Promise<GuestJob> {
    const job = this.spawn(`exec floor org.porthole.numbers '${file}'`);
    await job.waitForOutput(/ready/);
    return job;
  }

  /** Resets the machine and waits for its next boot. */
  async reset(timeoutMs = 60_000): Promise<void> {
    if (!this.#options.allowReset) throw new Error('guest.reset: start the guest with { allowReset: true }');
    this.#control.expectReboot('the guest was reset');
    await this.qmp('system_reset');
    await this.#nextBoot('reset', timeoutMs);
  }

  /**
   * Makes the guest's kernel start the same kernel anew by kexec, and waits for that boot. QEMU's devices live on. `loaded` is
   * called between the two steps: loading the kernel, which takes seconds, and starting it.
   */
  async kexec(timeoutMs = 60_000, loaded: () => Promise<void> = async () => {}): Promise<void> {
    if (!this.#options.allowKexec) throw new Error('guest.kexec: start the guest with { allowKexec: true }');
    const [dir, at] = [imageShare.tag, `/run/${imageShare.tag}`];
    await this.sh(
      `mkdir -p ${at} && mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144 ${dir} ${at} &&
       kexec ${at}/vmlinuz ${at}/initramfs && umount ${at}`,
      { timeoutMs },
    );
    await loaded();
    this.spawn('exec kexec');
    this.#control.expectReboot('the guest started a new kernel by kexec');
    await this.#nextBoot('kexec', timeoutMs);
  }

  /** Asks the guest to power off, and resolves when QEMU has ended. */
  async powerOff(timeoutMs = 60_000): Promise<void> {
    this.spawn('poweroff -f');
    await within(timeoutMs, undefined, this.ended);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#qemu.exitCode === null && this.#qemu.signalCode === null) this.#qemu.kill('SIGKILL');
    await this.ended;
    rmSync(this.#dir, { recursive: true, force: true });
  }

  async #nextBoot(how: string, timeoutMs: number): Promise<void> {
    try {
      await within(timeoutMs, undefined, this.#control.ready);
    } catch (cause) {
      throw new Error(`guest did not come back after ${how}\n${this.consoleText}`, { cause });
    }
  }
}

function commandLine(image: BootImage, dir: string, options: GuestOptions): { command: string; args: string[] } {
  const arch = process.arch === 'arm64' ? 'arm64' : 'x64';
  const { qemu, machine, cpu, console } = machines[arch];
  const memory = options.memory ?? '256M';
  const kernelArgs = [`console=${console}`, ...quickKernelArgs, ...(options.kernelArgs ?? [])];
  const args = [
    ['-nodefaults', '-no-user-config', '-display', 'none', '-accel', accelerator(options.translatedMiB), '-cpu', cpu],
    ['-machine', `${machine},memory-backend=mem`, '-m', memory, '-smp', String(options.cpus ?? 1)],
    ['-object', `memory-backend-memfd,id=mem,size=${memory},share=on`],
    ['-kernel', image.kernel, '-initrd', image.initramfs, '-append', kernelArgs.join(' ')],
    options.allowReset ? [] : ['-no-reboot'],
    ['-chardev', `socket,id=console,path=${join(dir, 'console')}`, '-serial', 'chardev:console'],
    ['-chardev', `socket,id=qmp,path=${join(dir, 'qmp')}`, '-mon', 'chardev=qmp,mode=control'],
    ['-device', 'virtio-serial-pci', '-chardev', `socket,id=control,path=${join(dir, 'control')}`],
    ['-device', 'virtserialport,chardev=control,name=org.porthole.control'],
  ].flat();
  for (const [index, { socket, tag, queueSize = 1024 }] of (options.virtiofs ?? []).entries()) {
    args.push('-chardev', `socket,id=fs${index},path=${socket}`);
    args.push('-device', `vhost-user-fs-pci,chardev=fs${index},tag=${tag},queue-size=${queueSize},id=fs-${tag}`);
  }
  if (options.numbers) {
    args.push('-chardev', `socket,id=numbers,path=${join(dir, 'numbers')}`);
    args.push('-device', 'virtserialport,chardev=numbers,name=org.porthole.numbers');
  }
  const shares = [...(options.shares ?? []), ...(options.allowKexec ? [{ ...imageShare, path: image.dir }] : [])];
  for (const [index, { tag, path }] of shares.entries()) {
    args.push('-fsdev', `local,id=share${index},path=${path},security_model=none,readonly=on,multidevs=remap`);
    args.push('-device', `virtio-9p-pci,fsdev=share${index},mount_tag=${tag}`);
  }
  return { command: qemu, args: [...args, ...(options.qemuArgs ?? [])] };
}

/** Listens on a unix socket for the one connection that QEMU makes to it when it starts. */
async function acceptOne(path: string): Promise<{ server: Server; connection: Promise<Socket> }> {
  const server = createServer();
  const connection = Promise.withResolvers<Socket>();
  server.once('connection', connection.resolve);
  server.listen(path);
  await once(server, 'listening');
  return { server, connection: connection.promise };
}

async function within<T>(timeoutMs: number, signal: AbortSignal | undefined, promise: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`no end after ${timeoutMs} ms`)), timeoutMs);
  const abort = (): void => late.reject(signal?.reason);
  if (signal?.aborted) abort();
  signal?.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  }
}
