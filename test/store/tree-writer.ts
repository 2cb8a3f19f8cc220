/**
 * Changes one tree without pause until it is killed: `tree-writer.ts DIRECTORY KEYFILE LAST`. A guest appends bytes to a file,
 * eight at once, by sequences from LAST + 1 on, as a device process sends again what it has no answer for. Beside it edits put
 * the same number into three files, every fourth time too large for one transaction. Says `guest SEQUENCE` and `LANE NUMBER`
 * when that is answered.
 */
import { Buffer } from 'node:buffer';
import { openStores } from '../../src/store/index.ts';
import { type Authority, type Edit, type Mutation, type Outcome, ways } from '../../src/tree/index.ts';
import { serve } from '../host/served-store.ts';
import { app } from '../tree/keepers.ts';
import { tell } from './tell.ts';

export const lanes = 2;
export const underway = 8;
export const pathsOf = (lane: number): string[] => ['a', 'b', 'c'].map((name) => `/api/${lane}/${name}`);
/** The number of a file, which stands at its start. */
export const numberIn = (bytes: Uint8Array): number => Buffer.from(bytes).readUInt32BE();
export const numberAt = (authority: Authority, path: string): number => {
  const bytes = authority.snapshot.resolve(path)?.bytes;
  return bytes === undefined ? 0 : numberIn(bytes);
};

const valueOf = (n: number): Uint8Array => {
  const bytes = Buffer.alloc(n % 4 === 0 ? 400_000 : 20);
  bytes.writeUInt32BE(n);
  return bytes;
};

const editForEver = async (authority: Authority, lane: number): Promise<void> => {
  for (let n = numberAt(authority, pathsOf(lane)[0]!) + 1; ; n++) {
    await authority.edit(pathsOf(lane).map((path): Edit => ({ op: 'put', path, bytes: valueOf(n) })));
    tell(`${lane} ${n}`);
  }
};

/** Sequence 1 makes the file; each later one appends a byte that tells it. */
const appendForEver = async (authority: Authority, last: number): Promise<void> => {
  const commit = (mutation: Mutation, sequence: number): Promise<Outcome> =>
    new Promise((settle) => authority.commit(mutation, ways.virtiofs, 'device', sequence, settle));
  const parentIno = authority.snapshot.resolve('/guest')!.ino;
  let sequence = last;
  if (sequence === 0) {
    const make = { op: 'create', caller: app, parentIno, name: 'log', mode: 0o600, umask: 0 } as const;
    const { errno } = await commit(make, ++sequence);
    if (errno !== 0) throw new Error(`create failed with ${errno}`);
    tell(`guest ${sequence}`);
  }
  const { ino } = authority.snapshot.resolve('/guest/log')!;
  const append = async (): Promise<void> => {
    for (;;) {
      const mine = ++sequence;
      const how = { offset: 0, append: true, truncate: false, grantedAtOpen: true };
      const { errno } = await commit({ op: 'write', caller: app, ino, data: Uint8Array.of(mine), ...how }, mine);
      if (errno !== 0) throw new Error(`append ${mine} failed with ${errno}`);
      tell(`guest ${mine}`);
    }
  };
  await Promise.all(Array.from({ length: underway }, append));
};

if (import.meta.main) {
  const [directory, keyFile, last] = process.argv.slice(2) as [string, string, string];
  const { region } = await openStores({ directory, keyFile, retainRevisions: 50 });
  const { authority } = await serve(region);
  await Promise.all([
    appendForEver(authority, Number(last)),
    ...Array.from({ length: lanes }, (_, lane) => editForEver(authority, lane)),
  ]);
}
