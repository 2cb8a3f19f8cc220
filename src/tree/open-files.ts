/** The open files of one `FileSystem`: caps per VM and uid, versions they pin, pending truncations. */
import { EMFILE, ENFILE, O_ACCMODE, O_RDONLY, O_TRUNC, O_WRONLY, R_OK, W_OK, X_OK } from '../wire/index.ts';
import type { Caller } from './caller.ts';
import type { Handle } from './file-system.ts';
import { UID_SHARE } from './ledger.ts';
import type { Node } from './node.ts';
import type { OpenJournal } from './open-journal.ts';

export const openLimits = {
  /** Files and directories open at once in a VM; a uid may have a quarter. */
  handles: 8192,
  /** Bytes of old versions that only open handles keep; beyond it the oldest version's handles answer ESTALE. */
  oldVersionBytes: 64 * 1024 * 1024,
} as const;

/** One open file. */
export class OpenFile implements Handle {
  readonly ino: number;
  readonly flags: number;
  readonly stream: boolean;
  /** The opener, by whom every read and write is decided. */
  readonly caller: Caller;
  /** Reads are answered from `node` rather than from the node as it is now. */
  readonly pinned: boolean;
  /** Takes effect with the first write, fsync or release. */
  truncates: boolean;
  /** Policy and rights of this tree revision have been checked. */
  decidedRevision: number;
  /** The value that burning released to this handle. */
  burnt: Uint8Array | undefined;
  /** Bytes that are not in this replica, as they were fetched for this handle, at which `dataRevision`. */
  #fetched: Uint8Array | undefined;
  #fetchedRevision = 0;
  /** Its version was given up because too much was pinned. */
  stale = false;
  #node: Node;
  /** `/.changes`: last revision that the reader was told of, and what is left of a line that did not fit. */
  toldRevision: number;
  rest: Uint8Array | undefined;
  open = true;
  /** Where the journal keeps it; 0: nowhere. */
  record = 0;
  /** Neighbours among the open files of the same ino, which `OpenFiles` keeps. */
  previous: OpenFile | undefined;
  next: OpenFile | undefined;

  /** `caller` is kept. What is not pinned keeps no bytes alive: a guest could pin a version with each handle. */
  constructor(node: Node, flags: number, caller: Caller, revision: number, stream: boolean, pinned: boolean) {
    this.ino = node.ino;
    this.#node = pinned || node.bytes === undefined ? node : { ...node, bytes: undefined };
    this.flags = flags;
    this.caller = caller;
    this.stream = stream;
    this.pinned = pinned;
    this.truncates = (flags & O_TRUNC) !== 0 && needsTruncation(node);
    this.decidedRevision = revision;
    this.toldRevision = revision;
    this.burnt = undefined;
    this.rest = undefined;
    this.previous = undefined;
    this.next = undefined;
  }

  get node(): Node {
    return this.#node;
  }

  /** Its version, which was not known when a successor opened it. */
  find(node: Node): void {
    this.stale = false;
    this.#node = node;
  }

  /** Lets the bytes of its version go. */
  giveUp(): void {
    this.stale = true;
    this.#node = { ...this.#node, bytes: undefined };
  }

  /** Keeps what was fetched for it until it is closed. The bytes become this handle's: they are wiped then. */
  fetched(bytes: Uint8Array, dataRevision: number): void {
    this.dropFetched();
    this.#fetched = bytes;
    this.#fetchedRevision = dataRevision;
  }

  dropFetched(): void {
    this.#fetched?.fill(0);
    this.#fetched = undefined;
  }

  /** What this handle reads of a node: of one that guests write, what was fetched holds for that version only. */
  bytesOf(node: Node): Uint8Array | undefined {
    if (node.bytes !== undefined) return node.bytes;
    return this.pinned || this.#fetchedRevision === node.dataRevision ? this.#fetched : undefined;
  }

  get reads(): boolean {
    return (this.flags & O_ACCMODE) !== O_WRONLY;
  }

