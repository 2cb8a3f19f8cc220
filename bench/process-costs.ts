/** What the kernel says a process costs. */
import { readdirSync, readFileSync } from 'node:fs';

/** Memory that would be free without the process. */
export function privateKiB(pid: number): number {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  let sum = 0;
  for (const [, kib] of text.matchAll(/^Private_(?:Clean|Dirty): +(\d+) kB$/gm)) sum += Number(kib);
  return sum;
}

/** The same without pages of files, which can be read again: of an executable that no other process runs, these are many. */
export function ownKiB(pid: number): number {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Private_Dirty: +(\d+) kB$/m.exec(text)![1]);
}

/** Milliseconds on a CPU so far, of all threads. */
export function cpuMs(pid: number): number {
  let ns = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`))
    ns += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  return ns / 1e6;
}
