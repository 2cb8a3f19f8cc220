/** Rows of group k: the agent's mount against the least that a metadata server over HTTP can do. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pollOne } from '../src/sys/index.ts';
import { compile } from '../test/compile.ts';
import { builtExecutable } from '../test/ships/built.ts';
import { DRIVER, driverSample } from './driver.ts';
import { compare, median, percentile, type Row, type Sample } from './measure.ts';
import { curlRead, MetadataServers, wrkRead } from './metadata-processes.ts';
import { isMounted } from './ours.ts';
import { privateKiB } from './process-costs.ts';
import { output, Server } from './server.ts';

const READS = 2_000;
const WAKES = 20;
const STARTS = 5;
/** Shown beside what was asked for (poll(2)): a newer version exists. */
const POLLPRI = 2;
const LIMIT_MS = 30_000;

const start = (agent: string, socket: string, mount: string): Promise<Server> => {
  mkdirSync(mount, { recursive: true });
  return Server.start('porthole-agent', [agent, '--server', `unix:${socket}`, '--mount', mount], () =>
    isMounted(mount),
  );
};

const sampleOf = (times: number[]): Sample => {
  times.sort((a, b) => a - b);
  return { n: times.length, p50: median(times), p99: percentile(times, 0.99) };
};

/** From a change outside until a program that waits in poll(2) for a file goes on. */
const wake = async (servers: MetadataServers, file: string): Promise<Sample> => {
  const times: number[] = [];
  for (let i = 0; i < WAKES; i++) {
    const fd = openSync(file, 'r');
    try {
      readSync(fd, Buffer.alloc(64));
      const before = performance.now();
      servers.change();
      const events = pollOne(fd, POLLPRI, LIMIT_MS);
      if ((events & POLLPRI) === 0) throw new Error(`poll(2) of "${file}" said ${events}`);
      times.push((performance.now() - before) * 1000);
    } finally {
      closeSync(fd);
    }
  }
  return sampleOf(times);
};

/** Until a line of a stream is here. */
const line = async (servers: MetadataServers): Promise<Sample> => {
  const asked = request({ socketPath: servers.socket(0), path: '/watch', agent: false }).end();
  const [stream] = (await once(asked, 'response')) as [IncomingMessage];
  const times: number[] = [];
  for (let i = 0; i < WAKES; i++) {
    const before = performance.now();
    servers.change();
    await once(stream, 'data');
    times.push((performance.now() - before) * 1000);
  }
  stream.destroy();
  return sampleOf(times);
};

const untilReady = async (starts: () => Promise<Server>): Promise<Sample> => {
  const times: number[] = [];
  for (let i = 0; i < STARTS; i++) {
    const before = performance.now();
    await using _ = await starts();
    times.push((performance.now() - before) * 1000);
  }
  return sampleOf(times);
};

/** A process of Node that does nothing but be there. */
const bareNode = async (): Promise<{ readonly us: number; readonly kib: number }> => {
  const before = performance.now();
  const child = spawn(process.execPath, ['-e', 'console.log(); setInterval(() => {}, 1e6)']);
  await once(child.stdout, 'data');
  const us = (performance.now() - before) * 1000;
  const kib = privateKiB(child.pid!);
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
  return { us, kib };
};

/** `done` is told of each row. */
export const agentRows = async (rounds: number, done: (row: Row) => void): Promise<void> => {
  const agent = path.join(builtExecutable().directory, 'porthole-agent');
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const mount = path.join(scratch, 'mnt');
  const driver = compile(DRIVER);
  const row = async (
    name: string,
    unit: 'us' | 'KiB',
    peerName: string,
    ours: () => Promise<Sample>,
    peer: () => Promise<Sample>,
    atMost?: number,
  ): Promise<void> =>
    done(
      await compare(
        { name, unit, ours, peer, ...(atMost !== undefined && { target: { atMost } }) },
        { group: 'k', peerName, rounds },
      ),
    );
  try {
    await using servers = await MetadataServers.start('metadata-servers.ts', 1);
    await using plain = await MetadataServers.start('peers/plain-http.ts', 1);
    const url = `http://127.0.0.1:${plain.port}/nocloud/meta-data`;
    const read = async (name: string): Promise<Sample> =>
      driverSample(await output(driver, ['open', String(READS), path.join(mount, name)]));
    const open = (): Promise<Sample> => read('instance/id');
    {
      await using _ = await start(agent, servers.socket(0), mount);
      const wrk = 'node:http alone, wrk with one connection';
      await row('open+read+close of a public value by the agent', 'us', wrk, open, () => wrkRead(url), 1 / 8);
      await row('the same', 'us', 'node:http alone, a curl process', open, () => curlRead(url), 1 / 300);
      await row(
        'open+read+close of a secret by the agent',
        'us',
        wrk,
        () => read('secrets/key'),
        () => wrkRead(url),
      );
      await row(
        'from a change outside until poll(2) in the guest wakes',
        'us',
        'a line of an HTTP stream',
        () => wake(servers, path.join(mount, 'instance/value')),
        () => line(plain),
      );
    }
    const node = 'node -e 0';
    await row(
      'the agent’s start, until it is mounted',
      'us',
      node,
      () => untilReady(() => start(agent, servers.socket(0), mount)),
      async () => ({ n: 1, p50: (await bareNode()).us }),
    );
    await row(
      'memory of the agent alone, its file’s pages too',
      'KiB',
      node,
      async () => {
        await using running = await start(agent, servers.socket(0), mount);
        return { n: 1, p50: privateKiB(running.pid) };
      },
      async () => ({ n: 1, p50: (await bareNode()).kib }),
    );
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
};
