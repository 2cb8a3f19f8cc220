/** The watcher of one boot: `node src/qemu/watcher-main.ts CONFIG.json`. It ends with QEMU, or by SIGTERM. */
import { readFileSync } from 'node:fs';
import { Watcher, type WatcherConfig } from './watcher.ts';

const file = process.argv[2];
if (file === undefined) throw new Error('usage: watcher-main.ts CONFIG.json');
const stop = new AbortController();
process.once('SIGTERM', () => stop.abort());
try {
  await new Watcher(JSON.parse(readFileSync(file, 'utf8')) as WatcherConfig).run(stop.signal);
} catch (error) {
  if (!stop.signal.aborted) throw error;
}
// Clients that never end their side must not keep it.
process.exit(0);
