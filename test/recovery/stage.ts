/** A VM in QEMU whose programs read and write without pause, under a `serve` whose device process is killed. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { GuestJob } from '../../images/tiny/control.ts';
import { Guest } from '../../images/tiny/guest.ts';
import { type ServeEvent, type Server, serve } from '../../src/host/index.ts';
import { until } from '../until.ts';

/** An emulated machine that nine programs keep busy is slow; a program that hangs hangs for ever. */
const PATIENCE_MS = 120_000;
/** 300 names, so that no listing is one reply. */
const NAMES = 300;
const longName = (i: number): string => `name-${String(i).padStart(4, '0')}-${'x'.repeat(180)}`;
const many = Array.from({ length: NAMES }, (_, i) => `${longName(i)}: v`).join(', ');
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
const noteOf = (n: number): string => `${n} ${'n'.repeat(3000 + (n % 7))}`;

/** What programs in the guest do, for ever, each ending with a code other than 0 at the first thing that must not be. */
const programs = {
  lines: (name: string) => `i=0; while i=$((i+1)); do printf '%s\\n' $i >> guest/${name} || exit 3; echo $i; done`,
  directories: (name: string) =>
    `mkdir guest/${name}; i=0; while i=$((i+1)); do mkdir guest/${name}/$i || exit 3; echo $i; done`,
  /** Exclusive creation, rename and removal: what answers differently when it is done twice. */
  names: (name: string) =>
    `mkdir guest/${name}; cd guest/${name}; set -C; i=0; while i=$((i+1)); do : > a || exit 3; mv a b || exit 4; rm b || exit 5; ln -s t c || exit 6; rm c || exit 7; echo $i; done`,
  /** Replaces a file, and reads it: never empty, never mixed, never the one before. */
  replaces: (name: string) =>
    `i=0; while i=$((i+1)); do echo $i$i$i > guest/${name} || exit 3; read x < guest/${name} || exit 4; [ "$x" = $i$i$i ] || exit 5; echo $i; done`,
  /** One handle for all writes and another for reads. */
  holds: (name: string) =>
    `: > guest/${name}; exec 3>>guest/${name} 4<guest/${name}; i=0; while i=$((i+1)); do echo $i >&3 || exit 3; read x <&4 || exit 4; [ "$x" = $i ] || exit 5; echo $i; done`,
  stats: () =>
    `i=0; while i=$((i+1)); do [ -s instance/id ] || exit 3; ls -l instance guest >/dev/null || exit 4; echo $i; done`,
  lists: () => `i=0; while i=$((i+1)); do set -- many/*; [ $# = ${NAMES} ] || exit 3; echo $i; done`,
  /** The value that a program opened stays, whole, however slowly it reads and whatever comes meanwhile. */
  slow: () =>
    `i=0; while i=$((i+1)); do exec 3<instance/note; a=$(dd bs=500 count=1 <&3 2>/dev/null); sleep 0.3; b=$(cat <&3) || exit 3
     n=\${a%% *}; c="$a$b"; [ \${#c} = $((3001 + \${#n} + n % 7)) ] || { echo "\${#c} of $n" >&2; exit 4; }; exec 3<&-; echo $i; done`,
} as const;
export type Kind = keyof typeof programs;

export interface Program {
  readonly name: string;
  readonly kind: Kind;
  readonly job: GuestJob;
  hasEnded: boolean;
}

/** How many numbers a program has printed; they must be consecutive. */
export function told({ job }: Program): number {
  const numbers = job.stdoutText.split('\n').slice(0, -1);
  for (const [i, number] of numbers.entries()) assert.equal(number, String(i + 1));
  return numbers.length;
}

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
