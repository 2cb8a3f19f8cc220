import assert from 'node:assert/strict';
import { test } from 'node:test';
import { valuesInC } from '../../test/abi/compile.ts';
import { fieldOf } from '../../test/fuse/fields.ts';
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

test("struct tables have the sizes and offsets of the kernel's header", () => {
  const expected = new Map<string, bigint>();
  const expressions = new Map<string, string>();
  const fact = (name: string, value: number | bigint, expression: string) => {
    expected.set(name, BigInt(value));
    expressions.set(name, expression);
  };
  for (const [name, table] of Object.entries(abi.structs)) {
    if (newer.has(name)) continue;
    fact(name, table.sizeBytes, `sizeof(struct ${name})`);
    for (const field of table.fields) {
      const { offset } = fieldOf(table, field);
      fact(`${name}.${field}`, offset, `offsetof(struct ${name}, ${snake(field)})`);
    }
  }
  const constant = (name: string, value: number | bigint) =>
    fact(name, value, name === 'FUSE_INIT_RESERVED' ? '1u<<31' : name);
  for (const { name, opcode } of operations) if (!newerOperations.has(name)) constant(`FUSE_${name}`, opcode);
  for (const { name, bit } of initFlags) if (!newerFlags.has(name)) constant(`FUSE_${name}`, 1n << BigInt(bit));
  for (const [name, value] of Object.entries(constants)) if (name !== 'FUSE_INT_REQ_BIT') constant(name, value);
  assert.ok(expected.size > 400, `only ${expected.size} facts to compare`);
  assert.deepEqual(valuesInC(['poll.h', 'linux/fuse.h'], expressions), expected);
});
