/** Group k: metadata servers: reads of what everybody may read, and 1,000 VMs' watch streams on one process. */
import { type IncomingMessage, request } from 'node:http';
import { agentRows } from './agent-mount.ts';
import { compare, type Group, type GroupOptions, median, type Row, type Sample } from './measure.ts';
import { curlRead, MetadataServers, wrkRead } from './metadata-processes.ts';

const VMS = 1_000;
const CHANGES_PER_ROUND = 3;
const peerName = 'node:http alone';

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
  if (!selfTest) await agentRows(rounds, done);
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
