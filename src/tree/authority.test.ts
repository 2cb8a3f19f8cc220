import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { aimed, edit, editCondition, mutation, specs } from '../../test/tree/histories.ts';
import { checkTree, nodesOf, recount } from '../../test/tree/invariants.ts';
import { app, Keeper, root } from '../../test/tree/keepers.ts';
import { commitNow, digest, specOf, TestClock, World, type WorldSpec } from '../../test/tree/world.ts';
import { EDQUOT, EIO, ENOSPC, EOVERFLOW, EPERM, EXDEV, RENAME_EXCHANGE } from '../wire/index.ts';
import { Authority } from './authority.ts';
import { type Caller, type Way, ways } from './caller.ts';
import { type Edit, type EditCondition, TreeError } from './edit.ts';
import type { Mutation } from './mutation.ts';
import { Replica } from './replica.ts';
import type { Rule } from './spec.ts';

const text = (value: string) => new TextEncoder().encode(value);

type Step =
  | { readonly mutation: Mutation; readonly way: Way }
  | { readonly load: WorldSpec }
  | { readonly edits: readonly Edit[]; readonly conditions: readonly EditCondition[] }
  | { readonly failing: Mutation }
  | 'restart';
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 20, arbitrary: fc.record({ mutation, way: fc.constantFrom<Way>(ways.direct, ways.virtiofs, ways.mount) }) },
  { weight: 1, arbitrary: fc.record({ load: fc.constantFrom(...specs) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      edits: fc.array(edit, { minLength: 1, maxLength: 3 }),
      conditions: fc.array(editCondition, { maxLength: 1 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ failing: mutation }) },
  { weight: 1, arbitrary: fc.constant('restart' as const) },
);

/** How often each operation succeeded: a fuzz that is refused everything finds nothing. */
const succeeded = new Map<string, number>();

class Fleet {
  readonly keeper = new Keeper();
  readonly clock = new TestClock();
  readonly seenInos = new Map<number, string>();
  spec: WorldSpec = specs[0]!;
  authority: Authority;
  replicas: Replica[] = [];

  constructor() {
    this.authority = this.#start();
  }

  #start(): Authority {
    const restored = this.keeper.revision === 0 ? {} : { restored: this.keeper.restored };
    const authority = new Authority({
      vm: 'test',
      wallMs: this.clock.wallMs,
      digest,
      audit: () => true,
      persist: this.keeper.persist,
      ...restored,
    });
    authority.load(specOf(this.spec));
    this.replicas = [new Replica(), new Replica()];
    for (const [index, replica] of this.replicas.entries())
      authority.subscribe(`holder ${index}`, (delta) => replica.apply(delta));
    return authority;
  }

  async run(step: Step): Promise<void> {
    this.clock.advance(1);
    if (step === 'restart') {
      // A directory that lived on for what guests had in it goes with the next load.
      this.authority.load(specOf(this.spec));
      const named = (nodes: ReturnType<typeof nodesOf>) => [...nodes.values()].filter((node) => node.parentIno !== 0);
      const before = named(nodesOf(this.authority.replica));
      const { revision } = this.authority.snapshot;
      this.authority = this.#start();
      assert.deepEqual(named(nodesOf(this.authority.replica)), before, 'a restart changes nothing');
      assert.ok(this.authority.snapshot.revision >= revision);
    } else if ('load' in step) {
      this.spec = step.load;
      this.authority.load(specOf(step.load));
    } else if ('edits' in step) {
      const before = this.authority.snapshot;
      try {
        await this.authority.edit(step.edits, step.conditions);
        succeeded.set('edit', (succeeded.get('edit') ?? 0) + 1);
      } catch (error) {
        assert.ok(error instanceof TreeError, String(error));
        assert.equal(this.authority.snapshot, before);
      }
    } else if ('failing' in step) {
      const before = { snapshot: this.authority.snapshot, usage: this.authority.replica.usage };
      this.keeper.works = false;
      commitNow(this.authority, step.failing, ways.direct, 'holder 0');
      this.keeper.works = true;
      if (step.failing.op !== 'drop') {
        assert.equal(this.authority.snapshot, before.snapshot);
        assert.deepEqual(this.authority.replica.usage, before.usage);
      }
    } else {
      const outcome = commitNow(this.authority, aimed(this.authority.snapshot, step.mutation), step.way, 'holder 0');
      assert.ok(Number.isInteger(outcome.errno) && outcome.errno >= 0);
      const { op } = step.mutation;
      if (outcome.errno === 0) succeeded.set(op, (succeeded.get(op) ?? 0) + 1);
    }
  }

  check(): void {
    const { authority } = this;
    checkTree(authority.replica, { holdsOnceBytes: true });
    const expected = nodesOf(authority.replica);
    for (const replica of this.replicas) {
      checkTree(replica, { holdsOnceBytes: false });
      assert.deepEqual(nodesOf(replica), expected);
      assert.equal(replica.snapshot.revision, authority.snapshot.revision);
      assert.deepEqual(replica.usage, authority.replica.usage);
    }
    assert.deepEqual(authority.replica.usage, recount(authority, this.keeper.guestWritten));
    for (const node of authority.snapshot.nodes.values()) {
      // The ino's first maker and type tell whether a number was used again.
      const identity = `${node.mode & 0o170000}`;
      assert.equal(this.seenInos.get(node.ino) ?? identity, identity, `ino ${node.ino} was used again`);
      this.seenInos.set(node.ino, identity);
    }
  }
}

