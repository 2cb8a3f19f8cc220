/** The open files of one `FileSystem`: caps per VM and uid, versions they pin, pending truncations. */
import { EMFILE, ENFILE, O_ACCMODE, O_RDONLY, O_TRUNC, O_WRONLY } from '../wire/index.ts';
import type { Caller } from './caller.ts';
import type { Handle } from './file-system.ts';
import { UID_SHARE } from './ledger.ts';
import type { Node } from './node.ts';

export const openLimits = {
  /** Files and directories open at once in a VM; a uid may have a quarter. */
  handles: 8192,
  /** Bytes of old versions that only open handles keep; beyond it the oldest version's handles answer ESTALE. */
  oldVersionBytes: 64 * 1024 * 1024,
} as const;

/** One open file. */
export class OpenFile implements Handle {
  readonly ino: number;
  readonly node: Node;
  readonly flags: number;
  readonly stream: boolean;
  /** The opener, by whom every read and write is decided. */
  readonly caller: Caller;
  /** Reads are answered from `node` rather than from the node as it is now. */
  readonly pinned: boolean;
  /** The file was made by this open, which grants what its mode may not. */
  readonly made: boolean;
  /** Takes effect with the first write, fsync or release. */
  truncates: boolean;
  /** Policy and rights of this tree revision have been checked. */
  decidedRevision: number;
  /** The value that burning released to this handle. */
  burnt: Uint8Array | undefined;
  /** Its version was given up because too much was pinned. */
  stale = false;
  /** `/.changes`: last revision that the reader was told of, and what is left of a line that did not fit. */
  toldRevision: number;
  rest: Uint8Array | undefined;
  open = true;

  constructor(
    node: Node,
    flags: number,
    caller: Caller,
    revision: number,
    as: { stream: boolean; pinned: boolean; made: boolean },
  ) {
    this.ino = node.ino;
    this.node = node;
    this.flags = flags;
    this.caller = caller;
    this.stream = as.stream;
    this.pinned = as.pinned;
    this.made = as.made;
    this.truncates = (flags & O_TRUNC) !== 0 && node.sizeBytes > 0;
    this.decidedRevision = revision;
    this.toldRevision = revision;
  }

  get reads(): boolean {
    return (this.flags & O_ACCMODE) !== O_WRONLY;
  }

  get writes(): boolean {
    return (this.flags & O_ACCMODE) !== O_RDONLY;
  }
}

export class OpenFiles {
  readonly #files = new Set<OpenFile>();
  readonly #byIno = new Map<number, Set<OpenFile>>();
  readonly #byUid = new Map<number, number>();
  #directories = 0;
  readonly #truncating = new Map<number, number>();
  /** Old versions that handles pin, oldest first. */
  readonly #oldVersions = new Map<Node, Set<OpenFile>>();
  #oldBytes = 0;

  /** 0, ENFILE when the VM has too many open, EMFILE when the uid has. */
  room(uid: number): number {
    if (this.#files.size + this.#directories >= openLimits.handles) return ENFILE;
    return (this.#byUid.get(uid) ?? 0) >= openLimits.handles / UID_SHARE ? EMFILE : 0;
  }

  add(file: OpenFile): void {
    this.#files.add(file);
    let same = this.#byIno.get(file.ino);
    if (same === undefined) this.#byIno.set(file.ino, (same = new Set()));
    same.add(file);
    this.#count(file.caller.uid, 1);
    if (file.truncates) this.#truncating.set(file.ino, (this.#truncating.get(file.ino) ?? 0) + 1);
  }

  remove(file: OpenFile): void {
    if (!this.#files.delete(file)) return;
    file.open = false;
    const same = this.#byIno.get(file.ino)!;
    same.delete(file);
    if (same.size === 0) this.#byIno.delete(file.ino);
    this.#count(file.caller.uid, -1);
    this.settleTruncation(file);
    const pinning = this.#oldVersions.get(file.node);
    if (pinning?.delete(file) === true && pinning.size === 0) this.#forget(file.node);
  }

  addDirectory(uid: number): void {
    this.#directories++;
    this.#count(uid, 1);
  }

  removeDirectory(uid: number): void {
    this.#directories--;
    this.#count(uid, -1);
  }

  /** The file's truncation has taken effect, or never will. */
  settleTruncation(file: OpenFile): void {
    if (!file.truncates) return;
    file.truncates = false;
    const left = this.#truncating.get(file.ino)! - 1;
    if (left === 0) this.#truncating.delete(file.ino);
    else this.#truncating.set(file.ino, left);
  }

  truncating(ino: number): boolean {
    return this.#truncating.size > 0 && this.#truncating.has(ino);
  }

  isOpen(ino: number): boolean {
    return this.#byIno.has(ino);
  }

  /** A node has become another: handles that pin the old one now keep its bytes alive by themselves. */
  superseded(ino: number): void {
    const files = this.#byIno.get(ino);
    if (files === undefined) return;
    for (const file of files) this.pinsOldVersion(file);
  }

  /** The version that this file pins is not the node as it is now. */
  pinsOldVersion(file: OpenFile): void {
    if (!file.pinned || file.stale) return;
    let pinning = this.#oldVersions.get(file.node);
    if (pinning === undefined) {
      this.#oldVersions.set(file.node, (pinning = new Set()));
      this.#oldBytes += file.node.sizeBytes;
    }
    pinning.add(file);
    while (this.#oldBytes > openLimits.oldVersionBytes) {
      const [oldest, pinning] = this.#oldVersions.entries().next().value!;
      for (const stale of pinning) stale.stale = true;
      this.#forget(oldest);
    }
  }

  get size(): number {
    return this.#files.size + this.#directories;
  }

  get all(): Iterable<OpenFile> {
    return this.#files;
  }

  #forget(version: Node): void {
    this.#oldVersions.delete(version);
    this.#oldBytes -= version.sizeBytes;
  }

  #count(uid: number, by: 1 | -1): void {
    const count = (this.#byUid.get(uid) ?? 0) + by;
    if (count === 0) this.#byUid.delete(uid);
    else this.#byUid.set(uid, count);
  }
}
