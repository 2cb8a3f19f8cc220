/** The tree in the guest: what everybody may read is answered here, all else is decided by the server, by who asks. */
import {
  type Caller,
  CHANGES_NAME,
  type Clock,
  type DirectoryHandle,
  type Done,
  type Handle,
  isDirectory,
  type Node,
  type OpenFile,
  type OpenJournal,
  openMask,
  PENDING,
  type Replica,
  TreeFileSystem,
  type Upstream,
  ways,
} from '../tree/index.ts';
import { EIO, O_EXCL, O_TRUNC, R_OK, S_IFMT, S_IFREG, W_OK, X_OK } from '../wire/index.ts';
import type { Question, Remote } from './remote.ts';
import { bytesOf } from './told-tree.ts';
import { bareCaller } from './who.ts';

export interface AgentFileSystemOptions {
  readonly replica: Replica;
  readonly remote: Remote;
  /** Where changes and missing values are asked for: `remote`, by way of what notes them down. */
  readonly upstream: Upstream;
  readonly journal?: OpenJournal | undefined;
  readonly vm: string;
  readonly clock: Clock;
}

/**
 * Both sides decide what the server is asked for: it has the last word, and search permission on every directory above is
 * looked at here too. Denials and reads that are recorded are so at the server.
 */
export class AgentFileSystem extends TreeFileSystem {
  readonly #replica: Replica;
  readonly #remote: Remote;
  readonly #upstream: Upstream;

  constructor({ replica, remote, upstream, journal, vm, clock }: AgentFileSystemOptions) {
    super({ replica, way: ways.agent, upstream, audit: () => true, vm, clock, ...(journal && { journal }) });
    this.#replica = replica;
    this.#remote = remote;
    this.#upstream = upstream;
  }

  /** Whether everybody may do `mask` to it, at any time. */
  #isForAll(node: Node, mask: number): boolean {
    const { caching, readableByAll } = this.#replica.facts(node);
    if ((mask & W_OK) !== 0) return false;
    const canSearch = isDirectory(node) && caching === 'shared';
    return ((mask & X_OK) === 0 || canSearch) && ((mask & R_OK) === 0 || readableByAll);
  }

  /** It is for all, and so its bytes are here; or it is no file that could be opened. */
  #opensHere(node: Node | undefined, flags: number): boolean {
    if (node === undefined || (node.mode & S_IFMT) !== S_IFREG || this.#isChanges(node)) return true;
    return node.bytes !== undefined && this.#isForAll(node, openMask(flags));
  }

  #isChanges(node: Node): boolean {
    return node.parentIno === 1 && node.name === CHANGES_NAME;
  }

  override access(caller: Caller, ino: number, mask: number): number {
    const node = this.node(ino);
    return node === undefined || this.#isForAll(node, mask) ? super.access(caller, ino, mask) : PENDING;
  }

  waitAccess(caller: Caller, ino: number, mask: number, done: Done): void {
    this.#decide('access', { caller: { ...caller }, node: ino, mask }, done);
  }

  override readlink(caller: Caller, ino: number, version?: Node): Uint8Array | number {
    const node = version ?? this.node(ino);
    return node === undefined || node.bytes !== undefined ? super.readlink(caller, ino, version) : PENDING;
  }

  waitReadlink(caller: Caller, ino: number, _version: Node | undefined, done: Done<Uint8Array>): void {
    this.#remote.ask('readlink', { caller: { ...caller }, node: ino }, (answer) => {
      if (typeof answer === 'number') return done(answer, undefined);
      return typeof answer['bytes'] === 'string' ? done(0, bytesOf(answer['bytes'])) : done(EIO, undefined);
    });
  }

  override open(caller: Caller, ino: number, flags: number, version?: Node): Handle | number {
    const node = this.node(ino);
    if (!this.#opensHere(node, flags)) return PENDING;
    const isShared = node !== undefined && this.#replica.facts(node).caching === 'shared';
    return super.open(isShared ? bareCaller(caller) : caller, ino, flags, version);
  }

  waitOpen(caller: Caller, ino: number, flags: number, version: Node | undefined, done: Done<Handle>): void {
    const opener = { ...caller };
    const mask = openMask(flags);
    const writes = (mask & W_OK) !== 0;
    const access = !writes ? 'read' : (mask & ~W_OK) === 0 ? 'write' : 'read-write';
    this.#remote.ask('open', { caller: opener, node: ino, access }, (answer) => {
      if (typeof answer === 'number') return done(answer, undefined);
      const { revision, bytes, node } = answer;
      const dataRevision = (node as { readonly dataRevision?: unknown } | undefined)?.dataRevision;
      if (!Number.isSafeInteger(revision) || !Number.isSafeInteger(dataRevision)) return done(EIO, undefined);
      if (bytes !== undefined && typeof bytes !== 'string') return done(EIO, undefined);
      return this.#remote.whenApplied(revision as number, () => {
        const handle = super.open(opener, ino, flags, version);
        if (typeof handle === 'number') return done(handle, undefined);
        // What was before a truncation is read no more.
        if (bytes !== undefined && (flags & O_TRUNC) === 0)
          (handle as OpenFile).fetched(bytesOf(bytes), dataRevision as number);
        return done(0, handle);
      });
    });
  }

  override create(
    caller: Caller,
    parentIno: number,
    name: string,
    mode: number,
    umask: number,
    flags: number,
    done: Done<{ readonly node: Node; readonly handle: Handle }>,
  ): void {
    const isAnew = (flags & O_EXCL) !== 0 || this.#upstream.isResumed?.() === true;
    const there = isAnew ? 0 : this.lookup(caller, parentIno, name);
    if (typeof there === 'number' || this.#opensHere(there, flags))
      return super.create(caller, parentIno, name, mode, umask, flags, done);
    return this.waitOpen(caller, there.ino, flags, undefined, (errno, handle) =>
      handle === undefined ? done(errno, undefined) : done(0, { node: there, handle }),
    );
  }

  override opendir(caller: Caller, ino: number): DirectoryHandle | number {
    const node = this.node(ino);
    const isHere = node === undefined || !isDirectory(node) || this.#isForAll(node, R_OK);
    return isHere ? super.opendir(caller, ino) : PENDING;
  }

  waitOpendir(caller: Caller, ino: number, done: Done<DirectoryHandle>): void {
    const opener = { ...caller };
    this.#decide('access', { caller: opener, node: ino, mask: R_OK }, (errno) => {
      const directory = errno === 0 ? super.opendir(opener, ino) : errno;
      if (typeof directory === 'number') done(directory, undefined);
      else done(0, directory);
    });
  }

  #decide(operation: string, input: Question, done: Done): void {
    this.#remote.ask(operation, input, (answer) => done(typeof answer === 'number' ? answer : 0, undefined));
  }
}
