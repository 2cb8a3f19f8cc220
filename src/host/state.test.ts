import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { keptFor } from '../../test/host/kept-node.ts';
import { StateFile, StoreError } from '../store/index.ts';
import type { Kept } from '../tree/index.ts';
import { State } from './state.ts';

const temporary = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-state-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
};

const acl = { userObj: 6, groupObj: 4, other: 0, mask: -1, users: [{ id: 114, permissions: 4 }], groups: [] };
const outside: Kept = {
  node: {
    ...keptFor(17, 3).node,
    madeBy: 'outside',
    acl: { ...acl, mask: 4 },
    defaultAcl: acl,
    burned: true,
    atime: { sec: -5, nsec: 999_999_999 },
  },
  base: 'digest',
  keepBytes: false,
};

test('State gives back nodes, counters and spec file when it is opened again', (t) => {
  const directory = temporary(t);
  {
    using state = new State(directory);
    assert.equal(state.restore(), undefined);
    assert.equal(state.specFile, undefined);
    state.rememberSpecFile('/etc/web.yaml');
    state.persist([{ revision: 2, nextIno: 20, put: [keptFor(16, 2), keptFor(19, 2)], remove: [] }]);
    state.persist([{ revision: 3, nextIno: 21, put: [outside], remove: [16] }]);
  }
  using state = new State(directory);
  assert.equal(state.specFile, '/etc/web.yaml');
  const expected = { ...outside, node: { ...outside.node, bytes: undefined } };
  assert.deepEqual(state.restore(), { revision: 3, nextIno: 21, nodes: [expected, keptFor(19, 2)] });
});

test('State refuses to restore when a record is damaged or beyond the counters', (t) => {
  const directory = temporary(t);
  const isDamaged = (error: unknown) => error instanceof StoreError && error.code === 'STORE_DAMAGED';
  {
    using state = new State(directory);
    state.persist([{ revision: 2, nextIno: 17, put: [keptFor(17, 2)], remove: [] }]);
    assert.throws(() => state.restore(), isDamaged);
    state.persist([{ revision: 2, nextIno: 18, put: [], remove: [] }]);
    assert.equal(state.restore()?.nodes.length, 1);
  }
  {
    using store = new StateFile({ directory });
    const [entry] = store.scan('node/');
    store.commit([{ key: entry!.key, value: entry!.value.subarray(0, 40) }]);
  }
  using state = new State(directory);
  assert.throws(() => state.restore(), isDamaged);
});

test('State holds every told commit, and whole ones only, when its process is killed in the middle', {
  timeout: 60_000,
}, async (t) => {
  const directory = join(temporary(t), 'state');
  let told = 0;
  for (let round = 0; round < 4; round++) {
    const child = spawn(process.execPath, [join(import.meta.dirname, '../../test/host/state-writer.ts'), directory], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    const closed = once(child, 'close');
    const wanted = told + 20 + round * 7;
    let text = '';
    child.stdout.setEncoding('utf8');
    child.stdout.on('data', (chunk: string) => {
      text += chunk;
      told = Math.max(told, ...text.split('\n').slice(0, -1).map(Number));
      if (told >= wanted) child.kill('SIGKILL');
    });
    const [code, signal] = await closed;
    assert.equal(signal, 'SIGKILL', `the child ended by itself with ${code}`);

    using state = new State(directory);
    const restored = state.restore();
    assert(restored);
    assert.ok(restored.revision >= told && restored.revision <= told + 1, `told ${told}, found ${restored.revision}`);
    assert.equal(restored.nextIno, 1000 + restored.revision);
    const newest = new Map<number, number>();
    for (let revision = 1; revision <= restored.revision; revision++) {
      newest.set(16 + (revision % 7), revision);
      newest.set(32 + (revision % 5), revision);
    }
    const expected = [...newest].toSorted(([a], [b]) => a - b).map(([ino, revision]) => keptFor(ino, revision));
    assert.deepEqual(restored.nodes, expected);
    told = restored.revision;
  }
});
