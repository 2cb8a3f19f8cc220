/** What the kernel holds: nodeids, each one file at one version or, for what guests may write and for directories, one node. */
import { type Caching, type Node, ROOT_INO } from '../tree/index.ts';
import { S_IFDIR, S_IFMT } from '../wire/index.ts';
import { FUSE_ROOT_ID } from './abi.ts';
import type { SessionJournal } from './journal.ts';

/**
 * A nodeid that the kernel knows. A versioned one stands for one inode at one `dataRevision`, under one name and one way of
 * caching: its bytes and size never change, so the kernel may keep them for ever. Others stand for an inode for life.
 */
export interface Inode {
  readonly nodeid: number;
  readonly ino: number;
  readonly versioned: boolean;
  readonly caching: Caching;
  /** Attributes of that version, without its bytes; shown to fstat(2) once the version is history. */
  pinned: Node;
  /** `FileSystem.shownMode` of `pinned`, which may not be asked for a node that is gone. */
  pinnedMode: number;
  /** Where it was last looked up: notifications name a dentry by its parent and name. */
  parentIno: number;
  name: string;
  /** How often the kernel was given this nodeid and has not forgotten it. */
  lookups: number;
  /** Where the journal keeps it; 0: nowhere. */
  record: number;
  /** For whom it was made; -1: for somebody whom a predecessor served. FORGET names nobody, nor is known who else uses it. */
  readonly uid: number;
}

const versionedBy = (node: Node, caching: Caching): boolean =>
  caching !== 'mutable' && (node.mode & S_IFMT) !== S_IFDIR;

/** True while `inode` stands for `node` as it is now. */
export const isCurrent = (inode: Inode, node: Node, caching: Caching): boolean =>
  inode.versioned
    ? inode.caching === caching &&
      inode.pinned.dataRevision === node.dataRevision &&
      inode.parentIno === node.parentIno &&
      inode.name === node.name
    : !versionedBy(node, caching);

/** A uid's share of the nodeids. */
const UID_SHARE = 4;

/** Nodeids are looked up, never trusted as indices, and never reused, not even after `clear`. */
export class InodeTable {
  readonly #byNodeid = new Map<number, Inode>();
  readonly #byIno = new Map<number, Inode>();
  readonly #limit: number;
  /** How many nodeids were made for each uid. */
  readonly #byUid = new Map<number, number>();
  readonly #journal: SessionJournal | undefined;
  #nextNodeid = FUSE_ROOT_ID + 1;

  constructor(limit: number, journal?: SessionJournal) {
    this.#limit = limit;
    this.#journal = journal;
  }

  /** What a predecessor gave out, by nodeid, ascending; the journal has it. */
  restore(inodes: readonly Inode[], nextNodeid: number): void {
    for (const inode of inodes) {
      this.#byNodeid.set(inode.nodeid, inode);
      this.#byIno.set(inode.ino, inode);
      this.#byUid.set(inode.uid, (this.#byUid.get(inode.uid) ?? 0) + 1);
    }
    this.#nextNodeid = nextNodeid;
  }

  get size(): number {
    return this.#byNodeid.size;
  }

  /**
   * True when `reference` could not add one more for this uid. Of the first half, whoever comes may have what is free: a kernel
   * keeps what one root walked for as long as it has memory. The other half is for uids that have less than a quarter.
   */
  fullFor(uid: number): boolean {
    const { size } = this.#byNodeid;
    if (size < this.#limit / 2) return false;
    return size >= this.#limit || (this.#byUid.get(uid) ?? 0) >= this.#limit / UID_SHARE;
  }

  get(nodeid: number): Inode | undefined {
    return this.#byNodeid.get(nodeid);
  }

  /** The newest nodeid of an inode number, if the kernel holds one. */
  newest(ino: number): Inode | undefined {
    return this.#byIno.get(ino);
  }

  /** The nodeid for `node` as it is now, with one more lookup; undefined when the table is full for `uid`. Allocates for new ones only. */
  reference(node: Node, caching: Caching, shownMode: number, uid: number): Inode | undefined {
    const known = this.#byIno.get(node.ino);
    if (known !== undefined && isCurrent(known, node, caching)) {
      if (known.lookups < Number.MAX_SAFE_INTEGER) known.lookups++;
      this.#journal?.countLookups(known);
      this.repin(known, node, shownMode);
      return known;
    }
    if (this.fullFor(uid)) return undefined;
    const inode: Inode = {
      nodeid: this.#nextNodeid++,
      ino: node.ino,
      versioned: versionedBy(node, caching),
      caching,
      pinned: { ...node, bytes: undefined },
      pinnedMode: shownMode,
      parentIno: node.parentIno,
      name: node.name,
      lookups: 1,
      record: 0,
      uid,
    };
    this.#byUid.set(uid, (this.#byUid.get(uid) ?? 0) + 1);
    this.#byNodeid.set(inode.nodeid, inode);
    this.#byIno.set(inode.ino, inode);
    this.#journal?.addInode(inode);
    return inode;
  }

  /** Remembers newer attributes of a node that is still current. */
  repin(inode: Inode, node: Node, shownMode: number): void {
    if (inode.pinned.revision === node.revision && inode.pinnedMode === shownMode) return;
    inode.pinned = { ...node, bytes: undefined };
    inode.pinnedMode = shownMode;
    inode.parentIno = node.parentIno;
    inode.name = node.name;
    this.#journal?.repin(inode);
  }

  /** The guest chooses `count`: more than was given only takes all. The root stays. */
  forget(nodeid: number, count: number): void {
    const inode = this.#byNodeid.get(nodeid);
    if (inode === undefined || nodeid === FUSE_ROOT_ID) return;
    inode.lookups -= Math.min(count, inode.lookups);
    this.#journal?.countLookups(inode);
    if (inode.lookups > 0) return;
    this.#journal?.removeInode(inode);
    this.#byNodeid.delete(nodeid);
    const made = this.#byUid.get(inode.uid)! - 1;
    if (made === 0) this.#byUid.delete(inode.uid);
    else this.#byUid.set(inode.uid, made);
    if (this.#byIno.get(inode.ino) === inode) this.#byIno.delete(inode.ino);
  }

  /** Forgets all but the root. */
  clear(root: Node | undefined): void {
    this.#byNodeid.clear();
    this.#byIno.clear();
    this.#byUid.clear();
    if (root === undefined) return;
    const inode: Inode = {
      nodeid: FUSE_ROOT_ID,
      ino: ROOT_INO,
      versioned: false,
      caching: 'mutable',
      pinned: { ...root, bytes: undefined },
      pinnedMode: root.mode,
      parentIno: ROOT_INO,
      name: '',
      lookups: 1,
      record: 0,
      uid: 0,
    };
    this.#byNodeid.set(FUSE_ROOT_ID, inode);
    this.#byIno.set(ROOT_INO, inode);
  }
}
