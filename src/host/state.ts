/**
 * What a state directory keeps of a tree, so that a restart changes nothing that a guest can tell: inode numbers,
 * revisions, times, and everything that guests made or wrote.
 *
 * What wins when the spec file changed meanwhile: each file made outside is kept with the digest of the value that the
 * outside last gave it. A value of the spec that has another digest replaces what a guest wrote; one with the same digest
 * does not, nor does it bring a burned `once` value back. What the spec no longer has is removed; what guests made stays,
 * unless the spec now has something else under the same name.
 *
 * Values that only the outside gave are not kept: the spec file gives them again.
 */

import { Buffer } from 'node:buffer';
import { createHash } from 'node:crypto';
import { resolve } from 'node:path';
import { decode, encode } from '@msgpack/msgpack';
import * as z from 'zod';
import { type StateChange, StateFile, StoreError } from '../store/index.ts';
import type { Acl, Commit, Kept, Node, Restored, Time } from '../tree/index.ts';
import { S_IFLNK, S_IFMT } from '../wire/index.ts';

/** SHA-256, as `Kept.base` holds it. */
export const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('base64');

const countersKey = 'counters';
const sourceKey = 'spec-file';
const nodePrefix = 'node/';
/** Hexadecimal of fixed width, so that keys sort as the numbers do. */
const nodeKey = (ino: number): string => nodePrefix + ino.toString(16).padStart(14, '0');

/** Keeps one tree in a store. The caller closes it. */
export class State implements Disposable {
  readonly readOnly: boolean;
  readonly #store: StateFile;

  /** StoreError as `StateFile`. */
  constructor(directory: string, options: { readonly readOnly?: boolean } = {}) {
    this.readOnly = options.readOnly ?? false;
    this.#store = new StateFile({ directory: resolve(directory), readOnly: this.readOnly });
  }

  /** Absolute path of the spec file that the tree was last loaded from. */
  get specFile(): string | undefined {
    const value = this.#store.get(sourceKey);
    return value === undefined ? undefined : Buffer.from(value).toString();
  }

  rememberSpecFile(file: string): void {
    if (file !== this.specFile) this.#store.commit([{ key: sourceKey, value: Buffer.from(file) }]);
  }

  /** One transaction; on the disk when it returns. StoreError when it is not. */
  readonly persist = (commits: readonly Commit[]): void => {
    const changes: StateChange[] = [];
    for (const { revision, nextIno, put, remove } of commits) {
      for (const ino of remove) changes.push({ key: nodeKey(ino), value: undefined });
      for (const kept of put) changes.push({ key: nodeKey(kept.node.ino), value: encodeKept(kept) });
      const counters: z.infer<typeof countersRecord> = { revision, nextIno };
      changes.push({ key: countersKey, value: encode(counters) });
    }
    this.#store.commit(changes);
  };

