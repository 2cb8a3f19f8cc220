/** Group e: writes through the API, each kept on the disk and seen by the VM's device process, against commits of SQLite alone. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { attach, withDaemon } from './host-daemon.ts';
import { compare, type Group, type GroupOptions, type Row, type Sample } from './measure.ts';

const VALUE_BYTES = 200;
const ROUND_MS = 1_000;
const VM = 'bench';
/** Concurrent clients; SQLite has one writer whatever their number. */
const clientCounts = [1, 8, 32] as const;

/** A process that answers each line with a line. */
class Asked implements AsyncDisposable {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;

  private constructor(child: ChildProcessByStdio<Writable, Readable, null>) {
    this.#child = child;
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  static async start(file: string, ...args: readonly string[]): Promise<Asked> {
    const program = path.join(import.meta.dirname, file);
    const asked = new Asked(spawn(process.execPath, [program, ...args], { stdio: ['pipe', 'pipe', 'inherit'] }));
    await asked.#next();
    return asked;
  }

  async ask(line: string): Promise<Sample> {
    this.#child.stdin.write(`${line}\n`);
    return JSON.parse(await this.#next()) as Sample;
  }

  async #next(): Promise<string> {
    const { done, value } = await this.#lines.next();
    if (done) throw new Error(`${this.#child.spawnargs.slice(1, 2).join('')} ended before it answered`);
    return value;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exit = once(this.#child, 'exit');
    this.#child.stdin.end();
    await exit;
  }
}

async function compareAll({ rounds, print }: GroupOptions, peer: Asked, ours: (clients: number) => Promise<Sample>) {
  const rows: Row[] = [];
  for (const clients of clientCounts) {
    const comparison = {
      name: `writes of ${VALUE_BYTES} bytes, ${clients} ${clients === 1 ? 'client' : 'clients'}`,
      unit: 'op/s',
      target: { atLeast: 0.5 },
      ours: () => ours(clients),
      peer: () => peer.ask(String(ROUND_MS)),
    } as const;
    // V8 compiles what it sees often.
    await comparison.ours();
    await comparison.peer();
    const row = await compare(comparison, { group: 'e', peerName: 'SQLite, one writer', rounds });
    print(`${row.name}: ${row.ratio.toFixed(2)}`);
    rows.push(row);
  }
  return rows;
}

async function run(options: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const raw = (name: string): Promise<Asked> =>
    Asked.start('peers/raw-sqlite.ts', path.join(scratch, name), String(VALUE_BYTES));
  try {
    await using peer = await raw('peer.db');
    if (options.selfTest) {
      await using second = await raw('second.db');
      return await compareAll(options, peer, () => second.ask(String(ROUND_MS)));
    }
    return await withDaemon(async (machine) => {
      await attach(machine, VM);
      const socket = path.join(machine.directory, 'run/api.sock');
      await using load = await Asked.start('api-load.ts', socket, VM, String(VALUE_BYTES));
      return await compareAll(options, peer, (clients) => load.ask(`${clients} ${ROUND_MS}`));
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

export const apiWrites: Group = { letter: 'e', title: 'writes through the API, kept before they are answered', run };
