/** A program with a configuration file that outlives the daemon: dnsmasq, bird. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import { killStrays, type LastingProcess, type Launcher, lastLine } from '../qemu/index.ts';

export interface ServiceOptions {
  /** Of files, and in the unit's name. */
  readonly name: string;
  readonly description: string;
  /** Of this host's network; only root may write to it. */
  readonly directory: string;
  readonly launcher: Launcher;
  readonly command: (files: ServiceFiles) => readonly [string, ...string[]];
  /** That of its arguments which no other process has. */
  readonly argument: (files: ServiceFiles) => string;
  /** Has one that runs take up its changed configuration; undefined: it is started anew. */
  readonly reload?: ((files: ServiceFiles) => Promise<void>) | undefined;
  /** Rejects where the program is not there, or does not take the configuration. */
  readonly check: (files: ServiceFiles) => Promise<unknown>;
  /** From its start; 20 s unless given. */
  readonly readyWithinMs?: number;
  /** From when it was asked to; 10 s unless given. */
  readonly endWithinMs?: number;
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
  /** What it was told last, and has taken up; absent until it does its work. */
  configuration: z.string().optional(),
});

const limits = { memoryBytes: 256 * 1024 * 1024, processes: 16, openFiles: 16_384 } as const;
const lookEveryMs = 20;
/** No configuration is: it does its work by one that it was told of before, or by the next one already. */
const unknown = '';

export class Service {
  readonly #options: ServiceOptions;
  readonly #files: ServiceFiles;
  readonly #processFile: string;
  readonly logFile: string;
  #process: LastingProcess | undefined;
  /** What it goes by. */
  #taken: string | undefined;

  constructor(options: ServiceOptions) {
    this.#options = options;
    const { directory, name, launcher } = options;
    this.#files = { configuration: join(directory, `${name}.conf`), mark: join(directory, `${name}.up`) };
    this.#processFile = join(directory, `${name}.json`);
    this.logFile = join(directory, `${name}.log`);
    const known = ProcessRecord.safeParse(jsonOf(this.#processFile));
    if (known.success) {
      const { unit, configuration, ...identity } = known.data;
      this.#taken = configuration;
      this.#hold(launcher.adopt({ ...identity, ...(unit !== undefined && { unit }) }, this.logFile));
    }
  }

  /** Resolves when it runs with this configuration. Error with words for people. */
  async run(configuration: string): Promise<void> {
    if (this.#process?.alive === true && this.#taken === configuration) return;
    mkdirSync(this.#options.directory, { recursive: true, mode: 0o711 });
    const written = `${this.#files.configuration}.new`;
    writeFileSync(written, configuration, { mode: 0o600 });
    await this.#options.check({ ...this.#files, configuration: written });
    renameSync(written, this.#files.configuration);
    // One that never was ready has nothing to reload.
    const process = this.#taken === undefined ? undefined : this.#process;
    if (process?.alive === true && this.#options.reload !== undefined) {
      this.#keep(process, unknown);
      try {
        await this.#options.reload(this.#files);
      } catch (error) {
        this.#keep(process, undefined);
        throw error;
      }
      this.#keep(process, configuration);
      return;
    }
    await this.#end();
    await this.#start(configuration);
  }

  async stop(): Promise<void> {
    await this.#end();
    const { configuration, mark } = this.#files;
    for (const file of [configuration, mark, this.#processFile])
      for (const name of [file, `${file}.new`]) rmSync(name, { force: true });
  }

  /** It lives on without us. */
  release(): void {
    this.#process?.release();
  }

  async #start(configuration: string): Promise<void> {
    const { launcher, name, description, command, readyWithinMs = 20_000 } = this.#options;
    rmSync(this.#files.mark, { force: true });
    const process = await launcher.launch({
      name: `porthole-${name}-${Date.now().toString(36)}`,
      description,
      command: command(this.#files),
      limits,
      logFile: this.logFile,
    });
    this.#hold(process);
    this.#keep(process, undefined);
    for (const deadline = performance.now() + readyWithinMs; !existsSync(this.#files.mark); ) {
      if (!process.alive) throw new Error(`${name} ended: ${lastLine(this.logFile)}`);
      if (performance.now() > deadline) throw new Error(`${name} is not ready: ${lastLine(this.logFile)}`);
      await pause(lookEveryMs);
    }
    this.#keep(process, configuration);
  }

  /** What it has taken up, so that a daemon that comes after one that was killed does not take a file for it. */
  #keep({ identity }: LastingProcess, configuration: string | undefined): void {
    this.#taken = configuration;
    const written = `${this.#processFile}.new`;
    writeFileSync(written, JSON.stringify({ ...identity, configuration }), { mode: 0o600 });
    renameSync(written, this.#processFile);
  }

  #hold(process: LastingProcess | undefined): void {
    this.#process = process;
    if (process !== undefined) void this.#watch(process);
  }

  async #watch(process: LastingProcess): Promise<void> {
    await process.ended;
    if (this.#process === process) this.#options.onEnd(lastLine(this.logFile));
  }

  async #end(): Promise<void> {
    const process = this.#process;
    this.#process = undefined;
    this.#taken = undefined;
    if (process?.alive === true) {
      process.signal('SIGTERM');
      const kill = setTimeout(() => process.signal('SIGKILL'), this.#options.endWithinMs ?? 10_000);
      await process.ended;
      clearTimeout(kill);
    }
    process?.release();
    // One that was started, and not written down.
    killStrays(this.#options.argument(this.#files));
  }
}

const jsonOf = (file: string): unknown => {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch {
    return undefined;
  }
};
