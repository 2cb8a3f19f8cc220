/** How many distinct malformed cases there are, by name. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { operations } from '../../src/fuse/index.ts';
import { operations as ninepOperations } from '../../src/ninep/index.ts';
import { rows } from '../../src/virtio/back-end-rows.ts';
import { allFuseCases } from './fuse-cases.ts';
import { allMessageCases } from './message-cases.ts';
import { allNinepCases } from './ninep-cases.ts';
import { allRingCases } from './ring-cases.ts';

const LEAST = 200;

test('malformed cases are at least 200, each with a name of its own', (t) => {
  const kinds = { rings: allRingCases, messages: allMessageCases, requests: allFuseCases, frames: allNinepCases };
  const names = Object.entries(kinds).flatMap(([kind, cases]) => cases.map(({ name }) => `${kind}: ${name}`));
  const twice = names.filter((name, i) => names.indexOf(name) !== i);
  assert.deepEqual(twice, []);
  assert.ok(names.length >= LEAST, `there are ${names.length}`);
  assert.ok(allNinepCases.length >= LEAST, `there are ${allNinepCases.length} of 9P`);
  for (const [kind, cases] of Object.entries(kinds)) t.diagnostic(`${kind}: ${cases.length}`);
  t.diagnostic(`${names.length} in all`);
});

test('every row of the tables has malformed cases', () => {
  const has = (cases: readonly { name: string }[], row: string): boolean =>
    cases.some(({ name }) => name.startsWith(`${row} `));
  assert.deepEqual(
    operations.filter(({ name }) => !has(allFuseCases, name)),
    [],
  );
  assert.deepEqual(
    ninepOperations.filter(({ name, shape }) => shape !== undefined && !has(allNinepCases, name)),
    [],
  );
  assert.deepEqual(
    rows.filter(({ name }) => !has(allMessageCases, name)),
    [],
  );
});