  get writes(): boolean {
    return (this.flags & O_ACCMODE) !== O_RDONLY;
  }
}

/** Keys that the maps by ino and by uid keep when nothing is open any more: adding and deleting a key allocates. */
const KEYS_KEPT = 256;

/** A guest's empty file gets a new time by it. The outside's times tell when bytes changed. */
export const needsTruncation = (node: Node): boolean => node.sizeBytes > 0 || node.madeBy === 'guest';

/** What is open in one file system, counted by uid, with the truncations and old versions that hang on it. */
export class OpenFiles {
  /** The open files of each ino, each a list by `next`: opening allocates nothing but the handle. */
  readonly #byIno = new Map<number, OpenFile | undefined>();
  readonly #byUid = new Map<number, number>();
  /** How many handles each open directory has. */
  readonly #directories = new Map<number, number>();
  #count = 0;
  /** How many truncations of an ino are pending, or sent upstream and not answered. */
  readonly #truncating = new Map<number, number>();
  /** Whom to tell when the truncation that a release has sent upstream is answered, by ino. */
  readonly #releasing = new Map<number, Set<() => void>>();
  /** Old versions that handles pin, oldest first. */
  readonly #oldVersions = new Map<Node, Set<OpenFile>>();
  #oldBytes = 0;
  readonly #journal: OpenJournal | undefined;

  constructor(journal?: OpenJournal) {
    this.#journal = journal;
  }

