import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import type { Field } from '../wire/index.ts';
import * as abi from './abi.ts';
import * as constants from './constants.ts';
import { initFlags } from './init-flags.ts';
import { operations } from './operations.ts';

/** Newer than Debian 12's header. */
const newer = new Set(['fuse_sx_time', 'fuse_statx_in', 'fuse_notify_prune_out']);
const newerFlags = new Set([
  'CREATE_SUPP_GROUP',
  'DIRECT_IO_ALLOW_MMAP',
  'PASSTHROUGH',
  'NO_EXPORT_SUPPORT',
  'HAS_RESEND',
  'ALLOW_IDMAP',
  'OVER_IO_URING',
  'REQUEST_TIMEOUT',
]);
const newerOperations = new Set(['STATX', 'COPY_FILE_RANGE_64']);

const snake = (name: string) => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

function compileAndRun(source: string): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-abi-'));
  try {
    writeFileSync(path.join(directory, 'abi.c'), source);
    const program = path.join(directory, 'abi');
    const compiled = spawnSync('cc', ['-o', program, path.join(directory, 'abi.c')], { encoding: 'utf8' });
    assert.equal(compiled.status, 0, compiled.error?.message ?? compiled.stderr);
    return spawnSync(program, { encoding: 'utf8' }).stdout;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test("struct tables have the sizes and offsets of the kernel's header", () => {
  const expected: string[] = [];
  const lines: string[] = [];
  for (const [name, table] of Object.entries(abi.structs)) {
    if (newer.has(name)) continue;
    expected.push(`${name} ${table.sizeBytes}`);
    lines.push(`printf("${name} %zu\\n", sizeof(struct ${name}));`);
    for (const field of table.fields) {
      const { offset } = (table as unknown as Readonly<Record<string, Field>>)[field]!;
      expected.push(`${name}.${field} ${offset}`);
      lines.push(`printf("${name}.${field} %zu\\n", offsetof(struct ${name}, ${snake(field)}));`);
    }
  }
  const constant = (name: string, value: number | bigint) => {
    expected.push(`${name} ${value}`);
    lines.push(`printf("${name} %llu\\n", (unsigned long long)(${name === 'FUSE_INIT_RESERVED' ? '1u<<31' : name}));`);
  };
  for (const { name, opcode } of operations) if (!newerOperations.has(name)) constant(`FUSE_${name}`, opcode);
  for (const { name, bit } of initFlags) if (!newerFlags.has(name)) constant(`FUSE_${name}`, 1n << BigInt(bit));
  for (const [name, value] of Object.entries(constants))
    if (name !== 'FUSE_INT_REQ_BIT' && !name.startsWith('POLL')) constant(name, value);
  for (const [name, value] of Object.entries(constants)) if (name.startsWith('POLL')) constant(name, value);
  const program = `#define _GNU_SOURCE\n#include <stdio.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <poll.h>\n#include <linux/fuse.h>\nint main(void) {\n${lines.join('\n')}\nreturn 0; }\n`;
  assert.ok(expected.length > 400, `only ${expected.length} facts to compare`);
  assert.deepEqual(compileAndRun(program).trim().split('\n'), expected);
});
