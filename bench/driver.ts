/** The program that times file operations, the same on this machine and in guests. */
import type { Sample } from './measure.ts';

/** Its source; in a guest it is `bench-fs` on the PATH. */
export const DRIVER = 'images/tiny/probe/bench-fs.c';

/** Reads the line of JSON that it prints: nanoseconds to microseconds. */
export function driverSample(line: string): Sample {
  const { n, p50, p99 } = JSON.parse(line) as { n: number; p50: number; p99: number };
  return { n, p50: p50 / 1000, p99: p99 / 1000 };
}
