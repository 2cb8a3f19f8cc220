/** The writer outside: one tree, served both ways, whose two values change together, from pattern to pattern. */
import { chmodSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { patternLength, patternValue } from '../../images/tiny/probe/pattern.ts';
import { loadSpecOrThrow, type ServeEvent, type Server, serve } from '../../src/host/index.ts';
import type { Spec } from '../../src/tree/index.ts';

/** Read by everybody, so cached by the kernel; and by its owner alone, so asked for outside each time. */
export const values = { shared: 'instance/value', secret: 'secrets/value' } as const;
export const secretOwner = 1000;

const spec = `porthole: 1
metadata:
  instance: { value: { file: value } }
  secrets: { value: { file: value } }
  guest: {}
policy:
  - { path: /secrets/value, owner: ${secretOwner}, mode: "0400" }
`;

const PATIENCE_MS = 60_000;

export class Outside implements AsyncDisposable {
  readonly mountPoint: string;
  readonly socket: string;
  readonly #directory: string;
  #server!: Server;
  #spec!: Spec;
  #number = 0;
  #reloaded: PromiseWithResolvers<void> = Promise.withResolvers();

  private constructor() {
    this.#directory = mkdtempSync(path.join(tmpdir(), 'porthole-consistency-'));
    chmodSync(this.#directory, 0o755);
    this.mountPoint = path.join(this.#directory, 'mnt');
    this.socket = path.join(this.#directory, 'socket');
  }

  /** Serves value 1. */
  static async start(): Promise<Outside> {
    const outside = new Outside();
    mkdirSync(outside.mountPoint);
    const file = path.join(outside.#directory, 'vm.yaml');
    writeFileSync(file, spec);
    outside.#replaceFile(outside.#next());
    outside.#spec = loadSpecOrThrow(file).spec;
    outside.#server = await serve({
      file,
      vhostUser: [outside.socket],
      mounts: [outside.mountPoint],
      writeStdout: () => true,
      onEvent: (event) => outside.#told(event),
    });
    return outside;
  }

  get server(): Server {
    return this.#server;
  }

  /** The number of the last completed write. */
  get number(): number {
    return this.#number;
  }

  #next(): Buffer {
    this.#number++;
    return patternValue(this.#number, patternLength(this.#number));
  }

  #told(event: ServeEvent): void {
    if (event.event === 'reloaded' && event.applied) this.#reloaded.resolve();
    else if (event.event === 'reloaded') this.#reloaded.reject(new Error('a reload was not applied in time'));
    else if (event.event === 'rejected') this.#reloaded.reject(event.error);
    else if (event.event === 'device-ended' || event.event === 'failed') this.#reloaded.reject(new Error(event.reason));
  }

  /** Writes the next number straight to the authority. Completed when every replica has applied it. */
  async write(): Promise<number> {
    const bytes = this.#next();
    const entries = this.#spec.entries.map((entry) => (entry.path.endsWith('/value') ? { ...entry, bytes } : entry));
    const { revision } = this.#server.tree.authority.load({ ...this.#spec, entries } as Spec);
    if (!(await this.#server.applied(revision, PATIENCE_MS)))
      throw new Error(`write ${this.#number} was not applied in time`);
    return this.#number;
  }

  /** Writes the next number as people do: by a new file, which the server finds. Completed when it says so. */
  async writeFile(): Promise<number> {
    this.#reloaded = Promise.withResolvers();
    const late = setTimeout(() => this.#reloaded.reject(new Error('no reload')), PATIENCE_MS);
    this.#replaceFile(this.#next());
    try {
      await this.#reloaded.promise;
    } finally {
      clearTimeout(late);
    }
    return this.#number;
  }

  #replaceFile(bytes: Buffer): void {
    const file = path.join(this.#directory, 'value');
    writeFileSync(`${file}.new`, bytes);
    renameSync(`${file}.new`, file);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
