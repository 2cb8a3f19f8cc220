/** Group b: programs in a guest, over virtiofs, against Debian's C virtiofsd. All devices are in the same guest. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Guest } from '../images/tiny/guest.ts';
import { driverSample } from './driver.ts';
import { compare, type Group, type GroupOptions, type Row, type Sample, type Target } from './measure.ts';
import { fileNames, startOurs, startVirtiofsd } from './ours.ts';

const OPERATIONS_PER_ROUND = 500;
const caches = ['auto', 'none'] as const;
type Cache = (typeof caches)[number];

interface Case {
  readonly name: string;
  readonly operation: 'stat' | 'open' | 'pread';
  readonly file: string;
  /** The peer's cache option: each is compared with what it would be replaced by. */
  readonly peer: Cache;
  readonly target?: Target;
}

const cases: readonly Case[] = [
  { name: 'stat, cached', operation: 'stat', file: fileNames.static, peer: 'auto', target: { atMost: 1.1 } },
  {
    name: 'open+read+close, unchanged, world-readable',
    operation: 'open',
    file: fileNames.static,
    peer: 'auto',
    target: { atMost: 0.6 },
  },
  { name: 'open+read+close, secret', operation: 'open', file: fileNames.direct, peer: 'none', target: { atMost: 1.1 } },
  { name: 'stat, secret', operation: 'stat', file: fileNames.direct, peer: 'none' },
  { name: 'pread, secret', operation: 'pread', file: fileNames.direct, peer: 'none' },
];

async function time(guest: Guest, { operation, file }: Case, tag: string): Promise<Sample> {
  return driverSample(await guest.sh(`bench-fs ${operation} ${OPERATIONS_PER_ROUND} /mnt/${tag}/${file}`));
}

async function run({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const socket = (tag: string): string => path.join(scratch, `${tag}.sock`);
  const peerTag = (cache: Cache): string => `peer-${cache}`;
  const oursTag = (cache: Cache): string => (selfTest ? `second-${cache}` : 'ours');
  const rows: Row[] = [];
  try {
    await using servers = new AsyncDisposableStack();
    const tags: string[] = [];
    const virtiofsd = async (tag: string, cache: Cache): Promise<void> => {
      servers.use(await startVirtiofsd(path.join(scratch, tag), socket(tag), cache));
      tags.push(tag);
    };
    for (const cache of caches) {
      await virtiofsd(peerTag(cache), cache);
      if (selfTest) await virtiofsd(oursTag(cache), cache);
    }
    if (!selfTest) {
      servers.use(await startOurs(scratch, { socket: socket('ours') }));
      tags.push('ours');
    }
    await using guest = await Guest.start({ virtiofs: tags.map((tag) => ({ tag, socket: socket(tag) })) });
    for (const tag of tags) await guest.mount(tag, `/mnt/${tag}`);
    for (const one of cases) {
      const row = await compare(
        {
          name: one.name,
          unit: 'us',
          target: one.target,
          ours: () => time(guest, one, oursTag(one.peer)),
          peer: () => time(guest, one, peerTag(one.peer)),
        },
        { group: 'b', peerName: `virtiofsd, C, cache=${one.peer}`, rounds },
      );
      print(`${row.name}: ${row.ratio.toFixed(2)}`);
      rows.push(row);
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return rows;
}

export const inGuest: Group = { letter: 'b', title: 'programs in a guest, against virtiofsd in C', run };
