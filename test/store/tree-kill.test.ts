import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { openStores } from '../../src/store/index.ts';
import { serve } from '../host/served-store.ts';
import { temporaryStore } from './temporary.ts';
import { lanes, numberAt, pathsOf, underway } from './tree-writer.ts';

/** Also by hand: `PORTHOLE_STORE_KILLS=200`. */
const kills = Number(process.env['PORTHOLE_STORE_KILLS'] ?? 5);

test('TreeStore keeps each answered change once, and no half of one, when its process is killed', async (t) => {
  const options = temporaryStore(t);
  let appended = 0;
  const edited = Array.from({ length: lanes }, () => 0);
  for (let kill = 0; kill < kills; kill++) {
    const writer = spawn(
      process.execPath,
      [new URL('./tree-writer.ts', import.meta.url).pathname, options.directory, options.keyFile, String(appended)],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    const exited = once(writer, 'exit');
    let toCome = 1 + Math.floor(Math.random() * 120);
    for await (const line of createInterface({ input: writer.stdout })) {
      const [who, n] = line.split(' ') as [string, string];
      if (who === 'guest') appended = Number(n);
      else edited[Number(who)] = Number(n);
      if (--toCome === 0) writer.kill('SIGKILL');
    }
    assert.deepEqual(await exited, [null, 'SIGKILL'], 'the writer ended by itself');

    await using stores = await openStores(options);
    const { authority } = await serve(stores.region);
    const log = authority.snapshot.resolve('/guest/log')?.bytes;
    const sequence = log === undefined ? 0 : log.length + 1;
    assert.ok(sequence >= appended && sequence <= appended + underway, `${sequence} appended, told ${appended}`);
    if (log !== undefined)
      assert.deepEqual(
        log,
        Uint8Array.from({ length: log.length }, (_, i) => i + 2),
        'once each, and in order',
      );
    for (let lane = 0; lane < lanes; lane++) {
      const numbers = new Set(pathsOf(lane).map((path) => numberAt(authority, path)));
      assert.equal(numbers.size, 1, `lane ${lane} is half done: ${[...numbers]}`);
      const [n] = [...numbers] as [number];
      assert.ok(n === edited[lane] || n === edited[lane]! + 1, `lane ${lane}: ${n}, told ${edited[lane]}`);
      edited[lane] = n;
    }
  }
  assert.ok(
    edited.some((n) => n >= 4),
    'no change was too large for one transaction',
  );
  t.diagnostic(`${kills} kills, ${appended} appends and ${edited.reduce((sum, n) => sum + n)} edits kept`);
});
