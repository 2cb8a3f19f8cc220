/** Groups f, g and h: what `porthole up` costs: a write that a guest sees, the start of a VM, many VMs at once. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Guest } from '../images/tiny/guest.ts';
import { until } from '../test/until.ts';
import { UpMachine } from '../test/up/machine.ts';
import { virtiofsdProgram } from '../test/virtiofsd.ts';
import { compare, type Group, type GroupOptions, median, percentile, type Row, type Sample } from './measure.ts';
import { cpuMs, privateKiB } from './process-costs.ts';
import { family, Server } from './server.ts';

const spec = 'porthole: 1\nmetadata: { app: { value: "0" } }\npolicy: [{ path: /app/value, mode: "0444" }]\n';

/** A daemon as a process of its own, ended with all it started when `use` is over. */
export async function withDaemon(use: (machine: UpMachine) => Promise<Row[]>): Promise<Row[]> {
  const atEnd: (() => unknown)[] = [];
  const machine = new UpMachine({ after: (end) => atEnd.push(end as () => unknown) });
  try {
    await machine.spawn();
    return await use(machine);
  } finally {
    for (const end of atEnd) await end();
  }
}

/** Makes a VM that is started elsewhere; gives the socket of its device. */
export async function attach({ client }: UpMachine, name: string): Promise<string> {
  await client.call('createVm', { body: { name, kind: 'attached', spec } });
  await until(
    `${name} to be served`,
    async () => (await client.call('getVm', { params: { name } })).status === 'running',
    120_000,
  );
  return (await client.call('getAttachment', { params: { name } })).socketPath;
}

const sampleOf = (times: readonly number[]): Sample => {
  const ascending = times.toSorted((a, b) => a - b);
  return { n: times.length, p50: median(ascending), p99: percentile(ascending, 0.99) };
};

// --- f ---

const WRITES = 1_000;

/** As a careful program replaces a file: written beside it, flushed, renamed over it. */
function replaceFile(file: string, text: string): void {
  const temporary = `${file}.new`;
  const fd = openSync(temporary, 'w', 0o644);
  writeSync(fd, text);
  fsyncSync(fd);
  closeSync(fd);
  renameSync(temporary, file);
}

