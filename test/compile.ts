/** Compiles the C programs of tests and of the bench, once for each content. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import path from 'node:path';

const cache = path.join(import.meta.dirname, '../.cache/programs');

/**
 * Path of the executable made from `source`, alone in a directory so that a guest can be given that; `flags` go behind the
 * source on the compiler's command line.
 */
export function compile(source: string, flags: readonly string[] = []): string {
  const hash = createHash('sha256').update(readFileSync(source)).update(flags.join('\0')).digest('hex').slice(0, 16);
  const directory = path.join(cache, hash);
  const program = path.join(directory, path.basename(source, '.c'));
  if (existsSync(program)) return program;
  mkdirSync(directory, { recursive: true });
  const unfinished = `${program}.${process.pid}`;
  execFileSync('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', '-o', unfinished, source, ...flags], { stdio: 'inherit' });
  renameSync(unfinished, program);
  return program;
}