test('Authority keeps its tree, ledger and replicas whole when a guest asks for anything', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 80, size: 'max' }), async (steps) => {
      const fleet = new Fleet();
      for (const step of steps) {
        await fleet.run(step);
        fleet.check();
      }
    }),
    { numRuns: 400 },
  );
  for (const op of [
    'create',
    'mkdir',
    'symlink',
    'unlink',
    'rmdir',
    'rename',
    'write',
    'truncate',
    'setattr',
    'burn',
    'drop',
    'edit',
  ])
    assert.ok((succeeded.get(op) ?? 0) >= 10, `${op} succeeded ${succeeded.get(op)} times only`);
});

test('load keeps what guests made, replaces what they wrote only when the outside has a new value', () => {
  const rules: Rule[] = [{ path: '/open/*', mode: 0o666 }];
  const world = new World({ content: { open: { a: 'one', b: 'two' } }, rules });
  const at = (path: string) => world.authority.snapshot.resolve(path);
  const valueOf = (path: string) => new TextDecoder().decode(at(path)?.bytes);
  const write = (path: string, value: string) =>
    world.commit({
      op: 'write',
      caller: app,
      ino: at(path)!.ino,
      offset: 0,
      data: text(value),
      append: false,
      truncate: true,
      grantedAtOpen: true,
    });
  const guest = at('/guest')!.ino;
  const file = world.commit({ op: 'create', caller: app, parentIno: guest, name: 'f', mode: 0o644, umask: 0 }).ino;
  assert.equal(write('/open/a', 'guest a').errno, 0);
  assert.equal(write('/open/b', 'guest b').errno, 0);
  assert.equal(world.authority.replica.usage.bytes, 14);
  const { ino } = at('/open/a')!;
  const { revision, changes } = world.load({ content: { open: { a: 'new', b: 'two' } }, rules });
  assert.deepEqual([valueOf('/open/a'), valueOf('/open/b')], ['new', 'guest b']);
  assert.equal(at('/open/a')!.ino, ino);
  assert.equal(at('/guest/f')!.ino, file);
  assert.deepEqual(
    changes.map(({ path, what }) => `${what} ${path}`),
    ['changed /open/a'],
  );
  assert.equal(world.authority.replica.usage.bytes, 7);
  assert.equal(world.load({ content: { open: { a: 'new', b: 'two' } }, rules }).revision, revision, 'nothing new');
});

test('load throws and changes nothing when the entries make no tree or a commit can not be kept', () => {
  const keeper = new Keeper();
  const world = new World({ content: { open: { a: 'one' } } }, { persist: keeper.persist });
  const { snapshot } = world.authority;
  const bytes = text('x');
  for (const path of ['/no/such', 'relative', '/.changes', '/a//b', '/open/a/below', `/${'x'.repeat(256)}`, '/'])
    assert.throws(
      () =>
        world.authority.load({
          ...specOf({ content: {} }),
          entries: [
            { path: '/open', kind: 'directory' },
            { path: '/open/a', kind: 'file', bytes },
            { path, kind: 'file', bytes },
          ],
        }),
      TypeError,
      path,
    );
  keeper.works = false;
  assert.throws(
    () => world.load({ content: { open: { a: 'two' } }, rules: [{ path: '/open', mode: 0o777 }] }),
    /disk is full/,
  );
  assert.match(world.authority.persistFailure!.message, /disk is full/);
  assert.equal(world.authority.snapshot, snapshot);
  keeper.works = true;
  world.load({ content: { open: { a: 'two' } } });
  assert.equal(new TextDecoder().decode(world.authority.snapshot.resolve('/open/a')!.bytes), 'two');
  assert.equal(world.authority.persistFailure, undefined);
});

