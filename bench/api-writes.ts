/** Group e: writes through the API, each kept on the disk and seen by the VM's device process, against commits of SQLite alone. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { Client } from '../src/cluster/client/index.ts';
import { until } from '../test/until.ts';
import { compare, type Group, type GroupOptions, type Row, type Sample } from './measure.ts';
import { Server } from './server.ts';

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

/** `porthole up` with a VM that has a device process, as one that others start has. */
const startUp = async (directory: string): Promise<AsyncDisposable> => {
  const [state, run] = [path.join(directory, 'state'), path.join(directory, 'run')];
  const socketPath = path.join(run, 'api.sock');
  const server = await Server.start('porthole up', ['./porthole', 'up', '--state', state, '--run', run], () =>
    existsSync(socketPath),
  );
  const client = new Client({ socketPath });
  try {
    await client.call('createVm', { body: { name: VM, kind: 'attached' } });
    const status = async (): Promise<string> => (await client.call('getVm', { params: { name: VM } })).status;
    await until('the VM to be served', async () => (await status()) === 'running', 60_000);
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
  return {
    [Symbol.asyncDispose]: async () => {
      await client.call('deleteVm', { params: { name: VM } });
      await until('the VM to be gone', async () => (await client.call('listVms', {})).vms.length === 0, 30_000);
      client[Symbol.dispose]();
      await server[Symbol.asyncDispose]();
    },
  };
};

async function run({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  chmodSync(scratch, 0o711);
  const rows: Row[] = [];
  const raw = (name: string): Promise<Asked> =>
    Asked.start('peers/raw-sqlite.ts', path.join(scratch, name), String(VALUE_BYTES));
  try {
    await using peer = await raw('peer.db');
    await using second = selfTest ? await raw('second.db') : undefined;
    await using _up = selfTest ? undefined : await startUp(scratch);
    await using load = selfTest
      ? undefined
      : await Asked.start('api-load.ts', path.join(scratch, 'run/api.sock'), VM, String(VALUE_BYTES));
    for (const clients of clientCounts) {
      const comparison = {
        name: `writes of ${VALUE_BYTES} bytes, ${clients} ${clients === 1 ? 'client' : 'clients'}`,
        unit: 'op/s',
        target: { atLeast: 0.5 },
        ours: () => (second === undefined ? load!.ask(`${clients} ${ROUND_MS}`) : second.ask(String(ROUND_MS))),
        peer: () => peer.ask(String(ROUND_MS)),
      } as const;
      // V8 compiles what it sees often.
      await comparison.ours();
      await comparison.peer();
      const row = await compare(comparison, { group: 'e', peerName: 'SQLite, one writer', rounds });
      print(`${row.name}: ${row.ratio.toFixed(2)}`);
      rows.push(row);
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return rows;
}

export const apiWrites: Group = { letter: 'e', title: 'writes through the API, kept before they are answered', run };
