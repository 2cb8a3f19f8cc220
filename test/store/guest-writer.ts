/**
 * As `writer.ts`, in a guest: `guest-writer.ts DIRECTORY`. First it says as JSON what it found. Beside the store it appends a
 * byte to a file for each acknowledgement and never has that file synced: so much of it as is missing later was lost with
 * the guest's page cache.
 */
import { existsSync, openSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { openStores } from '../../src/store/index.ts';
import { tell } from './tell.ts';
import { foundOf, lanes, writeOn } from './writer.ts';

export interface Found {
  readonly lanes: readonly { readonly numbers: readonly number[]; readonly revisions: readonly number[] }[];
  /** Bytes that are left of the file that is not synced. */
  readonly unsynced: number;
}

if (import.meta.main) {
  const [directory] = process.argv.slice(2) as [string];
  const witness = join(directory, 'unsynced');
  const { region } = await openStores({
    directory: join(directory, 'stores'),
    keyFile: join(directory, 'key'),
    retainRevisions: 50,
  });
  const found: Found = {
    lanes: await Promise.all(Array.from({ length: lanes }, (_, lane) => foundOf(region, lane))),
    unsynced: existsSync(witness) ? statSync(witness).size : 0,
  };
  tell(JSON.stringify(found));
  const fd = openSync(witness, 'w');
  await writeOn(region, (lane, n) => {
    writeSync(fd, '.');
    tell(`${lane} ${n}`);
  });
}
