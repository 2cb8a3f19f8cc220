/**
 * Commits without pause until it is killed: `writer.ts DIRECTORY KEYFILE`. Each lane puts the same number under five
 * keys in one transaction, and says `LANE NUMBER` once that is acknowledged.
 */
import { Buffer } from 'node:buffer';
import { openStores, type Store } from '../../src/store/index.ts';
import { tell } from './tell.ts';

export const lanes = 6;
const keysOfLane = (lane: number): string[] => Array.from({ length: 5 }, (_, i) => `lane/${lane}/${i}`);

/** What is under a lane's keys: one number and one revision, unless a transaction was half done. Nothing is the number 0. */
export const foundOf = async (region: Store, lane: number): Promise<{ numbers: number[]; revisions: number[] }> => {
  const numbers = new Set<number>();
  const revisions = new Set<number>();
  for (const key of keysOfLane(lane)) {
    const entry = await region.get(key);
    numbers.add(entry ? Number(Buffer.from(entry.value).toString()) : 0);
    revisions.add(entry?.modRevision ?? 0);
  }
  return { numbers: [...numbers], revisions: [...revisions] };
};

export const writeOn = async (region: Store, told: (lane: number, n: number) => void): Promise<never> => {
  const write = async (lane: number): Promise<never> => {
    const { numbers } = await foundOf(region, lane);
    for (let n = numbers[0]! + 1; ; n++) {
      const value = Buffer.from(`${n}`);
      await region.commit({ operations: keysOfLane(lane).map((key) => ({ type: 'put', key, value })) });
      told(lane, n);
    }
  };
  return (await Promise.all(Array.from({ length: lanes }, (_, lane) => write(lane))))[0]!;
};

if (import.meta.main) {
  const [directory, keyFile] = process.argv.slice(2) as [string, string];
  const { region } = await openStores({ directory, keyFile, retainRevisions: 50 });
  await writeOn(region, (lane, n) => tell(`${lane} ${n}`));
}
