/** What a C program over the kernel's headers says, for tests of our tables. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

/** Values of C expressions (unsigned, 64 bits), each under its name, with these headers included. */
export function valuesInC(headers: readonly string[], expressions: ReadonlyMap<string, string>): Map<string, bigint> {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-abi-'));
  try {
    const includes = ['stdio.h', 'stddef.h', 'stdint.h', ...headers].map((header) => `#include <${header}>`).join('\n');
    const lines = [...expressions].map(
      ([name, expression]) => `printf("${name} %llu\\n", (unsigned long long)(${expression}));`,
    );
    writeFileSync(
      path.join(directory, 'abi.c'),
      `#define _GNU_SOURCE\n${includes}\nint main(void) {\n${lines.join('\n')}\nreturn 0; }\n`,
    );
    const program = path.join(directory, 'abi');
    const compiled = spawnSync('cc', ['-o', program, path.join(directory, 'abi.c')], { encoding: 'utf8' });
    assert.equal(compiled.status, 0, compiled.error?.message ?? compiled.stderr);
    const output = spawnSync(program, { encoding: 'utf8' }).stdout;
    return new Map(
      output
        .trim()
        .split('\n')
        .map((line) => [line.slice(0, line.lastIndexOf(' ')), BigInt(line.slice(line.lastIndexOf(' ') + 1))]),
    );
  } finally {
    rmSync(directory, { recursive: true });
  }
}
