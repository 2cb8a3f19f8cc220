/** What histories of a tree are made of: mutations with absurd values among them, edits and specs. */
import fc from 'fast-check';
import { encodeAcl } from '../../src/tree/acl.ts';
import {
  type Edit,
  type EditCondition,
  isDirectory,
  type Mutation,
  type Node,
  type Rule,
} from '../../src/tree/index.ts';
import type { Snapshot } from '../../src/tree/snapshot.ts';
import { app, other, root } from './keepers.ts';
import { type Content, Symlink, type WorldSpec } from './world.ts';

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
export const specs: readonly WorldSpec[] = [
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

/** Anything that a guest may ask for. */
export const mutation = fc.oneof(
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

const path = fc.oneof(
  {
    weight: 9,
    arbitrary: fc.array(fc.constantFrom('open', 'guest', 'a', 'b', 'c', 'once', 'few', 'x'), { maxLength: 4 }),
  },
  { weight: 1, arbitrary: fc.array(name, { maxLength: 4 }) },
);
const pathOf = path.map((names) => `/${names.join('/')}`);
/** Anything that the outside may ask for by path. */
export const edit: fc.Arbitrary<Edit> = fc.oneof(
  fc.record({ op: fc.constant('put' as const), path: pathOf, bytes: data }),
  fc.record({ op: fc.constant('put' as const), path: pathOf, bytes: data }),
  fc.record({ op: fc.constant('directory' as const), path: pathOf }),
  fc.record({ op: fc.constant('symlink' as const), path: pathOf, target: fc.constantFrom('a', '../b', '') }),
  fc.record({ op: fc.constant('remove' as const), path: pathOf, recursive: truth }),
);
/** Of a path, whether it is there; of some, whether it is at a revision. */
export const editCondition: fc.Arbitrary<EditCondition> = fc.record({ path: pathOf, exists: truth });

/** Makes small inode numbers those of nodes that are there, and of directories that guests may write. */
export function aimed(snapshot: Snapshot, mutation: Mutation): Mutation {
  const nodes = [...snapshot.nodes.values()];
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