test('a file is not lost when its unlink could not be kept and a replica leaves', () => {
  const keeper = new Keeper();
  const world = new World({ content: {} }, { persist: keeper.persist });
  const leave = world.authority.subscribe('holder', () => {});
  const parentIno = world.authority.snapshot.resolve('/guest')!.ino;
  const { ino } = world.commit({ op: 'create', caller: app, parentIno, name: 'f', mode: 0o644, umask: 0 });
  keeper.works = false;
  assert.equal(world.commit({ op: 'unlink', caller: app, parentIno, name: 'f' }).errno, EIO);
  keeper.works = true;
  leave();
  assert.equal(world.authority.snapshot.resolve('/guest/f')?.ino, ino);
});

test('subscribe tells every listener of commits in order when one makes a commit, subscribes another or throws', () => {
  const errors: unknown[] = [];
  const world = new World({ content: {} }, { listenerThrew: (error) => errors.push(error) });
  const parentIno = world.authority.snapshot.resolve('/guest')!.ino;
  const create = (name: string) => world.commit({ op: 'create', caller: root, parentIno, name, mode: 0o644, umask: 0 });
  const first: number[] = [];
  const last: number[] = [];
  const late: number[] = [];
  let nested = false;
  world.authority.subscribe('first', ({ revision }) => {
    first.push(revision);
    if (nested) return;
    nested = first.length > 1;
    if (!nested) return;
    assert.equal(create('nested').errno, 0);
    world.authority.subscribe('late', (delta) => late.push(delta.revision));
  });
  world.authority.subscribe('throwing', ({ full }) => {
    if (!full) throw new Error('a bug in a listener');
  });
  world.authority.subscribe('last', ({ revision }) => last.push(revision));
  const { revision } = world.authority.snapshot;
  assert.equal(create('outer').errno, 0);
  assert.deepEqual(first, [revision, revision + 1, revision + 2]);
  assert.deepEqual(last, first);
  assert.deepEqual(late, [revision + 2]);
  assert.equal(create('again').errno, 0);
  assert.deepEqual(last.at(-1), revision + 3);
  assert.deepEqual(late, [revision + 2, revision + 3]);
  assert.equal(errors.length, 3);
});

test('commit refuses ids that are none, and a rename out of a rule that guards by more than modes', () => {
  const world = new World({
    content: { guest: { locked: {}, box: {} } },
    rules: [
      { path: '/guest/*', mode: 0o777 },
      { path: '/guest/locked/**', root: 'deny' },
    ],
  });
  const inoOf = (path: string) => world.authority.snapshot.resolve(path)!.ino;
  const create = (caller: Caller, path: string, name: string) =>
    world.commit({ op: 'create', caller, parentIno: inoOf(path), name, mode: 0o600, umask: 0 });
  for (const uid of [-1, 0.5, 2 ** 32 - 1, 2 ** 32, Number.NaN])
    assert.equal(create({ ...app, uid }, '/guest/box', 'f').errno, EOVERFLOW);
  assert.equal(create(app, '/guest/locked', 'f').errno, 0);
  const move = (caller: Caller, from: string, to: string, newName: string, flags = 0) =>
    world.commit({ op: 'rename', caller, parentIno: inoOf(from), name: 'f', newParentIno: inoOf(to), newName, flags })
      .errno;
  assert.equal(move(root, '/guest/locked', '/guest/box', 'f'), EXDEV);
  assert.equal(move(app, '/guest/locked', '/guest/locked', 'f'), 0);
  assert.equal(create(app, '/guest/box', 'f').errno, 0);
  assert.equal(move(root, '/guest/box', '/guest/locked', 'f', RENAME_EXCHANGE), EXDEV);
  assert.equal(move(app, '/guest/box', '/guest/locked', 'g'), 0);
});

