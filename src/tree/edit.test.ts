import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nodesOf } from '../../test/tree/invariants.ts';
import { app, SlowKeeper } from '../../test/tree/keepers.ts';
import { Symlink, World, type WorldSpec } from '../../test/tree/world.ts';
import { O_RDONLY } from '../wire/index.ts';
import { ways } from './caller.ts';
import { type Edit, type EditCondition, TreeError, type TreeErrorCode } from './edit.ts';
import type { Handle } from './file-system.ts';
import { limits, type Rule } from './spec.ts';

const text = (value: string) => new TextEncoder().encode(value);
const put = (path: string, value = 'value'): Edit => ({ op: 'put', path, bytes: text(value) });
const remove = (path: string, recursive = false): Edit => ({ op: 'remove', path, recursive });

function begin(spec: WorldSpec = { content: { instance: { id: 'i-1' }, guest: {} } }) {
  const world = new World(spec);
  const { authority } = world;
  const at = (path: string) => authority.snapshot.resolve(path);
  const valueAt = (path: string) => new TextDecoder().decode(at(path)?.bytes);
  const makeInGuest = (path: string, value: string) => {
    const slash = path.lastIndexOf('/');
    const parentIno = at(path.slice(0, slash))!.ino;
    const name = path.slice(slash + 1);
    const { ino } = world.commit({ op: 'create', caller: app, parentIno, name, mode: 0o640, umask: 0 });
    write(ino, value);
    return ino;
  };
  const write = (ino: number, value: string) => {
    const how = { offset: 0, append: false, truncate: true, grantedAtOpen: true };
    assert.equal(world.commit({ op: 'write', caller: app, ino, data: text(value), ...how }).errno, 0);
  };
  const edit = (...edits: Edit[]) => authority.edit(edits);
  return { world, authority, at, valueAt, makeInGuest, write, edit };
}

async function refusal(promise: Promise<unknown>): Promise<TreeError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof TreeError) return error;
    throw error;
  }
  return assert.fail('it was not refused');
}

test('edit makes all of it or nothing, with the directories above, owned as the policy says', async () => {
  const rules: Rule[] = [{ path: '/app/**', owner: 1000, mode: 0o640 }];
  const { authority, at, valueAt, edit, world } = begin({ content: { instance: { id: 'i-1' } }, rules });
  const told: string[] = [];
  authority.subscribe('holder', ({ changes }) => told.push(...changes.map(({ path, what }) => `${what} ${path}`)));
  const { revision, changes, dataRevisions } = await edit(
    put('/app/deep/key'),
    { op: 'symlink', path: '/app/link', target: 'deep/key' },
    { op: 'directory', path: '/app/empty' },
    put('/instance/id', 'i-2'),
  );
  assert.equal(revision, authority.snapshot.revision);
  assert.deepEqual(told, [
    'created /app',
    'created /app/deep',
    'created /app/deep/key',
    'created /app/link',
    'created /app/empty',
    'changed /instance/id',
  ]);
  assert.equal(changes.length, told.length);
  assert.deepEqual(
    [...dataRevisions],
    ['/app/deep/key', '/app/link', '/app/empty', '/instance/id'].map((path) => [path, revision]),
  );
  assert.deepEqual([at('/app/deep/key')!.uid, at('/app/deep/key')!.mode & 0o777], [1000, 0o640]);
  assert.equal(at('/app/deep/key')!.madeBy, 'outside');
  assert.equal(valueAt('/app/link'), 'deep/key');
  const before = nodesOf(authority.replica);
  world.clock.advance(1000);
  assert.equal((await refusal(edit(put('/instance/id', 'i-3'), put('/new'), remove('/none')))).code, 'NOT_FOUND');
  assert.deepEqual(nodesOf(authority.replica), before);
  const again = await edit(put('/instance/id', 'i-2'), { op: 'directory', path: '/app/empty' });
  assert.deepEqual(
    [again.revision, again.changes],
    [revision, []],
    'what is there already changes nothing, not even times',
  );
  assert.equal(again.dataRevisions.get('/instance/id'), revision);
});

test('edit goes by conditions of the tree before it, and names the one that does not hold', async () => {
  const { authority, at } = begin();
  const { dataRevision } = at('/instance/id')!;
  const edit = (...conditions: EditCondition[]) =>
    authority.edit([put('/instance/id', 'new'), put('/new')], conditions);
  for (const [index, conditions] of [
    [0, [{ path: '/instance/id', dataRevision: dataRevision + 1 }]],
    [
      1,
      [
        { path: '/instance/id', dataRevision },
        { path: '/instance/id', exists: false },
      ],
    ],
    [0, [{ path: '/new', exists: true }]],
    [0, [{ path: '/new', dataRevision }]],
  ] as [number, EditCondition[]][]) {
    const { code, condition } = await refusal(edit(...conditions));
    assert.deepEqual([code, condition], ['CONDITION_UNMET', index]);
  }
  await edit({ path: '/instance/id', dataRevision }, { path: '/new', exists: false }, { path: '/', exists: true });
  assert.equal((await refusal(edit({ path: '/instance/id', dataRevision }))).code, 'CONDITION_UNMET');
});

