/** One VM's tree, served over a link that can be held up, and a guest whose programs write numbered things. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { GuestJob } from '../../images/tiny/control.ts';
import { Guest } from '../../images/tiny/guest.ts';
import { type Counters, type ServeEvent, type Server, serve } from '../../src/host/index.ts';
import { until } from '../until.ts';

const spec = `porthole: 1
metadata:
  instance: { id: i-1 }
  guest: {}
`;

/** A program in the guest that appends numbered lines, or makes numbered directories, and prints each when it is done. */
export interface Writer {
  readonly name: string;
  readonly kind: 'lines' | 'directories';
  readonly job: GuestJob;
}

const scripts = {
  lines: (at: string, name: string) =>
    `i=0; while i=$((i+1)); do printf '%s\\n' $i >> ${at}/guest/${name} || exit 3; echo $i; done`,
  directories: (at: string, name: string) =>
    `mkdir ${at}/guest/${name}; i=0; while i=$((i+1)); do mkdir ${at}/guest/${name}/$i || exit 3; echo $i; done`,
} as const;

export class Stage implements AsyncDisposable {
  readonly #directory = mkdtempSync(path.join(tmpdir(), 'porthole-lives-'));
  readonly events: ServeEvent[] = [];
  #server!: Server;
  #guest!: Guest;
  #writers = 0;
  #held = false;

  static async start(): Promise<Stage> {
    const stage = new Stage();
    const file = path.join(stage.#directory, 'vm.yaml');
    const socket = path.join(stage.#directory, 'socket');
    writeFileSync(file, spec);
    stage.#server = await serve({
      file,
      vhostUser: [socket],
      mounts: [],
      writeStdout: () => true,
      onEvent: (event) => stage.events.push(event),
      deviceCommand: [process.execPath, path.join(import.meta.dirname, 'slow-link.ts')],
    });
    stage.#guest = await Guest.start({
      virtiofs: [{ socket, tag: 'metadata' }],
      allowReset: true,
      allowKexec: true,
      cpus: 2,
    });
    await stage.#guest.mount('metadata', '/run/metadata');
    return stage;
  }

  get guest(): Guest {
    return this.#guest;
  }

  async counters(): Promise<Counters> {
    const counters = await this.#server.statistics(60_000);
    assert.ok(counters, 'the device process does not answer');
    return counters;
  }

  /** From now on nothing goes between host daemon and device process, in either direction. */
  holdLink(): void {
    process.kill(this.#server.devicePid!, 'SIGSTOP');
    this.#held = true;
  }

  /** Resolves when everything that was held up has been answered: what the second question follows came before the first answer. */
  async answered(): Promise<void> {
    await this.counters();
    await this.counters();
  }

  releaseLink(): void {
    if (!this.#held) return;
    this.#held = false;
    process.kill(this.#server.devicePid!, 'SIGCONT');
  }

  async write(kind: Writer['kind'], at = '/run/metadata'): Promise<Writer> {
    const name = `w${++this.#writers}`;
    const writer = { name, kind, job: this.#guest.spawn(scripts[kind](at, name)) };
    await writer.job.waitForOutput(/^3$/m);
    return writer;
  }

  /** Resolves once no writer gets on: each has a mutation in flight. */
  async inFlight(writers: readonly Writer[]): Promise<void> {
    let before = '';
    let quiet = 0;
    await until('every writer to wait for an answer', async () => {
      const now = writers.map(acknowledged).join();
      quiet = now === before ? quiet + 1 : 0;
      before = now;
      // The guest's time, not ours: on a busy machine it has less of it.
      await this.#guest.sh('sleep 0.1');
      return quiet === 3;
    });
  }

  /** Resolves once every writer has got on. */
  async goesOn(writers: readonly Writer[]): Promise<void> {
    const before = writers.map(acknowledged);
    await until('every writer to go on', () => writers.every((writer, i) => acknowledged(writer) > before[i]! + 2));
  }

  async end(writers: readonly Writer[]): Promise<void> {
    for (const { job } of writers) {
      job.kill(9);
      await job.done;
    }
  }

  /**
   * What a writer was told is done is in the tree, in order and once; and beyond it no more than what was in flight.
   */
  check(writer: Writer): void {
    const told = acknowledged(writer);
    const { snapshot } = this.#server.tree.authority;
    const node = snapshot.resolve(`/guest/${writer.name}`);
    assert.ok(node, `/guest/${writer.name} is not there`);
    const kept =
      writer.kind === 'lines'
        ? new TextDecoder().decode(node.bytes).split('\n').slice(0, -1)
        : [...snapshot.entries(node.ino)].map(([name]) => name).toSorted((a, b) => Number(a) - Number(b));
    assert.deepEqual(
      kept,
      Array.from({ length: kept.length }, (_, i) => String(i + 1)),
      `${writer.name} is not in order`,
    );
    const extra = kept.length - told;
    assert.ok(extra === 0 || extra === 1, `${writer.name} was told of ${told} and has ${kept.length}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.releaseLink();
    await this.#guest?.[Symbol.asyncDispose]();
    await this.#server?.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** The last number that a writer printed; they must be consecutive. */
export function acknowledged({ job }: Writer): number {
  const numbers = job.stdoutText.split('\n').slice(0, -1);
  for (const [i, number] of numbers.entries()) assert.equal(number, String(i + 1));
  return numbers.length;
}