test('commit answers ENOSPC past the quota, EDQUOT past a uid’s quarter or a rule’s quota', () => {
  const world = new World({
    content: { guest: { few: {} } },
    rules: [{ path: '/guest/few', mode: 0o777, quota: { nodes: 2 } }],
    policy: { quota: { bytes: 400, nodes: 20 } },
  });
  const inoOf = (path: string) => world.authority.snapshot.resolve(path)!.ino;
  const create = (uid: number, path: string, name: string) =>
    world.commit({
      op: 'create',
      caller: { uid, gid: uid, pid: 1 },
      parentIno: inoOf(path),
      name,
      mode: 0o600,
      umask: 0,
    }).errno;
  assert.deepEqual(
    ['a', 'b', 'c'].map((name) => create(1, '/guest/few', name)),
    [0, 0, EDQUOT],
  );
  assert.deepEqual(
    ['d', 'e', 'f', 'g'].map((name) => create(1, '/guest', name)),
    [0, 0, 0, EDQUOT],
  );
  for (const uid of [2, 3, 4]) for (let i = 0; i < 5; i++) assert.equal(create(uid, '/guest', `${uid}.${i}`), 0);
  assert.equal(create(5, '/guest', 'too many'), ENOSPC);
  const write = (caller: Caller, bytes: number) =>
    world.commit({
      op: 'write',
      caller,
      ino: inoOf('/guest/few/a'),
      offset: 0,
      data: new Uint8Array(bytes),
      append: false,
      truncate: true,
      grantedAtOpen: true,
    }).errno;
  assert.deepEqual([write(root, 100), write(root, 101), write(root, 99)], [0, EDQUOT, 0]);
  assert.equal(world.authority.replica.usage.bytes, 99);
});

test('commit keeps the rule quota when directories move under it', () => {
  const world = new World({
    content: { guest: { few: {} } },
    rules: [{ path: '/guest/few', mode: 0o777, quota: { nodes: 3 } }],
  });
  const inoOf = (path: string) => world.authority.snapshot.resolve(path)!.ino;
  const mkdir = (path: string, name: string) =>
    world.commit({ op: 'mkdir', caller: app, parentIno: inoOf(path), name, mode: 0o755, umask: 0 }).errno;
  const move = (from: string, to: string, name: string) =>
    world.commit({
      op: 'rename',
      caller: app,
      parentIno: inoOf(from),
      name,
      newParentIno: inoOf(to),
      newName: name,
      flags: 0,
    }).errno;
  for (const [path, name] of [
    ['/guest', 'd'],
    ['/guest/d', 'e'],
    ['/guest/d', 'f'],
    ['/guest/few', 'g'],
  ] as const)
    assert.equal(mkdir(path, name), 0);
  assert.equal(move('/guest', '/guest/few', 'd'), EDQUOT);
  assert.equal(move('/guest/d', '/guest', 'e'), 0);
  assert.equal(move('/guest', '/guest/few', 'd'), 0);
  assert.equal(mkdir('/guest/few', 'h'), EDQUOT);
  assert.equal(move('/guest/few', '/guest', 'd'), 0);
  assert.equal(mkdir('/guest/few', 'h'), 0);
  assert.equal(mkdir('/guest/few', 'i'), 0);
  assert.equal(mkdir('/guest/few', 'j'), EDQUOT);
});

test('a once value is gone with its name, and no replica is ever sent it', () => {
  const world = new World({
    content: { guest: { once: {} } },
    rules: [
      { path: '/guest/once', mode: 0o777 },
      { path: '/guest/once/*', once: true },
    ],
  });
  const sent: Uint8Array[] = [];
  world.authority.subscribe('holder', (delta) =>
    sent.push(...delta.put.flatMap((node) => (node.sizeBytes > 0 && node.bytes ? [node.bytes] : []))),
  );
  const parentIno = world.authority.snapshot.resolve('/guest/once')!.ino;
  const { ino } = world.commit({ op: 'create', caller: app, parentIno, name: 'f', mode: 0o600, umask: 0 });
  world.commit({
    op: 'write',
    caller: app,
    ino,
    offset: 0,
    data: text('secret'),
    append: false,
    truncate: false,
    grantedAtOpen: true,
  });
  assert.equal(world.commit({ op: 'unlink', caller: app, parentIno, name: 'f' }).errno, 0);
  assert.deepEqual(sent, []);
  assert.notEqual(world.commit({ op: 'burn', caller: app, ino }).errno, 0);
});

test('chmod, rename and unlink of what the outside made are EPERM for root', () => {
  const world = new World({ content: { instance: { id: 'x' } } });
  const parentIno = world.authority.snapshot.resolve('/instance')!.ino;
  const { ino } = world.authority.snapshot.resolve('/instance/id')!;
  for (const mutation of [
    { op: 'setattr', caller: root, ino, mode: 0o777 },
    { op: 'setattr', caller: root, ino, uid: 5 },
    { op: 'unlink', caller: root, parentIno, name: 'id' },
    { op: 'rename', caller: root, parentIno, name: 'id', newParentIno: parentIno, newName: 'x', flags: 0 },
    { op: 'removexattr', caller: root, ino, name: 'system.posix_acl_access' },
  ] as const)
    assert.equal(world.commit(mutation).errno, EPERM, mutation.op);
});