async function writeThenRead({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const shared = path.join(scratch, 'shared');
  const socket = path.join(scratch, 'peer.sock');
  mkdirSync(shared);
  try {
    return await withDaemon(async (machine) => {
      const { client } = machine;
      await using peers = new AsyncDisposableStack();
      peers.use(
        await Server.start(
          'virtiofsd',
          [virtiofsdProgram, `--socket-path=${socket}`, '-o', `source=${shared}`, '-o', 'cache=none'],
          () => readFileSync('/proc/net/unix', 'utf8').includes(socket),
        ),
      );
      const ours = { tag: 'ours', socket: await attach(machine, 'one') };
      await using guest = await Guest.start({ virtiofs: [ours, { tag: 'peer', socket }] });
      for (const tag of ['ours', 'peer']) await guest.mount(tag, `/mnt/${tag}`);
      let number = 0;
      const late = { ours: 0, peer: 0 };
      const perRound = Math.ceil(WRITES / rounds);
      const side = async (name: 'ours' | 'peer', file: string, write: (text: string) => unknown): Promise<Sample> => {
        const times: number[] = [];
        for (let i = 0; i < perRound; i++) {
          const text = String(++number);
          const start = performance.now();
          await write(text);
          times.push((performance.now() - start) * 1000);
          if ((await guest.sh(`cat ${file}`)).trim() !== text) late[name]++;
        }
        return sampleOf(times);
      };
      const throughApi = (text: string): Promise<unknown> =>
        client.call('writeMetadata', { params: { name: 'one', path: 'app/value' }, body: Buffer.from(text) });
      const throughFile = (text: string): void => replaceFile(path.join(shared, 'value'), text);
      const written = await compare(
        {
          name: 'a write, until the guest sees it',
          unit: 'us',
          ours: () =>
            selfTest ? side('ours', '/mnt/peer/value', throughFile) : side('ours', '/mnt/ours/app/value', throughApi),
          peer: () => side('peer', '/mnt/peer/value', throughFile),
        },
        { group: 'f', peerName: 'virtiofsd, C, cache=none; fsync and rename', rounds },
      );
      const reads = await compare(
        {
          name: 'late reads in the guest',
          unit: 'reads',
          target: { atMost: 1 },
          ours: async () => ({ n: perRound * rounds, p50: late.ours }),
          peer: async () => ({ n: perRound * rounds, p50: late.peer }),
        },
        { group: 'f', peerName: written.peerName, rounds: 1 },
      );
      for (const row of [written, reads]) print(`${row.name}: ${row.ratio.toFixed(2)}`);
      return [written, reads];
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

// --- g ---

const ready = /tiny: ready[^]*# /;

/** Arguments of a VM of ours without what Porthole adds: its device, and waiting to be let go. */
function withoutPorthole(args: readonly string[], directory: string): string[] {
  const kept: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const [word, value] = [args[i]!, args[i + 1] ?? ''];
    if (word === '-S') continue;
    const isDevice = word === '-device' && value.startsWith('vhost-user-fs');
    const chardev = word === '-chardev' ? /(?:^|,)id=([^,]+)/.exec(value)?.[1] : undefined;
    if (isDevice || /fs|metadata/.test(chardev ?? '')) i++;
    else if (chardev === 'serial') {
      kept.push(word, 'stdio,id=serial,signal=off');
      i++;
    } else if (chardev !== undefined) {
      kept.push(word, value.replace(/path=[^,]+/, `path=${path.join(directory, chardev)}`));
      i++;
    } else kept.push(word);
  }
  return kept;
}

async function bootWithout([program, ...args]: readonly string[], directory: string): Promise<number> {
  const start = performance.now();
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', program!, ...args], {
    cwd: directory,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece;
  });
  const closed = once(child, 'close');
  try {
    await until('the guest', () => ready.test(text), 60_000);
    child.stdin.write("cat /proc/sys/kernel/hostname; echo don''e\n");
    await until('the read', () => /tiny\s+done/.test(text), 60_000);
    return (performance.now() - start) * 1000;
  } finally {
    child.kill('SIGKILL');
    await closed;
  }
}

async function createToRead({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  try {
    return await withDaemon(async (machine) => {
      const { client } = machine;
      await machine.tinyImage();
      const create = async (name: string): Promise<number> => {
        const start = performance.now();
        await client.call('createVm', { body: { name, type: 'nano', image: { name: 'tiny' }, spec } });
        await machine.untilReady(name);
        const read = await machine.type(name, 'cat /run/metadata/app/value');
        if (read.trim() !== '0') throw new Error(`the guest read "${read}"`);
        return (performance.now() - start) * 1000;
      };
      await create('first');
      const words = readFileSync(`/proc/${machine.qemuPid('first')!}/cmdline`, 'utf8')
        .split('\0')
        .slice(0, -1);
      const remove = async (name: string): Promise<void> => {
        await client.call('deleteVm', { params: { name } });
        await until('the VM to be gone', async () => (await client.call('listVms', {})).vms.length === 0, 60_000);
      };
      await remove('first');
      const plain = withoutPorthole(words, scratch);
      const peer = async (): Promise<Sample> => ({ n: 1, p50: await bootWithout(plain, scratch) });
      let number = 0;
      const row = await compare(
        {
          name: 'from vm create to the first read in the guest',
          unit: 'us',
          ours: async () => {
            if (selfTest) return peer();
            const name = `vm-${++number}`;
            const sample = { n: 1, p50: await create(name) };
            await remove(name);
            return sample;
          },
          peer,
        },
        { group: 'g', peerName: 'QEMU with the same arguments, without Porthole', rounds },
      );
      print(`${row.name}: ${row.ratio.toFixed(2)}`);
      return [row];
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

// --- h ---

const VMS = 50;
const SECONDS = 20;

async function manyVms({ print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const shared = Array.from({ length: VMS }, (_, i) => path.join(scratch, String(i)));
  for (const directory of shared) mkdirSync(directory);
  try {
    return await withDaemon(async (machine) => {
      const names = shared.map((_, i) => `vm-${i}`);
      for (const name of names) await attach(machine, name);
      await using peers = new AsyncDisposableStack();
      const back: Server[] = [];
      for (const directory of shared) {
        const socket = `${directory}.sock`;
        const words: [string, ...string[]] = [virtiofsdProgram, `--socket-path=${socket}`, '-o', `source=${directory}`];
        back.push(
          peers.use(
            await Server.start('virtiofsd', words, () => readFileSync('/proc/net/unix', 'utf8').includes(socket)),
          ),
        );
      }
      let number = 0;
      /** One change of each VM a second; what `pids` and their threads had of the CPUs meanwhile. */
      const change = async (pids: readonly number[], write: (vm: number, text: string) => unknown): Promise<Sample> => {
        const before = pids.reduce((sum, pid) => sum + cpuMs(pid), 0);
        for (let second = 0; second < SECONDS; second++) {
          const next = delay(1000);
          const text = String(++number);
          await Promise.all(names.map((_, vm) => write(vm, text)));
          await next;
        }
        return { n: VMS * SECONDS, p50: pids.reduce((sum, pid) => sum + cpuMs(pid), 0) - before };
      };
      const ourPids = machine.pids;
      const peerPids = back.flatMap((server) => family(server.pid));
      const memory = async (pids: readonly number[]): Promise<Sample> => ({
        n: VMS,
        p50: pids.reduce((sum, pid) => sum + privateKiB(pid), 0),
      });
      const rows: Row[] = [];
      for (const comparison of [
        {
          name: `CPU over ${SECONDS} s, ${VMS} VMs, one change of each a second`,
          unit: 'ms CPU',
          ours: () =>
            change(ourPids, (vm, text) =>
              machine.client.call('writeMetadata', {
                params: { name: names[vm]!, path: 'app/value' },
                body: Buffer.from(text),
              }),
            ),
          peer: () => change(peerPids, (vm, text) => replaceFile(path.join(shared[vm]!, 'value'), text)),
        },
        {
          name: `private memory, ${VMS} VMs and what serves them`,
          unit: 'KiB',
          ours: () => memory(ourPids),
          peer: () => memory(peerPids),
        },
      ] as const) {
        const row = await compare(comparison, { group: 'h', peerName: `${VMS} virtiofsd, C`, rounds: 1 });
        print(`${row.name}: ${row.ratio.toFixed(2)}`);
        rows.push(row);
      }
      return rows;
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

export const hostDaemon: readonly Group[] = [
  { letter: 'f', title: 'a write outside, followed by a read in the guest', run: writeThenRead },
  { letter: 'g', title: 'from vm create to the first read', run: createToRead },
  { letter: 'h', title: `${VMS} VMs on one daemon`, run: manyVms },
];
