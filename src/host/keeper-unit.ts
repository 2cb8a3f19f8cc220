/**
 * The keeper of a host: one process for all VMs, which outlives the daemon. Found again at its admin socket, or started; when it
 * ends, another is started, and the device processes give it everything again.
 */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { commandOf, partEnvironment } from '../parts/index.ts';
import { type Launcher, lastLine } from '../qemu/index.ts';
import { errnoName } from '../wire/index.ts';
import { peerOf } from './peer-of.ts';

export interface KeeperUnitOptions {
  readonly launcher: Launcher;
  /** Of the run directory: only we may open it. */
  readonly adminPath: string;
  readonly logFile: string;
  readonly onTrouble: (what: string) => void;
}

const startWithinMs = 20_000;
const lookEveryMs = 20;
const againAfterMs = 200;
const keeperLimits = { memoryBytes: 256 * 1024 * 1024, processes: 32, openFiles: 16_384 } as const;

interface Wanted {
  readonly path: string;
  readonly uid: number | undefined;
}

export class KeeperUnit {
  readonly #options: KeeperUnitOptions;
  readonly #wanted = new Map<string, Wanted>();
  readonly #over = new AbortController();
  #admin: Socket | undefined;
  #received = '';
  readonly #answers: ((errno: number) => void)[] = [];
  #running: Promise<void> | undefined;

  constructor(options: KeeperUnitOptions) {
    this.#options = options;
  }

  /** Resolves when there is one. */
  async start(): Promise<void> {
    this.#admin = await this.#reach();
    this.#running = this.#watch();
  }

  /** Opens the socket of a VM, where its device process finds what was kept for it. */
  async open(name: string, path: string, uid: number | undefined): Promise<void> {
    const wanted = { path, uid };
    this.#wanted.set(name, wanted);
    await this.#openOne(name, wanted);
  }

  /** Gives up what is kept for a VM. */
  async close(name: string): Promise<void> {
    if (this.#wanted.delete(name)) await this.#ask({ close: name });
  }

  /** No VM has anything with it. */
  get isIdle(): boolean {
    return this.#wanted.size === 0;
  }

  /** Ends it: there is nothing to keep. */
  async stop(): Promise<void> {
    const peer = this.#admin === undefined ? -1 : peerOf(this.#admin);
    await this.release();
    if (typeof peer === 'object' && peer.pid > 0) process.kill(peer.pid, 'SIGTERM');
    rmSync(this.#options.adminPath, { force: true });
  }

  /** It lives on without us. */
  async release(): Promise<void> {
    this.#over.abort();
    this.#admin?.destroy();
    await this.#running;
  }

  async #openOne(name: string, { path, uid }: Wanted): Promise<void> {
    const errno = await this.#ask({ open: name, path, ...(uid !== undefined && { uid }) });
    if (errno !== undefined && errno !== 0)
      throw new Error(`the keeper does not open "${path}" for VM "${name}": ${errnoName(errno)}`);
  }

  /** The errno of the answer; undefined when the keeper is gone, and the next one will be told. */
  async #ask(command: object): Promise<number | undefined> {
    const admin = this.#admin;
    if (admin === undefined || !admin.writable) return undefined;
    const { promise, resolve } = Promise.withResolvers<number>();
    this.#answers.push(resolve);
    const gone = once(admin, 'close', { signal: this.#over.signal }).then(
      () => undefined,
      () => undefined,
    );
    admin.write(`${JSON.stringify(command)}\n`);
    return Promise.race([promise, gone]);
  }

  /** Starts another whenever it ends. */
  async #watch(): Promise<void> {
    const { onTrouble } = this.#options;
    for (;;) {
      const admin = this.#admin;
      if (admin !== undefined && !admin.destroyed) await once(admin, 'close').catch(() => {});
      if (this.#over.signal.aborted) return;
      this.#answers.length = 0;
      this.#received = '';
      onTrouble('the keeper ended; starting another');
      try {
        this.#admin = await this.#reach();
        for (const [name, wanted] of this.#wanted) await this.#openOne(name, wanted);
      } catch (error) {
        onTrouble(`the keeper: ${error instanceof Error ? error.message : String(error)}`);
        this.#admin?.destroy();
        await pause(againAfterMs);
      }
    }
  }

  /** Connects to the keeper that runs, or to a new one. */
  async #reach(): Promise<Socket> {
    const { launcher, adminPath, logFile } = this.#options;
    const found = await this.#connect();
    if (found !== undefined) return found;
    const process = await launcher.launch({
      name: `porthole-keeper-${Date.now().toString(36)}`,
      description: 'Porthole: what device processes hold, over their deaths',
      command: [...commandOf('keeper'), adminPath],
      environment: partEnvironment(),
      limits: keeperLimits,
      logFile,
    });
    try {
      const deadline = performance.now() + startWithinMs;
      for (;;) {
        const socket = await this.#connect();
        if (socket !== undefined) return socket;
        if (!process.alive || performance.now() > deadline)
          throw new Error(`it does not answer at "${adminPath}": ${lastLine(logFile)}`);
        await pause(lookEveryMs);
      }
    } finally {
      process.release();
    }
  }

  async #connect(): Promise<Socket | undefined> {
    const socket = createConnection(this.#options.adminPath);
    try {
      await once(socket, 'connect');
    } catch {
      socket.destroy();
      return undefined;
    }
    socket.on('error', () => {});
    socket.unref();
    socket.setEncoding('utf8').on('data', (text: string) => {
      this.#received += text;
      const lines = this.#received.split('\n');
      this.#received = lines.pop()!;
      for (const line of lines) this.#answers.shift()?.((JSON.parse(line) as { readonly errno: number }).errno);
    });
    return socket;
  }
}
