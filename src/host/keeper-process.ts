/** The keeper, as a host daemon starts it that it ends with: its socket for one VM. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { commandOf, partEnvironment } from '../parts/index.ts';

const startWithinMs = 20_000;
const retryMs = 20;
const restartMs = 500;

interface KeeperProcessOptions {
  /** Told when it ended without being told to; it is started again. */
  readonly onEnd: () => void;
}

/** One keeper for one VM, in a private directory. It is started again when it dies; device processes fill it anew. */
export class KeeperProcess implements AsyncDisposable {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-keeper-'));
  readonly #onEnd: () => void;
  #child: ChildProcess | undefined;
  #admin: Socket | undefined;
  #isStopping = false;
  #restarting: Promise<void> = Promise.resolve();

  private constructor(options: KeeperProcessOptions) {
    this.#onEnd = options.onEnd;
  }

  static async start(options: KeeperProcessOptions): Promise<KeeperProcess> {
    const keeper = new KeeperProcess(options);
    try {
      await keeper.#start();
      return keeper;
    } catch (error) {
      await keeper[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Where a device process reaches it. */
  get socket(): string {
    return path.join(this.#directory, 'vm');
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  async #start(): Promise<void> {
    const admin = path.join(this.#directory, 'admin');
    // It ends when this process does, however that ends: its standard input is a pipe from here.
    const [program, ...args] = commandOf('keeper');
    const child = spawn(program, [...args, admin, '--with-stdin'], {
      stdio: ['pipe', 'ignore', 'ignore'],
      env: partEnvironment(),
      detached: true,
      cwd: '/',
    });
    this.#child = child;
    const ended = new Promise<void>((resolve) => {
      child.once('error', () => resolve());
      child.once('exit', () => resolve());
    });
    void ended.then(() => this.#ended(child));
    this.#admin = await this.#connect(admin, child);
    const answer = once(this.#admin, 'data');
    this.#admin.write(`${JSON.stringify({ open: 'vm', path: this.socket })}\n`);
    const [text] = (await Promise.race([answer, ended.then(() => [''])])) as [Buffer | string];
    const errno = text.length === 0 ? undefined : (JSON.parse(text.toString()) as { errno: number }).errno;
    if (errno !== 0)
      throw new Error(`the keeper does not open its socket "${this.socket}" (errno ${errno ?? 'unknown'})`);
  }

  async #connect(admin: string, child: ChildProcess): Promise<Socket> {
    const deadline = performance.now() + startWithinMs;
    for (;;) {
      const socket = createConnection(admin);
      try {
        await once(socket, 'connect');
        socket.on('error', () => {});
        socket.unref();
        return socket;
      } catch (error) {
        socket.destroy();
        if (child.exitCode !== null || child.signalCode !== null || performance.now() > deadline)
          throw new Error('the keeper could not be started', { cause: error });
        await delay(retryMs);
      }
    }
  }

  #ended(child: ChildProcess): void {
    if (this.#isStopping || child !== this.#child) return;
    this.#admin?.destroy();
    this.#onEnd();
    this.#restarting = delay(restartMs)
      .then(() => (this.#isStopping ? undefined : this.#start()))
      .catch(() => undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isStopping = true;
    const child = this.#child;
    const isAlive =
      child !== undefined && child.exitCode === null && child.signalCode === null && child.pid !== undefined;
    if (isAlive) {
      const exit = once(child, 'exit');
      child.kill('SIGKILL');
      await exit;
    }
    await this.#restarting;
    this.#admin?.destroy();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
