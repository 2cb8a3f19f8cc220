/**
 * Commits to SQLite one by one, as durable as Porthole's store: `raw-sqlite.ts FILE BYTES`. For each line with a number of
 * milliseconds on standard input it commits for so long, and prints what a `Sample` has.
 */
import { Buffer } from 'node:buffer';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';

const [file, bytes] = process.argv.slice(2) as [string, string];
using database = new DatabaseSync(file);
database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (k TEXT PRIMARY KEY, v BLOB)');
const put = database.prepare('INSERT OR REPLACE INTO t VALUES (?, ?)');
const value = Buffer.alloc(Number(bytes));
const keys = Array.from({ length: 32 }, (_, i) => `k${i}`);
let n = 0;
console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const first = n;
  const start = performance.now();
  const end = start + Number(line);
  let now = start;
  while (now < end) {
    value.writeUInt32LE(n);
    put.run(keys[n++ % keys.length]!, value);
    now = performance.now();
  }
  console.log(JSON.stringify({ n: n - first, p50: ((n - first) * 1000) / (now - start) }));
}
