import {
  EACCES,
  EBADF,
  EEXIST,
  EINTR,
  EINVAL,
  EIO,
  EISDIR,
  ELOOP,
  ENOENT,
  ENOTDIR,
  EPERM,
  ESTALE,
  O_APPEND,
  O_EXCL,
  O_RDONLY,
  O_TRUNC,
  R_OK,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  W_OK,
  X_OK,
} from '../wire/index.ts';
import { isDirectory } from './access.ts';
import { Adoption } from './adoption.ts';
import type { AuditSink } from './audit.ts';
import { Auditor } from './auditor.ts';
import type { Caller, Way } from './caller.ts';
import { ChangeStream } from './change-stream.ts';
import type { Clock } from './clock.ts';
import { type Change, type Delta, withJudgedAnew } from './delta.ts';
import {
  type DirectoryEntry,
  type DirectoryHandle,
  type Done,
  type FileSystem,
  type Handle,
  PENDING,
  type SetAttributes,
  type StatFs,
} from './file-system.ts';
import { Gate } from './gate.ts';
import { Listing } from './listing.ts';
import type { Mutation, Outcome, Upstream } from './mutation.ts';
import { checkName } from './name.ts';
import { type Node, ROOT_INO } from './node.ts';
import { OpenDirectory } from './open-directories.ts';
import { needsTruncation, OpenFile, OpenFiles, openMask } from './open-files.ts';
import type { LeftDirectory, LeftFile, OpenJournal } from './open-journal.ts';
import { type Caching, CHANGES_INO, type Replica } from './replica.ts';
import type { Snapshot } from './snapshot.ts';
import { statFs } from './stat-fs.ts';
import { listedXattrs, xattrOf } from './xattrs.ts';

export interface TreeFileSystemOptions {
  readonly replica: Replica;
  readonly way: Way;
  readonly upstream: Upstream;
  readonly audit: AuditSink;
  readonly vm: string;
  readonly clock: Clock;
  /** What outlives this process. */
  readonly journal?: OpenJournal;
}

const NOTHING = new Uint8Array();

/** `FileSystem` over a replica of the tree: reads are answered here, mutations go upstream. */
export class TreeFileSystem implements FileSystem {
  readonly way: Way;
  readonly #replica: Replica;
  readonly #upstream: Upstream;
  readonly #auditor: Auditor;
  readonly #gate: Gate;
  readonly #clock: Clock;
  readonly #stream: ChangeStream;
  readonly #listeners = new Set<(changes: readonly Change[]) => void>();
  readonly #journal: OpenJournal | undefined;
  #files: OpenFiles;
  readonly #adoption = new Adoption();
  readonly #listing: Listing;
  readonly #stops: readonly (() => void)[];

