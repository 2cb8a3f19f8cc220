import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { test } from 'node:test';
import { defaultQuota } from '../tree/index.ts';
import { type ExportedTree, exportYaml } from './export-yaml.ts';
import { parsePolicy, parseSpec } from './spec-file.ts';
import { SpecTexts } from './spec-texts.ts';

const large: ExportedTree = {
  entries: Array.from({ length: 200 }, (_, i) => ({ path: `/f${i}`, kind: 'file', bytes: Buffer.alloc(500, `${i} `) })),
  policy: { rules: [{ path: '/f1', mode: 0o400 }], users: {}, groups: {}, quota: defaultQuota },
};

/** Whether the event loop had a turn meanwhile. */
const turned = async <T>(work: Promise<T>): Promise<readonly [T, boolean]> => {
  let hasTurned = false;
  setImmediate(() => {
    hasTurned = true;
  });
  return [await work, hasTurned];
};

test('SpecTexts does what is long in a thread, with the same result', async () => {
  const texts = new SpecTexts();
  const text = exportYaml(large);
  const wrong = `${text}nonsense: 1\n`;
  const policy = `policy:\n${'  - { path: /a, mode: "0400" }\n'.repeat(3000)}`;
  assert.deepEqual(await turned(texts.write(large)), [text, true]);
  assert.deepEqual(await turned(texts.readSpec(text)), [parseSpec(text, 'spec'), true]);
  assert.deepEqual(await texts.readSpec(wrong), parseSpec(wrong, 'spec'));
  assert.deepEqual(await texts.readPolicy(policy), parsePolicy(policy, 'policy'));
});

test('SpecTexts does what is short at once', async () => {
  const texts = new SpecTexts();
  const [{ spec }, hasTurned] = await turned(texts.readSpec('porthole: 1\nmetadata: { a: "1" }\n'));
  assert.equal(hasTurned, false);
  assert.equal(spec!.entries.length, 1);
});

test('SpecTexts tells what failed in the thread, and goes on', async () => {
  const texts = new SpecTexts();
  const failing = texts.write({ entries: [...large.entries, { path: '/no/such', kind: 'directory' }] });
  const next = texts.write(large);
  await assert.rejects(failing, /"\/no\/such" comes before its directory/);
  assert.equal(await next, exportYaml(large));
});
