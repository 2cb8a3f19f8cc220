/**
 * Commits without pause until it is killed: `writer.ts DIRECTORY KEYFILE`. Each lane puts the same number under five
 * keys in one transaction, and says `LANE NUMBER` once that is acknowledged.
 */
import { Buffer } from 'node:buffer';
import { writeSync } from 'node:fs';
import { openStores } from '../../src/store/index.ts';

export const lanes = 6;
export const keysOfLane = (lane: number): string[] => Array.from({ length: 5 }, (_, i) => `lane/${lane}/${i}`);

if (import.meta.main) {
  const [directory, keyFile] = process.argv.slice(2) as [string, string];
  const { region } = await openStores({ directory, keyFile, retainRevisions: 50 });
  await Promise.all(
    Array.from({ length: lanes }, async (_, lane) => {
      const found = await region.get(keysOfLane(lane)[0]!);
      for (let n = found ? Number(Buffer.from(found.value).toString()) + 1 : 1; ; n++) {
        const value = Buffer.from(`${n}`);
        await region.commit({ operations: keysOfLane(lane).map((key) => ({ type: 'put', key, value })) });
        writeSync(1, `${lane} ${n}\n`);
      }
    }),
  );
}
