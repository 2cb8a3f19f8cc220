/** A VM in QEMU whose programs read and write without pause, under a `serve` whose device process is killed. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { GuestJob } from '../../images/tiny/control.ts';
import { Guest } from '../../images/tiny/guest.ts';
import { type ServeEvent, type Server, serve } from '../../src/host/index.ts';
import { until } from '../until.ts';
import { counted, type Kind, many, noteOf, programs } from './programs.ts';

/** An emulated machine that nine programs keep busy is slow; a program that hangs hangs for ever. */
const PATIENCE_MS = 120_000;
const spec = (note: string): string => `porthole: 1
metadata:
  instance: { id: i-1, note: "${note}" }
  many: { ${many} }
  secrets: { once: "burn me" }
  guest: {}
policy:
  - { path: /many, mode: "0755" }
  - { path: "/many/*", mode: "0444" }
  - { path: /secrets/once, mode: "0444", once: true }
`;

export interface Program {
  readonly name: string;
  readonly kind: Kind;
  readonly job: GuestJob;
  hasEnded: boolean;
}

/** How many numbers a program has printed. */
export const told = ({ job }: Program): number => counted(job.stdoutText);

export class Stage implements AsyncDisposable {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'porthole-recovery-'));
  readonly events: ServeEvent[] = [];
  readonly #file = path.join(this.directory, 'vm.yaml');
  #server!: Server;
  #guest!: Guest;
  #note = 0;
  #programs = 0;
  /** Milliseconds from each end of a device process until its successor went on. */
  readonly stallsMs: number[] = [];

  static async start(): Promise<Stage> {
    const stage = new Stage();
    writeFileSync(stage.#file, spec(noteOf(0)));
    const socket = path.join(stage.directory, 'socket');
    stage.#server = await serve({
      file: stage.#file,
      vhostUser: [socket],
      mounts: [],
      writeStdout: () => true,
      onEvent: (event) => stage.events.push(event),
    });
    stage.#guest = await Guest.start({ virtiofs: [{ socket, tag: 'metadata' }], allowReset: true, cpus: 2 });
    await stage.guest.mount('metadata', '/run/metadata');
    return stage;
  }

  get guest(): Guest {
    return this.#guest;
  }

  get server(): Server {
    return this.#server;
  }

  async run(kind: Kind): Promise<Program> {
    const name = `p${++this.#programs}`;
    const job = this.guest.spawn(`cd /run/metadata; ${programs[kind](name)}`);
    const program: Program = { name, kind, job, hasEnded: false };
    void (async () => {
      await job.done.catch(() => undefined);
      program.hasEnded = true;
    })();
    await program.job.waitForOutput(/^3$/m, PATIENCE_MS);
    return program;
  }

  /** A new version of `/instance/note`, from outside. */
  rewriteNote(): void {
    writeFileSync(this.#file, spec(noteOf(++this.#note)));
  }

  #resumed(): number {
    return this.events.filter((event) => event.event === 'target' && event.what === 'resumed').length;
  }

  /** Ends the device process, and resolves when its successor has taken up what it left. */
  async succeed(how: 'kill' | 'replace'): Promise<void> {
    const before = this.#resumed();
    const start = performance.now();
    if (how === 'kill') process.kill(this.server.devicePid!, 'SIGKILL');
    else this.server.replaceDevice();
    await until('the successor to go on', () => this.#resumed() > before, PATIENCE_MS);
    this.stallsMs.push(performance.now() - start);
  }

  /** Resolves once every program has got on. */
  async goOn(all: readonly Program[]): Promise<void> {
    const before = all.map(told);
    const allWentOn = (): boolean =>
      all.every((program, i) => {
        this.assertRuns(program);
        return told(program) > before[i]! + 1;
      });
    await until('every program to go on', allWentOn, PATIENCE_MS);
  }

  assertRuns({ kind, job, hasEnded }: Program): void {
    assert.equal(job.stderrText, '', `${kind} complains`);
    assert.equal(hasEnded, false, `${kind} has ended: ${job.stdoutText.slice(-20)}`);
  }

  async end(all: readonly Program[]): Promise<void> {
    for (const program of all) {
      this.assertRuns(program);
      program.job.kill(9);
      await program.job.done;
    }
  }

  /** What a writer was told is done is in the tree, in order and once; and beyond it no more than what was in flight. */
  check(program: Program): void {
    const { snapshot } = this.server.tree.authority;
    const node = snapshot.resolve(`/guest/${program.name}`);
    if (!['lines', 'directories', 'holds'].includes(program.kind)) return;
    assert.ok(node, `/guest/${program.name} is not there`);
    const kept =
      program.kind === 'directories'
        ? [...snapshot.entries(node.ino)].map(([name]) => name).toSorted((a, b) => Number(a) - Number(b))
        : new TextDecoder().decode(node.bytes).split('\n').slice(0, -1);
    assert.deepEqual(
      kept,
      Array.from({ length: kept.length }, (_, i) => String(i + 1)),
      `${program.name} is not in order`,
    );
    const extra = kept.length - told(program);
    assert.ok(extra === 0 || extra === 1, `${program.name} was told of ${told(program)} and has ${kept.length}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#guest?.[Symbol.asyncDispose]();
    await this.#server?.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