test('edit refuses what can be no tree, with a code, the path, and no value', async () => {
  const { authority, edit } = begin({ content: { instance: { id: 'i-1' }, l: new Symlink('instance'), guest: {} } });
  const before = authority.snapshot;
  const secret = 'x'.repeat(limits.valueBytes + 1);
  const link = (target: string): Edit => ({ op: 'symlink', path: '/link', target });
  const refusals: [TreeErrorCode, Edit][] = [
    ['TOO_LARGE', put('/big', secret)],
    ['TOO_LARGE', put('/a'.repeat(limits.depth + 1))],
    ['NOT_A_DIRECTORY', put('/instance/id/below')],
    ['NOT_A_DIRECTORY', put('/l/id')],
    ['NOT_A_DIRECTORY', put('/.changes/below')],
    ['NOT_A_DIRECTORY', { op: 'directory', path: '/instance/id' }],
    ['IS_A_DIRECTORY', put('/instance')],
    ['IS_A_DIRECTORY', put('/')],
    ['IS_A_DIRECTORY', { op: 'symlink', path: '/instance', target: 'x' }],
    ['PATH_INVALID', put('relative')],
    ['PATH_INVALID', put('')],
    ['PATH_INVALID', put('/a//b')],
    ['PATH_INVALID', put('/a/')],
    ['NAME_INVALID', put('/a/../b')],
    ['NAME_INVALID', put(`/${'é'.repeat(128)}`)],
    ['NAME_INVALID', put('/\ud800')],
    ['NAME_INVALID', remove('/nul\0')],
    ['PATH_RESERVED', put('/.changes')],
    ['PATH_RESERVED', remove('/.changes')],
    ['PATH_RESERVED', remove('/', true)],
    ['PATH_RESERVED', remove('/guest', true)],
    ['PATH_RESERVED', remove('/guest/.agent', true)],
    ['NOT_EMPTY', remove('/instance')],
    ['NOT_FOUND', remove('/instance/none')],
    ['TARGET_INVALID', link('')],
    ['TARGET_INVALID', link('nul\0')],
    ['TARGET_INVALID', link('x'.repeat(limits.symlinkBytes + 1))],
  ];
  for (const [code, edited] of refusals) {
    const error = await refusal(edit(edited));
    assert.equal(error.code, code, edited.path);
    assert.ok(edited.path.startsWith(error.path) && (error.path !== '') === (edited.path !== ''));
    assert.ok(!error.message.includes('xxxx'));
  }
  assert.equal(authority.snapshot, before);
});

test('edit leaves what a guest made to the guest but for the bytes, and may remove it', async () => {
  const { world, authority, at, valueAt, makeInGuest, edit } = begin();
  const ino = makeInGuest('/guest/f', 'guest');
  world.clock.advance(1000);
  await edit(put('/guest/f', 'outside'), put('/guest/new', 'outside'));
  const node = at('/guest/f')!;
  assert.deepEqual(
    [node.ino, node.madeBy, node.uid, node.mode & 0o777, valueAt('/guest/f')],
    [ino, 'guest', 1000, 0o640, 'outside'],
  );
  assert.equal(node.mtime.sec, world.clock.nowMs / 1000);
  assert.equal(authority.replica.usage.bytes, 7);
  assert.deepEqual([at('/guest/new')!.madeBy, at('/guest/new')!.uid], ['outside', 0]);
  world.clock.advance(1000);
  await edit(put('/guest/f', 'outside'));
  assert.equal(at('/guest/f'), node);
  const fileSystem = world.fileSystem(ways.direct);
  const handle = fileSystem.open(app, ino, O_RDONLY) as Handle;
  await edit(remove('/guest/f'), put('/guest/f', 'other'));
  assert.deepEqual([at('/guest/f')!.madeBy, valueAt('/guest/f')], ['outside', 'other']);
  assert.equal(
    new TextDecoder().decode(fileSystem.read(handle, 0, 100) as Uint8Array),
    'outside',
    'who has it open keeps it',
  );
  fileSystem.release(handle, () => {});
  assert.deepEqual(authority.replica.usage, { bytes: 0, nodes: 0 });
  await edit({ op: 'symlink', path: '/guest/f', target: 'new' }, remove('/instance', true));
  assert.equal(at('/instance'), undefined);
});

test('edit answers QUOTA when a file of a guest would grow past what guests may use', async () => {
  const policy = { quota: { bytes: 100, nodes: 40 } };
  const { authority, makeInGuest, edit } = begin({ content: { guest: {} }, policy });
  makeInGuest('/guest/f', 'guest');
  assert.equal((await refusal(edit(put('/guest/f', 'x'.repeat(26))))).code, 'QUOTA');
  await edit(put('/guest/f', 'x'.repeat(25)), put('/guest/g', 'x'.repeat(1000)));
  assert.deepEqual(authority.replica.usage, { bytes: 25, nodes: 1 });
});

