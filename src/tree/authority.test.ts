import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { checkTree, nodesOf, recount } from '../../test/tree/invariants.ts';
import { type Content, digest, Symlink, specOf, TestClock, World, type WorldSpec } from '../../test/tree/world.ts';
import { EDQUOT, EIO, ENOSPC, EOVERFLOW, EPERM, EXDEV, RENAME_EXCHANGE } from '../wire/index.ts';
import { isDirectory } from './access.ts';
import { encodeAcl } from './acl.ts';
import { Authority, type Commit, type Kept, type Restored } from './authority.ts';
import { type Caller, type Way, ways } from './caller.ts';
import type { Mutation } from './mutation.ts';
import type { Node } from './node.ts';
import { Replica } from './replica.ts';
import { limits, type Rule } from './spec.ts';

const root: Caller = { uid: 0, gid: 0, pid: 1 };
const app: Caller = { uid: 1000, gid: 1000, pid: 2 };
const other: Caller = { uid: 1001, gid: 1001, pid: 3 };
const text = (value: string) => new TextEncoder().encode(value);

const rules: Rule[] = [
  { path: '/guest/once/*', once: true },
  { path: '/guest/wo/*', writeOnce: true },
  { path: '/guest/once', mode: 0o777 },
  { path: '/guest/wo', mode: 0o777 },
  { path: '/guest/few', mode: 0o777, quota: { nodes: 3, bytes: 40 } },
  { path: '/open', mode: 0o777 },
  { path: '/open/*', mode: 0o666 },
  { path: '/secrets/burn', mode: 0o444, once: true },
];
const contents: readonly Content[] = [
  { open: { a: 'one', b: 'two', l: new Symlink('a') }, guest: { once: {}, wo: {}, few: {} }, secrets: { burn: 'x' } },
  { open: { a: 'two', c: { d: 'deep' } }, guest: { once: {}, wo: {}, few: {} }, secrets: { burn: 'y' } },
  { open: { a: 'one', b: new Symlink('c') }, guest: { a: { b: 'outside' }, once: {}, wo: {}, few: {} } },
  { guest: { once: {}, wo: {}, few: {} } },
];
const specs: readonly WorldSpec[] = [
  ...contents.map((content) => ({ content, rules })),
  { content: contents[0]!, rules: [{ path: '/guest/**', once: true }, ...rules] },
  { content: contents[0]!, rules, policy: { quota: { bytes: 400, nodes: 12 } } },
];

const absurdNumber = fc.oneof(
  fc.integer(),
  fc.nat(40),
  fc.constantFrom(-1, -0, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 60, 0.5, 1.5, -2.5),
);
const ino = fc.oneof({ weight: 60, arbitrary: fc.nat(45) }, { weight: 1, arbitrary: absurdNumber });
const name = fc.oneof(
  { weight: 30, arbitrary: fc.constantFrom('a', 'b', 'c', 'd') },
  {
    weight: 2,
    arbitrary: fc.constantFrom('', '.', '..', 'a/b', 'nul\0', '\ud800', 'é'.repeat(128), 'x'.repeat(256), '.changes'),
  },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 300 }) },
);
const caller = fc.oneof(
  { weight: 20, arbitrary: fc.constantFrom(root, app, app, other) },
  { weight: 1, arbitrary: fc.record({ uid: absurdNumber, gid: absurdNumber, pid: absurdNumber }) },
);
const mode = fc.oneof(
  { weight: 9, arbitrary: fc.constantFrom(0o777, 0o1777, 0o644, 0o2775) },
  { weight: 1, arbitrary: absurdNumber },
);
const data = fc.uint8Array({ maxLength: 30 });
const time = fc.oneof(fc.constant('now' as const), fc.record({ sec: absurdNumber, nsec: absurdNumber }));
const offset = fc.oneof({ weight: 9, arbitrary: fc.nat(30) }, { weight: 1, arbitrary: absurdNumber });
const acl = fc.oneof(
  data,
  fc.constant(
    encodeAcl({ userObj: 7, groupObj: 5, other: 5, mask: 7, users: [{ id: 1001, permissions: 7 }], groups: [] }),
  ),
);
const xattr = fc.constantFrom('system.posix_acl_access', 'system.posix_acl_default', 'user.x', '');
const truth = fc.boolean();
const made = { caller, parentIno: ino, name };
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined, freq: 2 });

const rename = fc.record({
  op: fc.constant('rename'),
  ...made,
  newParentIno: ino,
  newName: name,
  flags: fc.oneof(fc.constantFrom(0, 1, 2), absurdNumber),
});

