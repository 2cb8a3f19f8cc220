/** Group k: metadata servers: reads of what everybody may read, and 1,000 VMs' watch streams on one process. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { compare, type Group, type GroupOptions, median, percentile, type Row, type Sample } from './measure.ts';
import { privateKiB } from './process-costs.ts';
import { output } from './server.ts';

const VMS = 1_000;
const CHANGES_PER_ROUND = 3;
const WRK_SECONDS = 2;
const CURLS = 30;
const withinMs = 60_000;
const peerName = 'node:http alone';

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

const answerOf = (socketPath: string, url: string, headers: Record<string, string>, body?: string) =>
  new Promise<IncomingMessage>((resolve, reject) => {
    request({ socketPath, path: url, headers, method: body === undefined ? 'GET' : 'POST', agent: false }, resolve)
      .once('error', reject)
      .end(body);
  });

const textOf = async (response: IncomingMessage): Promise<string> => {
  let text = '';
  for await (const part of response.setEncoding('utf8')) text += part as string;
  return text;
};

/** As an agent does: the token, the tree, and what comes after it. */
const follow = async (socket: string): Promise<IncomingMessage> => {
  const type = { 'content-type': 'application/json' };
  const nonce = JSON.stringify({ nonce: 'n'.repeat(22) });
  const { token } = JSON.parse(await textOf(await answerOf(socket, '/porthole/v1/token', type, nonce))) as {
    readonly token: string;
  };
  const authorization = { authorization: `Bearer ${token}` };
  const tree = JSON.parse(await textOf(await answerOf(socket, '/porthole/v1/tree', authorization))) as {
    readonly revision: number;
  };
  return answerOf(socket, `/porthole/v1/watch?from=${tree.revision}`, authorization);
};

/** 1,000 streams, each of another VM. */
class Streams implements Disposable {
  readonly #servers: MetadataServers;
  readonly #streams: IncomingMessage[] = [];
  #told = 0;
  #awaited = Promise.withResolvers<void>();

  private constructor(servers: MetadataServers) {
    this.#servers = servers;
  }

  static async open(servers: MetadataServers, one: (socket: string) => Promise<IncomingMessage>): Promise<Streams> {
    const streams = new Streams(servers);
    for (let i = 0; i < VMS; i++) {
      const stream = await one(servers.socket(i));
      // Heartbeats say no more than the revision that is known.
      let revision = 0;
      stream.setEncoding('utf8').on('data', (text: string) => {
        for (const [, found] of text.matchAll(/"revision":(\d+)/g)) {
          if (Number(found) > revision && ++streams.#told === VMS) streams.#awaited.resolve();
          revision = Number(found);
        }
      });
      streams.#streams.push(stream);
    }
    return streams;
  }

  /** Microseconds from asking for a change of each tree until every stream has told of its own. */
  async change(): Promise<number> {
    this.#told = 0;
    this.#awaited = Promise.withResolvers();
    const start = performance.now();
    this.#servers.change();
    await this.#awaited.promise;
    return (performance.now() - start) * 1000;
  }

  [Symbol.dispose](): void {
    for (const stream of this.#streams) stream.destroy();
  }
}

const watch = (socket: string): Promise<IncomingMessage> => answerOf(socket, '/watch', {});

async function run({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const rows: Row[] = [];
  const done = (row: Row): void => {
    print(`${row.name}: ${row.ratio.toFixed(2)}`);
    rows.push(row);
  };
  const program = selfTest ? 'peers/plain-http.ts' : 'metadata-servers.ts';
  {
    await using ours = await MetadataServers.start(program, 1);
    await using peer = await MetadataServers.start('peers/plain-http.ts', 1);
    const url = ({ port }: MetadataServers): string => `http://127.0.0.1:${port}/nocloud/meta-data`;
    for (const [name, read] of [
      ['a public value, wrk with one connection', wrkRead],
      ['a public value, a curl process', curlRead],
    ] as const)
      done(
        await compare(
          { name, unit: 'us', ours: () => read(url(ours)), peer: () => read(url(peer)) },
          { group: 'k', peerName, rounds },
        ),
      );
  }
  await using ours = await MetadataServers.start(program, VMS);
  await using peer = await MetadataServers.start('peers/plain-http.ts', VMS);
  using ourStreams = await Streams.open(ours, selfTest ? watch : follow);
  using peerStreams = await Streams.open(peer, watch);
  const changed = async (streams: Streams): Promise<Sample> => {
    const times: number[] = [];
    for (let i = 0; i < CHANGES_PER_ROUND; i++) times.push(await streams.change());
    return { n: VMS, p50: median(times) };
  };
  done(
    await compare(
      {
        name: `a change to each of ${VMS} VMs, until all streams told`,
        unit: 'us',
        ours: () => changed(ourStreams),
        peer: () => changed(peerStreams),
      },
      { group: 'k', peerName, rounds },
    ),
  );
  const memory = async (servers: MetadataServers): Promise<Sample> => ({ n: VMS, p50: servers.privateKiB });
  done(
    await compare(
      {
        name: `memory of ${VMS} VMs' servers with a stream each`,
        unit: 'KiB',
        ours: () => memory(ours),
        peer: () => memory(peer),
      },
      { group: 'k', peerName, rounds: 1 },
    ),
  );
  return rows;
}

export const metadataServers: Group = { letter: 'k', title: 'metadata servers, against node:http alone', run };
