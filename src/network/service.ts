/** A program with a configuration file that outlives the daemon: dnsmasq, bird. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { type LastingProcess, type Launcher, lastLine } from '../qemu/index.ts';

export interface ServiceOptions {
  /** Of files, and in the unit's name. */
  readonly name: string;
  readonly description: string;
  /** Of this host's network; only root may write to it. */
  readonly directory: string;
  readonly launcher: Launcher;
  readonly command: (files: ServiceFiles) => readonly [string, ...string[]];
  /** Has one that runs take up its changed configuration; undefined: it is started anew. */
  readonly reload?: ((files: ServiceFiles) => Promise<void>) | undefined;
  /** Rejects where the program is not there, or does not take the configuration. */
  readonly check: (files: ServiceFiles) => Promise<unknown>;
  /** It ended by itself. */
  readonly onEnd: (why: string) => void;
}

export interface ServiceFiles {
  readonly configuration: string;
  /** The program makes it when it does its work. */
  readonly mark: string;
}

const ProcessRecord = z.looseObject({
  pid: z.int(),
  startTicks: z.number(),
  machineBootId: z.string(),
  unit: z.string().optional(),
});

const limits = { memoryBytes: 256 * 1024 * 1024, processes: 16, openFiles: 16_384 } as const;
const readyWithinMs = 20_000;
const lookEveryMs = 20;

export class Service {
  readonly #options: ServiceOptions;
  readonly #files: ServiceFiles;
  readonly #processFile: string;
  readonly #logFile: string;
  #process: LastingProcess | undefined;

  constructor(options: ServiceOptions) {
    this.#options = options;
    const { directory, name, launcher } = options;
    this.#files = { configuration: join(directory, `${name}.conf`), mark: join(directory, `${name}.up`) };
    this.#processFile = join(directory, `${name}.json`);
    this.#logFile = join(directory, `${name}.log`);
    const known = ProcessRecord.safeParse(jsonOf(this.#processFile));
    if (known.success) {
      const { unit, ...identity } = known.data;
      this.#hold(launcher.adopt({ ...identity, ...(unit !== undefined && { unit }) }, this.#logFile));
    }
  }

  /** Resolves when it runs with this configuration. Error with words for people. */
  async run(configuration: string): Promise<void> {
    const isAlive = this.#process?.alive === true;
    if (isAlive && textOf(this.#files.configuration) === configuration) return;
    mkdirSync(this.#options.directory, { recursive: true, mode: 0o711 });
    const written = `${this.#files.configuration}.new`;
    writeFileSync(written, configuration, { mode: 0o600 });
    await this.#options.check({ ...this.#files, configuration: written });
    renameSync(written, this.#files.configuration);
    if (isAlive && this.#options.reload !== undefined) return this.#options.reload(this.#files);
    await this.#end();
    await this.#start();
  }

  async stop(): Promise<void> {
    await this.#end();
    const { configuration, mark } = this.#files;
    for (const file of [configuration, `${configuration}.new`, mark, this.#processFile]) rmSync(file, { force: true });
  }

  /** It lives on without us. */
  release(): void {
    this.#process?.release();
  }

  async #start(): Promise<void> {
    const { launcher, name, description, command } = this.#options;
    rmSync(this.#files.mark, { force: true });
    const process = await launcher.launch({
      name: `porthole-${name}-${Date.now().toString(36)}`,
      description,
      command: command(this.#files),
      limits,
      logFile: this.#logFile,
    });
    this.#hold(process);
    writeFileSync(this.#processFile, JSON.stringify(process.identity), { mode: 0o600 });
    for (const deadline = performance.now() + readyWithinMs; !existsSync(this.#files.mark); ) {
      if (!process.alive) throw new Error(`${name} ended: ${lastLine(this.#logFile)}`);
      if (performance.now() > deadline) throw new Error(`${name} is not ready: ${lastLine(this.#logFile)}`);
      await pause(lookEveryMs);
    }
  }

  #hold(process: LastingProcess | undefined): void {
    this.#process = process;
    if (process !== undefined) void this.#watch(process);
  }

  async #watch(process: LastingProcess): Promise<void> {
    await process.ended;
    if (this.#process === process) this.#options.onEnd(lastLine(this.#logFile));
  }

  async #end(): Promise<void> {
    const process = this.#process;
    this.#process = undefined;
    if (process === undefined) return;
    if (process.alive) {
      process.signal('SIGTERM');
      await process.ended;
    }
    process.release();
  }
}

const textOf = (file: string): string | undefined => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
};

const jsonOf = (file: string): unknown => {
  try {
    return JSON.parse(textOf(file) ?? 'null');
  } catch {
    return undefined;
  }
};
