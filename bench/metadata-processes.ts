/** Metadata servers and their peer as processes, and what asks them over HTTP. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { median, percentile, type Sample } from './measure.ts';
import { privateKiB } from './process-costs.ts';
import { output } from './server.ts';

const WRK_SECONDS = 2;
const CURLS = 30;
const withinMs = 60_000;

/** Servers in a process of their own, the peer's or ours, each with a socket. */
export class MetadataServers implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #directory: string;
  /** The first one's, on the loopback. */
  readonly port: number;

  private constructor(child: ChildProcess, directory: string, port: number) {
    this.#child = child;
    this.#directory = directory;
    this.port = port;
  }

  static async start(program: 'metadata-servers.ts' | 'peers/plain-http.ts', count: number): Promise<MetadataServers> {
    const directory = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
    const child = fork(path.join(import.meta.dirname, program), [directory, String(count)]);
    const [{ port }] = (await once(child, 'message', { signal: AbortSignal.timeout(withinMs) })) as [{ port: number }];
    return new MetadataServers(child, directory, port);
  }

  socket(index: number): string {
    return path.join(this.#directory, `${index}.sock`);
  }

  get privateKiB(): number {
    return privateKiB(this.#child.pid!);
  }

  change(): void {
    this.#child.send('change');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** One connection that is kept alive, by wrk. Microseconds. */
export const wrkRead = async (url: string): Promise<Sample> => {
  const said = await output('wrk', ['-t1', '-c1', `-d${WRK_SECONDS}s`, '--latency', url]);
  const of = (share: number): number => {
    const [, value, unit] = new RegExp(`^ +${share}% +([\\d.]+)(us|ms|s)$`, 'm').exec(said) ?? [];
    if (unit === undefined) throw new Error(`wrk said no time of ${share}%:\n${said}`);
    return Number(value) * { us: 1, ms: 1e3, s: 1e6 }[unit as 'us' | 'ms' | 's'];
  };
  if (/Non-2xx/.test(said)) throw new Error(`wrk was refused:\n${said}`);
  return { n: Number(/(\d+) requests in/.exec(said)![1]), p50: of(50), p99: of(99) };
};

/** A process for each read. Microseconds. */
export const curlRead = async (url: string): Promise<Sample> => {
  const times: number[] = [];
  for (let i = 0; i < CURLS; i++) {
    const start = performance.now();
    await output('curl', ['--silent', '--fail', url]);
    times.push((performance.now() - start) * 1000);
  }
  times.sort((a, b) => a - b);
  return { n: CURLS, p50: median(times), p99: percentile(times, 0.99) };
};