  /** 0, ENFILE when the VM has too many open, EMFILE when the uid has. */
  room(uid: number): number {
    if (this.#count >= openLimits.handles) return ENFILE;
    return (this.#byUid.get(uid) ?? 0) >= openLimits.handles / UID_SHARE ? EMFILE : 0;
  }

  add(file: OpenFile): void {
    const first = this.#byIno.get(file.ino);
    if (first !== undefined) {
      file.next = first;
      first.previous = file;
    }
    this.#byIno.set(file.ino, file);
    this.#add(file.caller.uid, 1);
    if (file.truncates) addCount(this.#truncating, file.ino, 1);
  }

  remove(file: OpenFile): void {
    if (!file.open) return;
    file.open = false;
    file.dropFetched();
    const { previous, next } = file;
    if (next !== undefined) next.previous = previous;
    if (previous !== undefined) previous.next = next;
    else if (next !== undefined || this.#byIno.size <= KEYS_KEPT) this.#byIno.set(file.ino, next);
    else this.#byIno.delete(file.ino);
    this.#add(file.caller.uid, -1);
    this.truncationSettled(file.ino, this.takeTruncation(file));
    if (this.#oldVersions.size === 0) return;
    const pinning = this.#oldVersions.get(file.node);
    if (pinning?.delete(file) === true && pinning.size === 0) this.#forget(file.node);
  }

  /** Ends all handles. Nothing may be added afterwards. */
  close(): void {
    for (const file of inOrder(this.#byIno.values())) {
      file.open = false;
      file.truncates = false;
      file.dropFetched();
    }
    this.#releasing.clear();
  }

  addDirectory(ino: number, uid: number): void {
    this.#add(uid, 1);
    addCount(this.#directories, ino, 1);
  }

  removeDirectory(ino: number, uid: number): void {
    this.#add(uid, -1);
    addCount(this.#directories, ino, -1);
  }

  /** The file's truncation goes upstream, if one is pending: true, and `truncationSettled` is due when it is answered. */
  takeTruncation(file: OpenFile): boolean {
    const taken = file.truncates;
    file.truncates = false;
    return taken;
  }

  /** What `takeTruncation` took has taken effect, or never will. */
  truncationSettled(ino: number, taken: boolean): void {
    if (taken) addCount(this.#truncating, ino, -1);
  }

  /** The write that was to bring the truncation was refused: it is pending again. */
  renewTruncation(file: OpenFile): void {
    if (!file.open || file.truncates) return;
    file.truncates = true;
    addCount(this.#truncating, file.ino, 1);
  }

  truncating(ino: number): boolean {
    return this.#truncating.size > 0 && this.#truncating.has(ino);
  }

  /** A release has sent a truncation upstream: who opened after that close(2) may not see what was there before. */
  releaseTruncates(ino: number): () => void {
    const waiting = this.#releasing.get(ino) ?? new Set();
    this.#releasing.set(ino, waiting);
    return () => {
      if (this.#releasing.get(ino) !== waiting) return;
      this.#releasing.delete(ino);
      for (const wake of waiting) wake();
    };
  }

  isReleasing(ino: number): boolean {
    return this.#releasing.size > 0 && this.#releasing.has(ino);
  }

  /** Calls `wake` when that truncation is answered. */
  onReleased(ino: number, wake: () => void): void {
    this.#releasing.get(ino)?.add(wake);
  }

  isOpen(ino: number): boolean {
    return this.#byIno.get(ino) !== undefined || this.#directories.has(ino);
  }

  /** A node has become another: handles that pin the old one now keep its bytes alive by themselves. */
  superseded(ino: number): void {
    for (let file = this.#byIno.get(ino); file !== undefined; file = file.next) this.pinsOldVersion(file);
  }

  /** The version that this file pins is not the node as it is now. */
  pinsOldVersion(file: OpenFile): void {
    if (!file.pinned || file.stale) return;
    let pinning = this.#oldVersions.get(file.node);
    if (pinning === undefined) {
      this.#oldVersions.set(file.node, (pinning = new Set()));
      this.#oldBytes += file.node.sizeBytes;
      this.#journal?.keepVersion(file.node);
    }
    pinning.add(file);
    while (this.#oldBytes > openLimits.oldVersionBytes) {
      const [oldest, pinning] = this.#oldVersions.entries().next().value!;
      for (const stale of pinning) {
        stale.giveUp();
        this.#journal?.giveUp(stale);
      }
      this.#forget(oldest);
    }
  }

  get size(): number {
    return this.#count;
  }

  /** Of all files and directories that are open. */
  get inos(): Iterable<number> {
    const files = [...this.#byIno].flatMap(([ino, first]) => (first === undefined ? [] : [ino]));
    return [...files, ...this.#directories.keys()];
  }

  /** Bytes of old versions that only handles keep. */
  get oldVersionBytes(): number {
    return this.#oldBytes;
  }

  #forget(version: Node): void {
    this.#journal?.forgetVersion(version);
    this.#oldVersions.delete(version);
    this.#oldBytes -= version.sizeBytes;
  }

  #add(uid: number, by: 1 | -1): void {
    this.#count += by;
    const count = (this.#byUid.get(uid) ?? 0) + by;
    if (count > 0 || this.#byUid.size <= KEYS_KEPT) this.#byUid.set(uid, count);
    else this.#byUid.delete(uid);
  }
}

function addCount(counts: Map<number, number>, key: number, by: 1 | -1): void {
  const count = (counts.get(key) ?? 0) + by;
  if (count === 0) counts.delete(key);
  else counts.set(key, count);
}

function* inOrder(firsts: Iterable<OpenFile | undefined>): Generator<OpenFile> {
  for (const first of firsts) for (let file = first; file !== undefined; file = file.next) yield file;
}

/** execve(2) opens with this flag, which only a kernel can set (`__FMODE_EXEC`, linux/fs.h). */
const FMODE_EXEC = 0x20;

/** What open(2) flags ask for: R_OK, W_OK, or X_OK of execve(2), which reads what it may execute. */
export function openMask(flags: number): number {
  const access = flags & O_ACCMODE;
  const mask = access === O_RDONLY ? R_OK : access === O_WRONLY ? W_OK : R_OK | W_OK;
  const base = (flags & FMODE_EXEC) !== 0 ? X_OK : mask;
  return (flags & O_TRUNC) !== 0 ? base | W_OK : base;
}
