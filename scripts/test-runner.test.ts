import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { type RunOptions, runTiers, type Tier, unclaimed } from './test-runner.ts';

/** Runs one tier over fixture files of these sources. */
async function run(
  sources: Readonly<Record<string, string>>,
  tier: Partial<Tier> = {},
  options: Partial<RunOptions> = {},
): Promise<{ passed: number; failed: number; skipped: number; text: string; last: string }> {
  const root = mkdtempSync(path.join(tmpdir(), 'porthole-fixture-'));
  try {
    mkdirSync(path.join(root, 't'));
    for (const [name, source] of Object.entries(sources))
      writeFileSync(
        path.join(root, 't', name),
        `import { test, describe } from 'node:test'; import assert from 'node:assert';\n${source}`,
      );
    const lines: string[] = [];
    const totals = await runTiers(
      [
        {
          name: 'fixture',
          title: 'a fixture',
          files: ['t/*.test.ts'],
          minimumTests: 0,
          limitSeconds: 60,
          concurrency: 1,
          ...tier,
        },
      ],
      { root, print: (line) => lines.push(line), ...options },
    );
    return { ...totals, text: lines.join('\n'), last: lines.at(-1)! };
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

test('runTiers counts what passed when TypeScript files pass', async () => {
  const { last, text } = await run({
    'a.test.ts': `test('one', () => { const x: number = 1; assert.equal(x, 1); }); test('two', (t) => { t.diagnostic('p99 7 us'); });`,
    'b.test.ts': `describe('group', () => { test('three', () => {}); });`,
  });
  assert.equal(last, '3 passed, 0 failed');
  assert.match(text, /p99 7 us/);
});

test('runTiers shows the failure in full with the output of its file when a test fails', async () => {
  const { last, text } = await run({
    'a.test.ts': `test('sums', () => { console.log('said before'); assert.deepEqual({ a: 1 }, { a: 2 }); }); test('two', () => {});`,
  });
  assert.equal(last, '1 passed, 1 failed');
  assert.match(text, /failed: sums/);
  assert.match(text, /a: 2/);
  assert.match(text, /\| said before/);
});

test('runTiers fails and names the running test when the limit is over', async () => {
  const files = {
    'a.test.ts': `test('quick', () => {}); test('hangs', () => new Promise(() => setInterval(() => {}, 1000)));`,
    'b.test.ts': `test('never', () => {});`,
  };
  let limitSeconds = 2;
  let ended = await run(files, { limitSeconds });
  // On a busy machine the file may not even have begun by then.
  for (; !ended.text.includes('during: hangs') && limitSeconds < 60; ended = await run(files, { limitSeconds }))
    limitSeconds *= 2;
  const { failed, passed, text } = ended;
  assert.equal(passed, 1);
  assert.equal(failed, 2);
  assert.match(
    text,
    new RegExp(`was still running when the tier's limit of ${limitSeconds} s was over, during: hangs`),
  );
  assert.match(text, /b\.test\.ts: not started/);
});

test('runTiers fails when fewer tests ran than stated', async () => {
  const { last, text } = await run(
    { 'a.test.ts': `test('one', () => {}); test('two', { skip: 'no such device here' }, () => {});` },
    { minimumTests: 2 },
  );
  assert.equal(last, '1 passed, 1 failed, 1 skipped');
  assert.match(text, /1 tests ran in 1 files; there must be at least 2/);
});

test('runTiers fails when a tier with a minimum has no files', async () => {
  const { last } = await run({}, { minimumTests: 1 });
  assert.equal(last, '0 passed, 1 failed');
});

test('runTiers prints the reason of a skip and fails one without a reason', async () => {
  const { last, text } = await run({
    'a.test.ts': `test('one', (t) => t.skip('needs /dev/kvm')); test('two', { skip: true }, () => {}); test('three', () => {});`,
  });
  assert.equal(last, '1 passed, 1 failed, 1 skipped');
  assert.match(text, /skipped: one: needs \/dev\/kvm/);
  assert.match(text, /two\n +is skipped without a reason/);
});

test('runTiers fails when a file crashes, ends early or has no test', async () => {
  const { failed, text } = await run({
    'a.test.ts': `test('dies', async () => { await new Promise((r) => setTimeout(r, 50)); process.kill(process.pid, 'SIGSEGV'); });`,
    'b.test.ts': `throw new Error('broken import');`,
    'c.test.ts': `export {};`,
    'd.test.ts': `test('exits', async () => { await new Promise((r) => setTimeout(r, 50)); process.exit(3); });`,
  });
  assert.equal(failed, 4);
  assert.match(text, /the file was ended by SIGSEGV, during: dies/);
  assert.match(text, /broken import/);
  assert.match(text, /the file has no test/);
  assert.match(text, /the file ended with exit code 3, during: exits/);
});

test('runTiers ends and reports processes that a file leaves behind, even in a session of their own', async () => {
  const { last, text } = await run(
    {
      'a.test.ts': `import { spawn } from 'node:child_process';
test('leaves', () => { spawn('setsid', ['sleep', '100'], { detached: true, stdio: 'inherit' }).unref(); });`,
      'b.test.ts': `import { spawn } from 'node:child_process';
import { once } from 'node:events';
test('leaves one without its environment', async () => {
  const child = spawn('sh', ['-c', 'sleep 1.5; sleep 101 & echo'], { env: {}, detached: true, stdio: ['ignore', 'pipe', 'ignore'] });
  await once(child.stdout, 'data');
  await new Promise((r) => setTimeout(r, 1500));
  child.stdout.destroy();
});`,
    },
    {},
    { leftoverGraceMs: 300 },
  );
  assert.equal(last, '2 passed, 2 failed');
  assert.equal(text.match(/left processes running: sleep/g)?.length, 2);
});

test('runTiers runs only what has the text when a filter is given, and fails when nothing has it', async () => {
  const sources = {
    'a.test.ts': `test('lookup (fast)', () => {}); test('getattr', () => assert.fail('not asked for'));`,
    'b.test.ts': `test('other', () => assert.fail('not asked for'));`,
  };
  assert.equal((await run(sources, { minimumTests: 9 }, { filter: 'lookup (' })).last, '1 passed, 0 failed');
  assert.equal((await run(sources, {}, { filter: 'nowhere' })).last, '0 passed, 1 failed');
});

test('runTiers runs a tier with the one before it, and tells of one after the other', async () => {
  const root = mkdtempSync(path.join(tmpdir(), 'porthole-fixture-'));
  const waitsFor = (own: string, other: string): string =>
    `import { existsSync, writeFileSync } from 'node:fs'; import { test } from 'node:test';
     test('meets', async () => { writeFileSync('${own}', ''); while (!existsSync('${other}')) await new Promise((r) => setTimeout(r, 10)); });`;
  try {
    for (const [own, other] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const)
      writeFileSync(path.join(root, `${own}.test.ts`), waitsFor(own, other));
    const lines: string[] = [];
    const tiers = ['a', 'b', 'c'].map((name) => ({
      name,
      title: '',
      files: [`${name}.test.ts`],
      minimumTests: 0,
      limitSeconds: 60,
      concurrency: 1,
      withPrevious: name === 'b',
    }));
    const { passed, failed } = await runTiers(tiers, { root, print: (line) => lines.push(line) });
    assert.deepEqual([passed, failed], [2, 0], lines.join('\n'));
    const heads = lines.filter((line) => /^\w: /.test(line));
    assert.deepEqual(heads, ['a: ', 'b: ', 'c: ']);
    assert.ok(lines.findIndex((line) => line.startsWith('  a: 1 passed')) < lines.indexOf('b: '), lines.join('\n'));
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
});

test('unclaimed names the test files that no tier runs', () => {
  const root = mkdtempSync(path.join(tmpdir(), 'porthole-fixture-'));
  try {
    for (const directory of ['a', 'b', 'node_modules']) {
      mkdirSync(path.join(root, directory));
      writeFileSync(path.join(root, directory, 'x.test.ts'), '');
    }
    const tier = { name: 'a', title: '', files: ['a/**/*.test.ts'], minimumTests: 0, limitSeconds: 1, concurrency: 1 };
    assert.deepEqual(unclaimed([tier], root), ['b/x.test.ts']);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
});

test('runTiers fails for each file that no tier runs', async () => {
  const { last } = await run({ 'a.test.ts': `test('one', () => {});` }, {}, { unclaimed: ['b/x.test.ts'] });
  assert.equal(last, '1 passed, 1 failed');
});
