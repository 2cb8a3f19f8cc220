/** Compiles the C programs of the bench, once for each content. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import path from 'node:path';

const cache = path.resolve('.cache/bench');

/** Path of the executable made from `source`; `flags` go behind it on the compiler's command line. */
export function compile(source: string, flags: readonly string[] = []): string {
  const hash = createHash('sha256').update(readFileSync(source)).update(flags.join('\0')).digest('hex').slice(0, 16);
  const program = path.join(cache, `${path.basename(source, '.c')}-${hash}`);
  if (existsSync(program)) return program;
  mkdirSync(cache, { recursive: true });
  const unfinished = `${program}.${process.pid}`;
  execFileSync('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', '-o', unfinished, source, ...flags], { stdio: 'inherit' });
  renameSync(unfinished, program);
  return program;
}