test('edit puts a value in place of what a guest wrote, and brings a once value back only by a new one', async () => {
  const rules: Rule[] = [
    { path: '/open/*', mode: 0o666 },
    { path: '/secrets/*', mode: 0o444, once: true },
  ];
  const { world, authority, at, valueAt, write, edit } = begin({
    content: { open: { f: 'one' }, secrets: { k: 'one' } },
    rules,
  });
  write(at('/open/f')!.ino, 'guest');
  assert.equal(authority.replica.usage.bytes, 5);
  await edit(put('/open/f', 'one'));
  assert.deepEqual([valueAt('/open/f'), authority.replica.usage.bytes], ['one', 0]);
  const { ino } = at('/secrets/k')!;
  assert.equal(world.commit({ op: 'burn', caller: app, ino }).errno, 0);
  await edit(put('/secrets/k', 'one'));
  assert.equal(at('/secrets/k')!.burned, true);
  await edit(put('/secrets/k', 'two'));
  assert.deepEqual([at('/secrets/k')!.burned, valueAt('/secrets/k'), at('/secrets/k')!.ino], [false, 'two', ino]);
});

test('edit waits for what it was decided on, and is refused with it', async () => {
  const keeper = new SlowKeeper();
  const world = new World({ content: { guest: {} } }, { persist: keeper.persist });
  const { authority } = world;
  keeper.succeed();
  await new Promise(setImmediate);
  const edits = [authority.edit([put('/a')]), authority.edit([put('/b')], [{ path: '/a', exists: true }])];
  const refused = refusal(authority.edit([put('/c')], [{ path: '/a', exists: false }]));
  keeper.succeed();
  await edits[0];
  assert.equal(authority.snapshot.resolve('/b'), undefined);
  keeper.fail();
  assert.equal((await refusal(edits[1]!)).code, 'NOT_KEPT');
  assert.equal((await refused).code, 'NOT_KEPT', 'a refusal too: it was decided on what might not have been kept');
  const again = refusal(authority.edit([put('/c')], [{ path: '/a', exists: false }]));
  assert.equal((await again).code, 'CONDITION_UNMET');
});

test('setPolicy gives what the outside made its new owners and modes, and only that', async () => {
  const { authority, at, makeInGuest } = begin({ content: { app: { key: 'k' }, guest: {} } });
  makeInGuest('/guest/f', 'guest');
  const before = nodesOf(authority.replica);
  const { policyRevision } = authority;
  const spec = { ...authority.replica.policy.spec, rules: [{ path: '/app/*', owner: 1000, mode: 0o600 }] };
  assert.throws(() => authority.setPolicy(spec, policyRevision + 1), { code: 'CONDITION_UNMET' });
  const { revision, changes } = authority.setPolicy(spec, policyRevision);
  assert.deepEqual(
    changes.map(({ path, what }) => `${what} ${path}`),
    ['attributes /app/key'],
  );
  assert.equal(authority.policyRevision, revision);
  assert.deepEqual([at('/app/key')!.uid, at('/app/key')!.mode & 0o777], [1000, 0o600]);
  assert.equal(at('/app/key')!.dataRevision, before.get(at('/app/key')!.ino)!.dataRevision);
  assert.equal(authority.setPolicy(spec).revision, revision);
});

test('outside gives a spec that another tree becomes the same by', async () => {
  const content = { app: { key: 'k', l: new Symlink('key'), sub: { deep: 'd' } }, guest: { in: 'x' } };
  const { authority, makeInGuest, world } = begin({ content, rules: [{ path: '/app/*', mode: 0o600 }] });
  makeInGuest('/guest/f', 'guest');
  const parentIno = authority.snapshot.resolve('/guest')!.ino;
  for (const name of ['holds', 'none'])
    assert.equal(world.commit({ op: 'mkdir', caller: app, parentIno, name, mode: 0o755, umask: 0 }).errno, 0);
  await authority.edit([put('/guest/holds/this')]);
  const other = begin({ content: {} });
  other.authority.load(authority.outside());
  const paths = (from: typeof authority) =>
    [...from.snapshot.nodes.values()]
      .filter(({ madeBy }) => madeBy === 'outside')
      .map((node) => `${from.snapshot.path(node)} ${node.mode} ${new TextDecoder().decode(node.bytes)}`);
  assert.deepEqual(
    paths(other.authority)
      .filter((path) => !path.startsWith('/guest/holds '))
      .toSorted(),
    paths(authority).toSorted(),
  );
  assert.deepEqual(other.authority.outside().entries.length, authority.outside().entries.length);
  assert.equal(other.at('/guest/none'), undefined);
});
