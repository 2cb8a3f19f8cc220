import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import {
  buildOf,
  buildOfSources,
  commandOf,
  commandPart,
  copyPart,
  isReadableByAll,
  partEnvironment,
  processParts,
  threadParts,
  versionOf,
  versionText,
} from './index.ts';

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

test('buildOf changes with every source of a part, and with no other', (t) => {
  const root = new URL('../../', import.meta.url);
  const copy = mkdtempSync(path.join(tmpdir(), 'porthole-build-'));
  t.after(() => rmSync(copy, { recursive: true }));
  for (const name of ['package.json', 'src']) cpSync(new URL(name, root), path.join(copy, name), { recursive: true });
  const build = (part: 'device' | 'keeper'): string => buildOfSources(pathToFileURL(`${copy}/`), part);
  const before = { device: build('device'), keeper: build('keeper') };
  assert.match(before.device, /^\d+\.\d+\.\d+\+[0-9a-f]{12}$/);
  assert.deepEqual(before, { device: buildOf('device'), keeper: buildOf('keeper') }, 'wherever it lies');
  appendFileSync(path.join(copy, 'src/cli/up.ts'), '// changed\n');
  assert.deepEqual([build('device'), build('keeper')], [before.device, before.keeper]);
  appendFileSync(path.join(copy, 'src/tree/replica.ts'), '// changed\n');
  assert.notEqual(build('device'), before.device);
  assert.equal(build('keeper'), before.keeper);
  appendFileSync(path.join(copy, 'src/sys/socket.ts'), '// changed\n');
  assert.notEqual(build('keeper'), before.keeper);
});

test('copyPart makes what others can run of a checkout that they cannot get to', (t) => {
  if (process.getuid?.() !== 0) return t.skip('running as another user needs root');
  const root = new URL('../../', import.meta.url);
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-copy-'));
  t.after(() => rmSync(directory, { recursive: true }));
  chmodSync(directory, 0o755);
  const home = path.join(directory, 'home');
  for (const name of ['package.json', 'src'])
    cpSync(new URL(name, root), path.join(home, name), { recursive: true, mode: 0 });
  symlinkSync(new URL('node_modules', root).pathname, path.join(home, 'node_modules'));
  const checkout = pathToFileURL(`${home}/`);
  chmodSync(path.join(home, 'src/tree/node.ts'), 0o600);
  assert.equal(isReadableByAll('device', checkout), false, 'one file is closed');
  chmodSync(path.join(home, 'src/tree/node.ts'), 0o644);
  assert.equal(isReadableByAll('device', checkout), isReadableByAll('device'));
  chmodSync(home, 0o700);
  assert.equal(isReadableByAll('device', checkout), false);

  const program = path.join(directory, 'program');
  mkdirSync(path.join(program, 'of-another-version'), { recursive: true });
  const copy = copyPart('device', program, checkout);
  assert.deepEqual(readdirSync(program), [`device-${buildOf('device')}`]);
  assert.equal(buildOfSources(copy, 'device'), buildOf('device'));
  assert.ok(isReadableByAll('device', copy));
  assert.ok(existsSync(new URL('.cache/compile', copy)), 'what was compiled is kept');
  const [node, ...args] = commandOf('device', copy);
  const run = (...more: string[]) =>
    spawnSync('setpriv', ['--reuid=700321', '--regid=700321', '--clear-groups', '--', node, ...args, ...more], {
      env: partEnvironment(copy),
      encoding: 'utf8',
    });
  // It runs as far as its own words: nobody has given it a link.
  assert.match(run('--nonsense').stderr, /Unknown option '--nonsense'/);
  assert.equal(copyPart('device', program, checkout).href, copy.href);
  return undefined;
});