const mutation = fc.oneof(
  rename,
  rename,
  rename,
  fc.record({ op: fc.constant('create'), ...made, mode, umask: mode }),
  fc.record({ op: fc.constant('mkdir'), ...made, mode, umask: mode }),
  fc.record({ op: fc.constant('symlink'), ...made, target: data }),
  fc.record({ op: fc.constant('unlink'), ...made }),
  fc.record({ op: fc.constant('rmdir'), ...made }),
  rename,
  fc.record({
    op: fc.constant('write'),
    caller,
    ino,
    offset,
    data,
    append: truth,
    truncate: truth,
    grantedAtOpen: truth,
  }),
  fc.record({ op: fc.constant('truncate'), caller, ino, sizeBytes: offset, grantedAtOpen: truth }),
  fc.record({
    op: fc.constant('setattr'),
    caller,
    ino,
    mode: maybe(mode),
    uid: maybe(offset),
    gid: maybe(offset),
    atime: maybe(time),
    mtime: maybe(time),
  }),
  fc.record({ op: fc.constant('setxattr'), caller, ino, name: xattr, value: acl, flags: fc.nat(3) }),
  fc.record({ op: fc.constant('removexattr'), caller, ino, name: xattr }),
  fc.record({ op: fc.constant('burn'), caller, ino }),
  fc.record({ op: fc.constant('drop'), caller, ino }),
) as unknown as fc.Arbitrary<Mutation>;

type Step =
  | { readonly mutation: Mutation; readonly way: Way }
  | { readonly load: WorldSpec }
  | { readonly failing: Mutation }
  | 'restart';
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 20, arbitrary: fc.record({ mutation, way: fc.constantFrom<Way>(ways.direct, ways.virtiofs, ways.mount) }) },
  { weight: 1, arbitrary: fc.record({ load: fc.constantFrom(...specs) }) },
  { weight: 1, arbitrary: fc.record({ failing: mutation }) },
  { weight: 1, arbitrary: fc.constant('restart' as const) },
);

/** Keeps commits as a store does: a node's bytes only where it is told to keep them. */
class Keeper {
  readonly nodes = new Map<number, Kept>();
  revision = 0;
  nextIno = 0;
  works = true;

  readonly persist = (commit: Commit): void => {
    if (!this.works) throw new Error('the disk is full');
    assert.ok(commit.revision > this.revision, 'revisions only rise');
    assert.ok(commit.nextIno >= this.nextIno);
    ({ revision: this.revision, nextIno: this.nextIno } = commit);
    for (const ino of commit.remove) this.nodes.delete(ino);
    for (const kept of commit.put)
      this.nodes.set(kept.node.ino, kept.keepBytes ? kept : { ...kept, node: { ...kept.node, bytes: undefined } });
  };

  get restored(): Restored {
    return { revision: this.revision, nextIno: this.nextIno, nodes: [...this.nodes.values()] };
  }

  get guestWritten(): Set<number> {
    return new Set(
      [...this.nodes].filter(([, { node, keepBytes }]) => keepBytes && node.madeBy === 'outside').map(([ino]) => ino),
    );
  }
}

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

  run(step: Step): void {
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
    } else if ('failing' in step) {
      const before = { snapshot: this.authority.snapshot, usage: this.authority.replica.usage };
      this.keeper.works = false;
      this.authority.commit(step.failing, ways.direct, 'holder 0');
      this.keeper.works = true;
      if (step.failing.op !== 'drop') {
        assert.equal(this.authority.snapshot, before.snapshot);
        assert.deepEqual(this.authority.replica.usage, before.usage);
      }
    } else {
      const outcome = this.authority.commit(this.#aimed(step.mutation), step.way, 'holder 0');
      assert.ok(Number.isInteger(outcome.errno) && outcome.errno >= 0);
      const { op } = step.mutation;
      if (outcome.errno === 0) succeeded.set(op, (succeeded.get(op) ?? 0) + 1);
    }
  }

  /** Makes small inode numbers those of nodes that are there, and of directories that guests may write. */
  #aimed(mutation: Mutation): Mutation {
    const nodes = [...this.authority.snapshot.nodes.values()];
    const open = nodes.filter((node) => isDirectory(node) && (node.mode & 0o002) !== 0);
    const files = nodes.filter((node) => !isDirectory(node) && (node.mode & 0o222) !== 0);
    const aim = (ino: number, among: Node[]) => (ino >= 0 && ino < 40 ? (among[ino % among.length]?.ino ?? ino) : ino);
    const guests = nodes.filter((node) => node.madeBy === 'guest' && node.parentIno !== 0);
    const takes = mutation.op === 'unlink' || mutation.op === 'rmdir' || mutation.op === 'rename';
    const taken = takes && mutation.name.length === 1 ? guests[mutation.parentIno % guests.length] : undefined;
    const wantsFile = mutation.op === 'write' || mutation.op === 'truncate';
    return {
      ...mutation,
      ...('ino' in mutation ? { ino: aim(mutation.ino, wantsFile ? files : nodes) } : {}),
      ...('parentIno' in mutation ? { parentIno: aim(mutation.parentIno, open) } : {}),
      ...(taken === undefined ? {} : { parentIno: taken.parentIno, name: taken.name }),
      ...('newParentIno' in mutation ? { newParentIno: aim(mutation.newParentIno, open) } : {}),
    } as Mutation;
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

test('Authority keeps its tree, ledger and replicas whole when a guest asks for anything', () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 10, maxLength: 80, size: 'max' }), (steps) => {
      const fleet = new Fleet();
      for (const step of steps) {
        fleet.run(step);
        fleet.check();
      }
    }),
    { numRuns: 150 },
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
  ])
    assert.ok((succeeded.get(op) ?? 0) >= 10, `${op} succeeded ${succeeded.get(op)} times only`);
});
