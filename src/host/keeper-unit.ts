/**
 * The keeper of a host: one process for all VMs, which outlives the daemon. Found again at its admin socket, or started; when it
 * ends, another is started, and the device processes give it everything again.
 */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { buildOf, commandOf, partEnvironment } from '../parts/index.ts';
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

/** Of one that does not say what it runs. */
const unknownBuild = 'unknown';

interface Answer {
  readonly errno: number;
  readonly build?: unknown;
}

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
  readonly #answers: ((answer: Answer) => void)[] = [];
  #running: Promise<void> | undefined;
  /** What the keeper runs, and what one runs that is started now. */
  #build = unknownBuild;
  readonly #ownBuild = buildOf('keeper');
  /** While it is being replaced. */
  #replaced: { readonly resolve: () => void } | undefined;

  constructor(options: KeeperUnitOptions) {
    this.#options = options;
  }

  /** Resolves when there is one. */
  async start(): Promise<void> {
    await this.#begin();
    this.#running = this.#watch();
  }

  get build(): string {
    return this.#build;
  }

  get isOutdated(): boolean {
    return this.#build !== this.#ownBuild;
  }

  /**
   * Has another take its place, which takes over all that it has, VM by VM, and then answers alone. Resolves when it does.
   * Rejects, and leaves the one that there is, when another does not start.
   */
  async replace(): Promise<void> {
    const before = this.#pid();
    const next = await this.#launch(before);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#replaced = { resolve };
    for (const [name, wanted] of this.#wanted) await answerOf(next, opening(name, wanted));
    next.destroy();
    // It has ended by itself, unless it is one that hands nothing over, or has nothing.
    if (before !== undefined && this.#pid() === before) this.#end();
    return promise;
  }

  async #begin(): Promise<void> {
    this.#admin = await this.#reach();
    const { build } = (await this.#ask({ build: true })) ?? {};
    this.#build = typeof build === 'string' && /^[\w.+-]{1,100}$/.test(build) ? build : unknownBuild;
  }

  /** Opens the socket of a VM, where its device process finds what was kept for it. */
  async open(name: string, path: string, uid: number | undefined): Promise<void> {
    const wanted = { path, uid };
    this.#wanted.set(name, wanted);
    try {
      await this.#openOne(name, wanted);
    } catch (error) {
      this.#wanted.delete(name);
      throw error;
    }
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
    this.#over.abort();
    this.#end();
    await this.release();
    rmSync(this.#options.adminPath, { force: true });
  }

  #pid(): number | undefined {
    return this.#admin === undefined ? undefined : pidOf(this.#admin);
  }

  #end(): void {
    const pid = this.#pid();
    if (pid === undefined) return;
    try {
      process.kill(pid, 'SIGTERM');
    } catch {
      // It has ended by itself.
    }
  }

  /** It lives on without us. */
  async release(): Promise<void> {
    this.#over.abort();
    this.#admin?.destroy();
    await this.#running;
  }

  async #openOne(name: string, wanted: Wanted): Promise<void> {
    const errno = (await this.#ask(opening(name, wanted)))?.errno;
    if (errno !== undefined && errno !== 0)
      throw new Error(`the keeper does not open "${wanted.path}" for VM "${name}": ${errnoName(errno)}`);
  }

  /** Undefined when the keeper is gone; the next one will be told. */
  async #ask(command: object): Promise<Answer | undefined> {
    const admin = this.#admin;
    if (admin === undefined || !admin.writable) return undefined;
    const { promise, resolve } = Promise.withResolvers<Answer>();
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
    const { signal } = this.#over;
    for (;;) {
      const admin = this.#admin;
      // We may have been let go while this one was begun.
      if (signal.aborted) admin?.destroy();
      if (admin !== undefined && !admin.destroyed) await once(admin, 'close').catch(() => {});
      if (signal.aborted) return this.#replaced?.resolve();
      this.#answers.length = 0;
      this.#received = '';
      if (this.#replaced === undefined) onTrouble('the keeper ended; starting another');
      try {
        await this.#begin();
        for (const [name, wanted] of this.#wanted) await this.#openOne(name, wanted);
        this.#replaced?.resolve();
        this.#replaced = undefined;
      } catch (error) {
        onTrouble(`the keeper: ${error instanceof Error ? error.message : String(error)}`);
        this.#admin?.destroy();
        await pause(againAfterMs);
      }
    }
  }

  /** Connects to the keeper that runs, or to a new one. */
  async #reach(): Promise<Socket> {
    const socket = (await this.#connect()) ?? (await this.#launch(undefined));
    socket.unref();
    socket.setEncoding('utf8').on('data', (text: string) => {
      this.#received += text;
      const lines = this.#received.split('\n');
      this.#received = lines.pop()!;
      for (const line of lines) this.#answers.shift()?.(JSON.parse(line) as Answer);
    });
    return socket;
  }

  /** Starts one, which listens in the place of the one that has `than` as its process. */
  async #launch(than: number | undefined): Promise<Socket> {
    const { launcher, adminPath, logFile } = this.#options;
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
        if (socket !== undefined && pidOf(socket) !== than) return socket;
        socket?.destroy();
        if (!process.alive || performance.now() > deadline)
          throw new Error(`it does not answer at "${adminPath}": ${lastLine(logFile)}`);
        await pause(lookEveryMs);
      }
    } catch (error) {
      process.signal('SIGKILL');
      throw error;
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
    return socket;
  }
}

const opening = (name: string, { path, uid }: Wanted): object => ({
  open: name,
  path,
  ...(uid !== undefined && { uid }),
});

/** Who listens at the other end. */
const pidOf = (socket: Socket): number | undefined => {
  const peer = peerOf(socket);
  return typeof peer === 'object' && peer.pid > 0 ? peer.pid : undefined;
};

/** What is answered over a connection over which nothing else is asked. Resolves when it is gone, too. */
const answerOf = async (socket: Socket, command: object): Promise<void> => {
  const over = new AbortController();
  const { signal } = over;
  socket.write(`${JSON.stringify(command)}\n`);
  await Promise.race([once(socket, 'data', { signal }), once(socket, 'close', { signal })]).catch(() => {});
  over.abort();
};
