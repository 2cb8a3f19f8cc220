import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { commandOf, commandPart, partEnvironment, processParts, threadParts, versionOf, versionText } from './index.ts';

test('processParts and threadParts name files that are there', () => {
  for (const { file } of [commandPart, ...Object.values(processParts), ...Object.values(threadParts)]) {
    assert.ok(existsSync(new URL(`../${file}`, import.meta.url)), file);
  }
});

test('commandOf gives this Node, its flags and the source file when it runs from a checkout', () => {
  const [program, ...args] = commandOf('device');
  assert.equal(program, process.execPath);
  assert.ok(args.includes('--max-semi-space-size=1'));
  assert.match(args.at(-1)!, /\/src\/device\/main\.ts$/);
});

test('commandOf gives flags that Node takes', () => {
  for (const part of Object.keys(processParts) as (keyof typeof processParts)[]) {
    const [program, ...args] = commandOf(part);
    assert.equal(execFileSync(program, [...args.slice(0, -1), '-p', '1'], { encoding: 'utf8' }), '1\n');
  }
});

test('partEnvironment has nothing of ours', () => {
  assert.deepEqual(Object.keys(partEnvironment()), ['NODE_COMPILE_CACHE']);
});

test('versionText leaves out a commit that is not known', () => {
  assert.equal(versionText({ version: '1.2.3' }), '1.2.3');
  assert.equal(versionText({ version: '1.2.3', commit: '0123456789ab' }), '1.2.3 (commit 0123456789ab)');
});

test('versionOf says the version of package.json', () => {
  assert.match(versionOf(new URL('../../', import.meta.url)).version, /^\d+\.\d+\.\d+$/);
});
