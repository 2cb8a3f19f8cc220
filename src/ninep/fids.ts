/** What a client holds: fids, each a node for one principal, and what it has open through them. */
import type { Caller, DirectoryHandle, Handle, Node } from '../tree/index.ts';
import { S_IFDIR, S_IFMT } from '../wire/index.ts';

/** An extended attribute that is read piece by piece, or gathered until Tclunk sets it. */
export interface Xattr {
  readonly bytes: Uint8Array;
  /** Undefined: it is read. */
  readonly set: { readonly name: string; readonly flags: number } | undefined;
  /** How many bytes of it were written. */
  written: number;
}

/** Attributes only: a client that walks to every version of a file must not keep their bytes alive. */
const withoutBytes = (node: Node): Node => (node.bytes === undefined ? node : { ...node, bytes: undefined });

export class Fid {
  readonly number: number;
  /** The principal that attached, or that whose fid it was walked from. */
  readonly caller: Caller;
  /** As it was known last, for when it is gone. */
  #node: Node;
  /** `FileSystem.shownMode` of it, which may not be asked for a node that is gone. */
  #mode: number;
  handle: Handle | undefined;
  directory: DirectoryHandle | undefined;
  xattr: Xattr | undefined;
  /** The open file shows its version, whatever the node became. */
  pins = false;
  /**
   * The last Tread of a stream got less than it asked for. Linux asks on until read(2)'s buffer is full, and so would keep
   * from its caller what came: where nothing more is there, EINTR ends that read(2) with what it has. The Tread after it waits.
   */
  readsOn = false;
  /** Opened, and nothing was asked of the open file yet. */
  isFresh = false;
  /** A request that will open it is under way. */
  isOpening = false;

  constructor(number: number, caller: Caller, node: Node, shownMode: number) {
    this.number = number;
    this.caller = caller;
    this.#node = withoutBytes(node);
    this.#mode = shownMode;
  }

  get node(): Node {
    return this.#node;
  }

  get mode(): number {
    return this.#mode;
  }

  get ino(): number {
    return this.#node.ino;
  }

  get isDirectory(): boolean {
    return (this.#mode & S_IFMT) === S_IFDIR;
  }

  /** Opened by Tlopen, Tlcreate or as an attribute, or about to be. */
  get isOpen(): boolean {
    return this.isOpening || this.handle !== undefined || this.directory !== undefined || this.xattr !== undefined;
  }

  /** Remembers newer attributes, or that it stands for another node. */
  become(node: Node, shownMode: number): void {
    if (node.ino === this.#node.ino && node.revision === this.#node.revision && shownMode === this.#mode) return;
    this.#node = withoutBytes(node);
    this.#mode = shownMode;
  }
}

/** A uid's share of the fids. */
const UID_SHARE = 4;

/** Fids by number, which the client chooses; up to a limit. */
export class FidTable {
  readonly #fids = new Map<number, Fid>();
  /** How many each uid has. */
  readonly #byUid = new Map<number, number>();
  readonly #limit: number;
  readonly #xattrLimit: number;
  #xattrBytes = 0;

  constructor(limit: number, xattrBytes: number) {
    this.#limit = limit;
    this.#xattrLimit = xattrBytes;
  }

  get size(): number {
    return this.#fids.size;
  }

  /** Bytes of attributes that fids hold. */
  get xattrBytes(): number {
    return this.#xattrBytes;
  }

  /**
   * True when this uid may have no further one. Of the first half, whoever comes may have what is free; the other half is for
   * uids that have less than a quarter.
   */
  fullFor(uid: number): boolean {
    const { size } = this.#fids;
    if (size < this.#limit / 2) return false;
    return size >= this.#limit || (this.#byUid.get(uid) ?? 0) >= this.#limit / UID_SHARE;
  }

  has(number: number): boolean {
    return this.#fids.has(number);
  }

  get(number: number): Fid | undefined {
    return this.#fids.get(number);
  }

  /** In the place of what had the number. */
  add(fid: Fid): void {
    const old = this.#fids.get(fid.number);
    if (old !== undefined) this.#count(old.caller.uid, -1);
    this.#fids.set(fid.number, fid);
    this.#count(fid.caller.uid, 1);
  }

  hasRoomForXattr(bytes: number): boolean {
    return this.#xattrBytes + bytes <= this.#xattrLimit;
  }

  /** The fid holds an attribute from now on. */
  holdXattr(fid: Fid, xattr: Xattr): void {
    fid.xattr = xattr;
    this.#xattrBytes += xattr.bytes.length;
  }

  remove(fid: Fid): void {
    if (!this.#fids.delete(fid.number)) return;
    this.#count(fid.caller.uid, -1);
    if (fid.xattr !== undefined) this.#xattrBytes -= fid.xattr.bytes.length;
  }

  clear(): void {
    this.#fids.clear();
    this.#byUid.clear();
    this.#xattrBytes = 0;
  }

  #count(uid: number, by: 1 | -1): void {
    const count = (this.#byUid.get(uid) ?? 0) + by;
    if (count > 0) this.#byUid.set(uid, count);
    else this.#byUid.delete(uid);
  }
}
