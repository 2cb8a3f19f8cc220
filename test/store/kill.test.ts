import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { openStores } from '../../src/store/index.ts';
import { temporaryStore } from './temporary.ts';
import { foundOf, lanes } from './writer.ts';

/** Also by hand: `PORTHOLE_STORE_KILLS=200`. */
const kills = Number(process.env['PORTHOLE_STORE_KILLS'] ?? 25);

test('openStores finds all that was acknowledged and nothing half done when its writer was killed', async (t) => {
  const options = temporaryStore(t);
  const acknowledged = Array.from({ length: lanes }, () => 0);
  for (let kill = 0; kill < kills; kill++) {
    const writer = spawn(
      process.execPath,
      [new URL('./writer.ts', import.meta.url).pathname, options.directory, options.keyFile],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const exited = once(writer, 'exit');
    // Anywhere from the first acknowledgement on, the killing itself taking a time of its own.
    let toCome = 1 + Math.floor(Math.random() * 300);
    for await (const line of createInterface({ input: writer.stdout })) {
      const [lane, n] = line.split(' ').map(Number) as [number, number];
      acknowledged[lane] = n;
      if (--toCome === 0) writer.kill('SIGKILL');
    }
    assert.deepEqual(await exited, [null, 'SIGKILL'], 'the writer ended by itself');

    await using stores = await openStores(options);
    for (let lane = 0; lane < lanes; lane++) {
      const { numbers, revisions } = await foundOf(stores.region, lane);
      assert.deepEqual([numbers.length, revisions.length], [1, 1], `lane ${lane} is half done: ${numbers}`);
      const [n] = numbers;
      // One more may be on the disk than was told.
      assert(
        n === acknowledged[lane] || n === acknowledged[lane]! + 1,
        `lane ${lane}: ${n}, told ${acknowledged[lane]}`,
      );
      acknowledged[lane] = n!;
    }
  }
  t.diagnostic(`${kills} kills, ${acknowledged.reduce((sum, n) => sum + n)} transactions kept`);
});