  constructor(options: TreeFileSystemOptions) {
    this.way = options.way;
    this.#replica = options.replica;
    this.#upstream = options.upstream;
    this.#clock = options.clock;
    this.#auditor = new Auditor(options.vm, options.audit, options.clock.wallMs);
    this.#gate = new Gate(options.way, options.replica, this.#auditor, options.clock);
    const { monotonicMs, wallMs } = options.clock;
    this.#listing = new Listing(options.way, options.replica, this.#gate, options.clock, this.#adoption);
    this.#journal = options.journal;
    this.#files = new OpenFiles(options.journal);
    this.#stream = new ChangeStream(options.replica, options.way, monotonicMs, wallMs, options.journal);
    this.#stops = [
      options.replica.onApply((delta, before) => this.#applied(delta, before)),
      options.replica.unlinked.ask((ino) => this.#files.isOpen(ino)),
    ];
  }

  // --- what a predecessor left ---

  /** Opens what a predecessor had open. The tree is as that one saw it, or as it was a few commits before. */
  adopt(left: LeftFile): Handle {
    return this.#adoption.file(left, this.#replica.snapshot, this.#files);
  }

  adoptDirectory(left: LeftDirectory): DirectoryHandle {
    return this.#adoption.directory(left, this.#files);
  }

  /**
   * The tree has come to where it stands. Tells the authority of every file without a name that nobody has open: a predecessor may
   * not have come to it.
   */
  dropUnlinked(): void {
    this.#adoption.end();
    for (const node of this.#replica.snapshot.nodes.values()) this.#dropIfUnlinked(node.ino);
  }

  /** Leaves the replica. */
  close(): void {
    for (const stop of this.#stops) stop();
    this.reset();
  }

  get revision(): number {
    return this.#replica.snapshot.revision;
  }

  /** Files and directories that are open. */
  get openHandles(): number {
    return this.#files.size;
  }

  node(ino: number): Node | undefined {
    return this.#replica.snapshot.node(ino);
  }

  caching(node: Node): Caching {
    return this.#replica.facts(node).caching;
  }

  shownMode(node: Node): number {
    return this.#replica.facts(node).shownMode;
  }

  lookup(caller: Caller, parentIno: number, name: string): Node | number {
    const { snapshot } = this.#replica;
    const parent = snapshot.node(parentIno);
    if (parent === undefined) return ESTALE;
    if (!isDirectory(parent)) return ENOTDIR;
    if (this.#replica.facts(parent).caching !== 'shared' && !this.#gate.maySearch(parent, caller))
      return this.#gate.denied('lookup', parent, caller, EACCES);
    if (name === '..') return snapshot.node(parent.parentIno) ?? ENOENT;
    if (name === '.') return parent;
    const node = snapshot.child(parentIno, name);
    if (node === undefined) {
      const bad = checkName(name);
      return bad === 0 || bad === EINVAL ? ENOENT : bad;
    }
    return this.#gate.hides(node, caller) ? ENOENT : node;
  }

  getattr(caller: Caller, ino: number): Node | number {
    const node = this.#replica.snapshot.node(ino);
    if (node === undefined) return ESTALE;
    return this.#gate.hides(node, caller) ? ENOENT : node;
  }

  access(caller: Caller, ino: number, mask: number): number {
    const node = this.node(ino);
    return node === undefined ? ESTALE : this.#gate.check('access', node, caller, mask);
  }

  maySearch(caller: Caller, ino: number): boolean {
    const node = this.node(ino);
    return node !== undefined && this.#gate.maySearch(node, caller);
  }

  readlink(caller: Caller, ino: number, version?: Node): Uint8Array | number {
    const node = version ?? this.#replica.snapshot.node(ino);
    if (node === undefined) return ESTALE;
    if ((node.mode & S_IFMT) !== S_IFLNK) return EINVAL;
    const errno = this.#gate.check('readlink', node, caller, R_OK);
    return errno === 0 ? node.bytes! : errno;
  }

  open(caller: Caller, ino: number, flags: number, version?: Node): Handle | number {
    return this.#open(this.way, caller, ino, flags, version);
  }

  #open(way: Way, caller: Caller, ino: number, flags: number, version?: Node): Handle | number {
    const current = this.#replica.unlinked.isLeaving(ino) ? undefined : this.#replica.snapshot.node(ino);
    const node = current ?? version;
    if (node === undefined) return ESTALE;
    const type = node.mode & S_IFMT;
    if (type === S_IFDIR) return EISDIR;
    if (type === S_IFLNK) return ELOOP;
    const mask = openMask(flags);
    const writes = (mask & W_OK) !== 0;
    if (current === undefined && writes) return ENOENT;
    const room = this.#files.room(caller.uid) || (ino === CHANGES_INO ? this.#stream.room(caller.uid) : 0);
    if (room !== 0) return room;
    const errno = this.#gate.check('open', node, caller, mask, way);
    if (errno !== 0) return errno;
    // Rights that came with a newer value are none to the old one.
    const isOld = version !== undefined && version !== node && !writes;
    if (isOld && this.#replica.decide(this.way, version, caller, mask, this.#clock.wallMs()) !== 0)
      return this.#gate.denied('open', version, caller, EACCES);
    const { effective, caching, readsAudited } = this.#replica.facts(node);
    if (writes && effective.writeOnce && node.sizeBytes > 0) return this.#gate.denied('open', node, caller, EPERM);
    // Nobody gets a value that the audit log can't keep the reading of. Burning records itself.
    const recorded = readsAudited && (mask & (R_OK | X_OK)) !== 0;
    if (recorded && !this.#auditor.record(this.way, 'open', this.#replica, node, caller, 0)) return EIO;
    const copy = { ...caller };
    if (version === undefined || version === current || writes) return this.#opened(node, flags, copy, caching);
    const file = this.#opened(version, flags, copy, 'private');
    this.#files.pinsOldVersion(file);
    return file;
  }

  openAgain(caller: Caller, ino: number): Handle | number {
    const node = this.#replica.snapshot.node(ino);
    if (node === undefined) return ESTALE;
    const room = this.#files.room(caller.uid);
    if (room !== 0) return room;
    const file = this.#opened(node, O_RDONLY, { ...caller }, this.#replica.facts(node).caching);
    // Its first read decides.
    file.decidedRevision = -1;
    return file;
  }

  read(handle: Handle, offset: number, sizeBytes: number): Uint8Array | number {
    const file = handle as OpenFile;
    if (!file.open || !file.reads) return EBADF;
    if (sizeBytes === 0) return NOTHING;
    if (file.stream) {
      const bytes = this.#stream.take(file, sizeBytes);
      return bytes.length === 0 ? PENDING : bytes;
    }
    if (file.truncates) return NOTHING;
    if (file.burnt !== undefined) return slice(file.burnt, offset, sizeBytes);
    if (file.stale) return ESTALE;
    if (this.#files.isReleasing(file.ino)) return PENDING;
    const errno = this.#gate.recheck(file, R_OK);
    if (errno !== 0) return errno;
    const node = file.pinned ? file.node : this.#replica.snapshot.node(file.ino);
    if (node === undefined) return ESTALE;
    if (node.burned) return EACCES;
    const bytes = file.bytesOf(node);
    if (bytes === undefined) return offset < node.sizeBytes ? PENDING : NOTHING;
    return slice(bytes, offset, sizeBytes);
  }

  waitRead(handle: Handle, offset: number, sizeBytes: number, done: Done<Uint8Array>): () => void {
    const file = handle as OpenFile;
    if (file.stream) return this.#stream.wait(file, sizeBytes, done);
    let waiting = true;
    const answer: Done<Uint8Array> = (errno, bytes) => {
      if (!waiting) return;
      waiting = false;
      done(errno, bytes);
    };
    if (this.#files.isReleasing(file.ino)) {
      this.#files.onReleased(file.ino, () => {
        const result = waiting ? this.read(file, offset, sizeBytes) : EINTR;
        if (result === PENDING) this.waitRead(file, offset, sizeBytes, answer);
        else if (typeof result === 'number') answer(result, undefined);
        else answer(0, result);
      });
      return () => answer(EINTR, undefined);
    }
    const node = this.#replica.snapshot.node(file.ino);
    if (this.#upstream.fetch !== undefined && node !== undefined && !this.#replica.facts(node).effective.once) {
      this.#upstream.fetch(file.caller, file.ino, (errno, found) => {
        if (errno !== 0 || found === undefined) return answer(errno === 0 ? EIO : errno, undefined);
        if (!file.open) return answer(EBADF, undefined);
        // Opened in an earlier life of this process, at a version that the authority has no more.
        if (file.pinned && found.dataRevision !== file.node.dataRevision) return answer(ESTALE, undefined);
        file.fetched(found.bytes, found.dataRevision);
        return answer(0, slice(found.bytes, offset, sizeBytes));
      });
      return () => answer(EINTR, undefined);
    }
    this.#upstream.submit({ op: 'burn', caller: file.caller, ino: file.ino }, (outcome) => {
      if (outcome.errno === 0 && file.burnt === undefined) {
        file.burnt = outcome.bytes;
        this.#journal?.burn(file);
      }
      // Two reads of one handle may both have asked; the second is told that it is burnt, and has it already.
      if (file.burnt === undefined) answer(outcome.errno, undefined);
      else answer(0, slice(file.burnt, offset, sizeBytes));
    });
    return () => answer(EINTR, undefined);
  }