  /** Undefined when nothing was ever kept. StoreError STORE_DAMAGED when a record cannot be read. */
  restore(): Restored | undefined {
    const value = this.#store.get(countersKey);
    if (value === undefined) return undefined;
    const { revision, nextIno } = this.#read('the counters', () => countersRecord.parse(decode(value)));
    const nodes = this.#store.scan(nodePrefix).map(({ key, value: record }) =>
      this.#read(key, () => {
        const kept = decodeKept(record);
        const { node } = kept;
        if (nodeKey(node.ino) !== key || node.ino >= nextIno || node.revision > revision) {
          throw new RangeError(`inode ${node.ino} of revision ${node.revision} is beyond the counters`);
        }
        return kept;
      }),
    );
    return { revision, nextIno, nodes };
  }

  #read<T>(what: string, read: () => T): T {
    try {
      return read();
    } catch (error) {
      const message = `the record "${what}" in the state directory "${this.#store.directory}" is damaged; restore the directory from a backup, or move it away to start anew`;
      throw new StoreError('STORE_DAMAGED', message, error);
    }
  }

  close(): void {
    this.#store.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

// Records. Their keys are the format: a key may be added, none may change its meaning.

const whole = z.int().min(0);
const countersRecord = z.object({ revision: whole, nextIno: whole });
const timeRecord = z.tuple([z.int(), whole]);
const entriesRecord = z.array(z.tuple([whole, z.int().min(0).max(7)]));
/** `mask` −1: none. */
const aclRecord = z.object({
  u: whole,
  g: whole,
  o: whole,
  m: z.int().min(-1).max(7),
  users: entriesRecord,
  groups: entriesRecord,
});
const nodeRecord = z.object({
  ino: z.int().min(1),
  parent: whole,
  name: z.string(),
  by: z.enum(['outside', 'guest']),
  mode: whole,
  uid: whole,
  gid: whole,
  acl: aclRecord.optional(),
  defaultAcl: aclRecord.optional(),
  nlink: whole,
  size: whole,
  /** What a guest wrote, or a link target. */
  bytes: z.custom<Uint8Array>((value) => value instanceof Uint8Array).optional(),
  burned: z.boolean().optional(),
  dataRevision: whole,
  revision: whole,
  atime: timeRecord,
  mtime: timeRecord,
  ctime: timeRecord,
  base: z.string().optional(),
  keepBytes: z.boolean().optional(),
});
type NodeRecord = z.infer<typeof nodeRecord>;
type AclRecord = z.infer<typeof aclRecord>;

const encodeKept = ({ node, base, keepBytes }: Kept): Uint8Array => {
  const record: NodeRecord = {
    ino: node.ino,
    parent: node.parentIno,
    name: node.name,
    by: node.madeBy,
    mode: node.mode,
    uid: node.uid,
    gid: node.gid,
    acl: node.acl && toAclRecord(node.acl),
    defaultAcl: node.defaultAcl && toAclRecord(node.defaultAcl),
    nlink: node.nlink,
    size: node.sizeBytes,
    // A link has no digest: its target itself tells whether the outside has changed it.
    bytes: keepBytes || (node.mode & S_IFMT) === S_IFLNK ? node.bytes : undefined,
    burned: node.burned || undefined,
    dataRevision: node.dataRevision,
    revision: node.revision,
    atime: toTimeRecord(node.atime),
    mtime: toTimeRecord(node.mtime),
    ctime: toTimeRecord(node.ctime),
    base,
    keepBytes: keepBytes || undefined,
  };
  return encode(record, { ignoreUndefined: true });
};

const decodeKept = (bytes: Uint8Array): Kept => {
  const record = nodeRecord.parse(decode(bytes));
  const node: Node = {
    ino: record.ino,
    parentIno: record.parent,
    name: record.name,
    madeBy: record.by,
    mode: record.mode,
    uid: record.uid,
    gid: record.gid,
    acl: record.acl && fromAclRecord(record.acl),
    defaultAcl: record.defaultAcl && fromAclRecord(record.defaultAcl),
    nlink: record.nlink,
    sizeBytes: record.size,
    bytes: record.bytes,
    burned: record.burned ?? false,
    dataRevision: record.dataRevision,
    revision: record.revision,
    atime: fromTimeRecord(record.atime),
    mtime: fromTimeRecord(record.mtime),
    ctime: fromTimeRecord(record.ctime),
  };
  return { node, base: record.base, keepBytes: record.keepBytes ?? false };
};

const toTimeRecord = ({ sec, nsec }: Time): [number, number] => [sec, nsec];
const fromTimeRecord = ([sec, nsec]: readonly [number, number]): Time => ({ sec, nsec });

const toAclRecord = ({ userObj, groupObj, other, mask, users, groups }: Acl): AclRecord => ({
  u: userObj,
  g: groupObj,
  o: other,
  m: mask,
  users: users.map(({ id, permissions }) => [id, permissions]),
  groups: groups.map(({ id, permissions }) => [id, permissions]),
});

const fromAclRecord = ({ u, g, o, m, users, groups }: AclRecord): Acl => ({
  userObj: u,
  groupObj: g,
  other: o,
  mask: m,
  users: users.map(([id, permissions]) => ({ id, permissions })),
  groups: groups.map(([id, permissions]) => ({ id, permissions })),
});
