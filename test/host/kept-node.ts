import type { Kept, Node } from '../../src/tree/index.ts';

/** A node whose every part tells its revision, so that a mix of two commits shows. */
export const keptFor = (ino: number, revision: number): Kept => {
  const bytes = new Uint8Array(5_000).fill(revision & 255);
  const time = { sec: revision, nsec: revision };
  const node: Node = {
    ino,
    parentIno: 1,
    name: `node-${ino}`,
    madeBy: 'guest',
    mode: 0o100600,
    uid: revision,
    gid: revision,
    acl: undefined,
    defaultAcl: undefined,
    nlink: 1,
    sizeBytes: bytes.length,
    bytes,
    burned: false,
    dataRevision: revision,
    revision,
    atime: time,
    mtime: time,
    ctime: time,
  };
  return { node, base: undefined, keepBytes: true };
};