  readable(handle: Handle): boolean {
    const file = handle as OpenFile;
    return !file.stream || this.#stream.ready(file);
  }

  truncateOnWrite(handle: Handle): void {
    const file = handle as OpenFile;
    const node = this.#replica.snapshot.node(file.ino);
    if (file.writes && node !== undefined && needsTruncation(node)) this.#files.renewTruncation(file);
  }

  pendingTruncation(ino: number): boolean {
    return this.#files.truncating(ino);
  }

  write(handle: Handle, offset: number, data: Uint8Array, done: Done<number>, appends?: boolean): void {
    const file = handle as OpenFile;
    if (!file.open || !file.writes) return done(EBADF, undefined);
    const files = this.#files;
    const truncate = files.takeTruncation(file);
    const append = appends ?? (file.flags & O_APPEND) !== 0;
    const written = data.length;
    this.#upstream.submit(
      { op: 'write', caller: file.caller, ino: file.ino, offset, data, append, truncate, grantedAtOpen: true },
      (outcome) => {
        if (truncate && outcome.errno !== 0) files.renewTruncation(file);
        else if (truncate) this.#journal?.truncated(file);
        files.truncationSettled(file.ino, truncate);
        done(outcome.errno, outcome.errno === 0 ? written : undefined);
      },
    );
  }

  fsync(handle: Handle, done: Done): void {
    this.#truncateNow(handle as OpenFile, done);
  }

  release(handle: Handle, done: Done): void {
    const file = handle as OpenFile;
    if (!file.open) return done(EBADF, undefined);
    if (!file.truncates) return this.#released(file, 0, done);
    const settle = this.#files.releaseTruncates(file.ino);
    this.#truncateNow(file, (errno) => {
      settle();
      this.#released(file, errno, done);
    });
  }

  #released(file: OpenFile, errno: number, done: Done): void {
    if (file.stream) this.#stream.close(file);
    this.#files.remove(file);
    this.#dropIfUnlinked(file.ino);
    done(errno, undefined);
  }

  opendir(caller: Caller, ino: number): DirectoryHandle | number {
    const node = this.#replica.snapshot.node(ino);
    if (node === undefined) return ESTALE;
    if (!isDirectory(node)) return ENOTDIR;
    const room = this.#files.room(caller.uid);
    if (room !== 0) return room;
    const errno = this.#gate.check('opendir', node, caller, R_OK);
    if (errno !== 0) return errno;
    this.#files.addDirectory(ino, caller.uid);
    return new OpenDirectory(ino, { ...caller }, this.#files);
  }

  entry(caller: Caller, directory: DirectoryHandle, index: number): DirectoryEntry | undefined {
    return this.#listing.entry(caller, directory as OpenDirectory, index);
  }

  releasedir(directory: DirectoryHandle): void {
    const open = directory as OpenDirectory;
    if (!open.open) return;
    open.open = false;
    this.#adoption.closed(open);
    open.files.removeDirectory(open.ino, open.caller.uid);
    this.#dropIfUnlinked(open.ino);
  }

  create(
    caller: Caller,
    parentIno: number,
    name: string,
    mode: number,
    umask: number,
    flags: number,
    done: Done<{ readonly node: Node; readonly handle: Handle }>,
  ): void {
    // What an earlier life of this process has made itself is there too: its answer is the authority's to repeat.
    const isResumed = this.#upstream.isResumed?.() === true;
    const there = isResumed ? undefined : this.#replica.snapshot.child(parentIno, name);
    if (there !== undefined && !this.#gate.hides(there, caller)) return this.#createOver(caller, there, flags, done);
    const room = this.#files.room(caller.uid);
    if (room !== 0) return done(room, undefined);
    const creator = { ...caller };
    const files = this.#files;
    this.#upstream.submit({ op: 'create', caller: creator, parentIno, name, mode, umask }, (outcome) => {
      // Reset meanwhile: nobody would ever release the handle.
      if (files !== this.#files) return done(ESTALE, undefined);
      const { snapshot } = this.#replica;
      const node = outcome.errno === 0 ? snapshot.node(outcome.ino) : snapshot.child(parentIno, name);
      if (outcome.errno === EEXIST && node !== undefined) return this.#createOver(creator, node, flags, done);
      if (outcome.errno !== 0 || node === undefined) return done(outcome.errno || ESTALE, undefined);
      done(0, { node, handle: this.#opened(node, flags & ~O_TRUNC, creator, 'mutable') });
    });
  }

  /** The name was there, or somebody else made it first: a kernel that asks for CREATE knew of no file to check. */
  #createOver(
    caller: Caller,
    there: Node,
    flags: number,
    done: Done<{ readonly node: Node; readonly handle: Handle }>,
  ): void {
    if ((flags & O_EXCL) !== 0) return done(EEXIST, undefined);
    const handle = this.#open({ ...this.way, kernelChecks: false }, caller, there.ino, flags);
    if (typeof handle === 'number') return done(handle, undefined);
    done(0, { node: there, handle });
  }

  mkdir(caller: Caller, parentIno: number, name: string, mode: number, umask: number, done: Done<Node>): void {
    this.#make({ op: 'mkdir', caller, parentIno, name, mode, umask }, done);
  }

  symlink(caller: Caller, parentIno: number, name: string, target: Uint8Array, done: Done<Node>): void {
    // The tree keeps it, and the request's buffer is used again.
    this.#make({ op: 'symlink', caller, parentIno, name, target: target.slice() }, done);
  }

  unlink(caller: Caller, parentIno: number, name: string, done: Done): void {
    this.#submit({ op: 'unlink', caller, parentIno, name }, done);
  }

  rmdir(caller: Caller, parentIno: number, name: string, done: Done): void {
    this.#submit({ op: 'rmdir', caller, parentIno, name }, done);
  }

  rename(
    caller: Caller,
    parentIno: number,
    name: string,
    newParentIno: number,
    newName: string,
    flags: number,
    done: Done,
  ): void {
    this.#submit({ op: 'rename', caller, parentIno, name, newParentIno, newName, flags }, done);
  }

  setattr(caller: Caller, ino: number, attributes: SetAttributes, handle: Handle | undefined, done: Done<Node>): void {
    const { sizeBytes, mode, uid, gid, atime, mtime } = attributes;
    const answer: Done = (errno) => {
      const node = errno === 0 ? this.#replica.snapshot.node(ino) : undefined;
      done(errno === 0 && node === undefined ? ESTALE : errno, node);
    };
    const rest =
      mode !== undefined || uid !== undefined || gid !== undefined || atime !== undefined || mtime !== undefined;
    const change: Mutation = {
      op: 'setattr',
      caller: rest ? { ...caller } : caller,
      ino,
      ...(mode === undefined ? {} : { mode }),
      ...(uid === undefined ? {} : { uid }),
      ...(gid === undefined ? {} : { gid }),
      ...(atime === undefined ? {} : { atime }),
      ...(mtime === undefined ? {} : { mtime }),
    };
    if (sizeBytes === undefined) return rest ? this.#submit(change, answer) : answer(0, undefined);
    const file = handle as OpenFile | undefined;
    if (file !== undefined && (!file.open || !file.writes || file.ino !== ino)) return done(EINVAL, undefined);
    const then: Done = (errno) => (errno === 0 && rest ? this.#submit(change, answer) : answer(errno, undefined));
    const truncate: Mutation = {
      op: 'truncate',
      caller: file?.caller ?? { ...caller },
      ino,
      sizeBytes,
      grantedAtOpen: file !== undefined,
    };
    if (file === undefined) return this.#submit(truncate, then);
    this.#truncateNow(file, (errno) => (errno === 0 ? this.#submit(truncate, then) : then(errno, undefined)));
  }

  getxattr(caller: Caller, ino: number, name: string, version?: Node): Uint8Array | number {
    const node = this.#replica.snapshot.node(ino) ?? version;
    if (node === undefined) return ESTALE;
    if (this.#gate.hides(node, caller)) return ENOENT;
    const { wallMs, monotonicMs } = this.#clock;
    return xattrOf(this.#replica, this.way, node, caller, name, wallMs(), monotonicMs());
  }

  listxattr(caller: Caller, ino: number): Uint8Array | number {
    const names = listedXattrs.filter((name) => typeof this.getxattr(caller, ino, name) !== 'number');
    return this.node(ino) === undefined ? ESTALE : encoder.encode(names.map((name) => `${name}\0`).join(''));
  }

  setxattr(caller: Caller, ino: number, name: string, value: Uint8Array, flags: number, done: Done): void {
    this.#submit({ op: 'setxattr', caller, ino, name, value, flags }, done);
  }

  removexattr(caller: Caller, ino: number, name: string, done: Done): void {
    this.#submit({ op: 'removexattr', caller, ino, name }, done);
  }

  statfs(): StatFs {
    return statFs(this.#replica);
  }

  subscribe(listener: (changes: readonly Change[]) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  flushWaiters(): void {
    this.#stream.heartbeat(() => true);
  }

  reset(): void {
    this.#stream.reset();
    const open = new Set<number>();
    for (const ino of this.#files.inos) open.add(ino);
    this.#files.close();
    this.#adoption.reset();
    this.#files = new OpenFiles(this.#journal);
    for (const ino of open) this.#dropIfUnlinked(ino);
  }

  tick(nowMs: number): void {
    this.#stream.heartbeat((waiter) => waiter.deadlineMs <= nowMs);
  }

  nextDeadlineMs(): number {
    return this.#stream.nextDeadlineMs();
  }

  #opened(node: Node, flags: number, caller: Caller, caching: Caching): OpenFile {
    const { revision } = this.#replica.snapshot;
    const file = new OpenFile(node, flags, caller, revision, node.ino === CHANGES_INO, caching !== 'mutable');
    this.#files.add(file);
    if (file.stream) this.#stream.open(file);
    return file;
  }

  #submit(mutation: Mutation, done: Done): void {
    this.#upstream.submit(mutation, (outcome) => done(outcome.errno, undefined));
  }

  #make(mutation: Mutation, done: Done<Node>): void {
    this.#upstream.submit(mutation, (outcome: Outcome) => {
      const node = outcome.errno === 0 ? this.#replica.snapshot.node(outcome.ino) : undefined;
      done(outcome.errno === 0 && node === undefined ? ESTALE : outcome.errno, node);
    });
  }

  #truncateNow(file: OpenFile, done: Done): void {
    if (!file.open) return done(EBADF, undefined);
    const files = this.#files;
    if (!files.takeTruncation(file)) return done(0, undefined);
    this.#submit({ op: 'truncate', caller: file.caller, ino: file.ino, sizeBytes: 0, grantedAtOpen: true }, (errno) => {
      files.truncationSettled(file.ino, true);
      this.#journal?.truncated(file);
      done(errno, undefined);
    });
  }

  #dropIfUnlinked(ino: number): void {
    const node = this.#replica.snapshot.node(ino);
    const { unlinked } = this.#replica;
    if (node === undefined || node.parentIno !== 0 || ino === ROOT_INO || !unlinked.giveUp(ino)) return;
    this.#upstream.submit({ op: 'drop', caller: nobody, ino }, () => unlinked.left(ino));
  }

  #applied(delta: Delta, before: Snapshot): void {
    for (const node of delta.put) {
      const old = before.node(node.ino);
      if (old !== undefined && old.bytes !== node.bytes) this.#files.superseded(node.ino);
      if (node.parentIno === 0) this.#dropIfUnlinked(node.ino);
    }
    for (const ino of delta.remove) this.#files.superseded(ino);
    // A host daemon that is new here can't know which of them we have open.
    if (delta.full)
      for (const { ino, parentIno } of this.#replica.snapshot.nodes.values())
        if (parentIno === 0) this.#dropIfUnlinked(ino);
    this.#adoption.applied(this.#replica.snapshot);
    this.#stream.applied(delta, before);
    if (this.#listeners.size === 0) return;
    const changes = delta.policy === undefined ? delta.changes : withJudgedAnew(delta.changes, this.#replica.snapshot);
    if (changes.length > 0) for (const listener of this.#listeners) listener(changes);
  }
}

const encoder = new TextEncoder();
const nobody: Caller = { uid: 65_534, gid: 65_534, pid: 0 };

function slice(bytes: Uint8Array, offset: number, sizeBytes: number): Uint8Array {
  return offset >= bytes.length ? NOTHING : bytes.subarray(offset, offset + sizeBytes);
}
