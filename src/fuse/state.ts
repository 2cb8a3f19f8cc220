/** What the handlers of one session share: the request being handled, the tables, and the ways to answer. */
import type { Caching, Caller, Clock, FileSystem, Node } from '../tree/index.ts';
import { EIO, ESTALE, S_IFMT, S_IFREG } from '../wire/index.ts';
import * as abi from './abi.ts';
import type { Exchange, HeldExchange } from './exchange.ts';
import { HandleTable, type OpenFile } from './handles.ts';
import type { FlagMask } from './init-flags.ts';
import { type Inode, InodeTable, isCurrent } from './inodes.ts';
import type { LeftSession, SessionJournal } from './journal.ts';
import { Retries } from './retries.ts';

/** Bytes of `fuse_in_header`: where a request's body starts. */
export const BODY = abi.InHeader.sizeBytes;
/** Bytes of `fuse_out_header`: where a reply's body starts. */
export const REPLY = abi.OutHeader.sizeBytes;
/** The most that READDIR and READDIRPLUS put into one reply; the kernel asks again. */
export const DIRECTORY_BYTES = 64 * 1024;

const ATTR_IN_ENTRY = abi.EntryOut.attr.offset;
const ATTR_IN_ATTR = abi.AttrOut.attr.offset;
const BLOCK_BYTES = 512;
const TWO_32 = 2 ** 32;
/** How many INTERRUPTs that came before their request are remembered. */
const EARLY_INTERRUPTS = 64;

/** `fuse_attr.ino` and times; bytes read as they are shown in stat(2). */
const PREFERRED_IO_BYTES = 4096;

interface StateOptions {
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
  /** How long the kernel may keep names and attributes that are the same for all. */
  readonly sharedTtlSeconds: number;
  /** INIT flags to take when they are offered. */
  readonly taken: FlagMask;
  readonly log: (message: string) => void;
  readonly maxInodes: number;
  readonly maxHandles: number;
  readonly journal: SessionJournal | undefined;
  readonly caller: CallerRegister | undefined;
}

/** A read that waits, for INTERRUPT and for the end of its handle. */
export interface WaitingRead {
  readonly fh: number;
  readonly pending: PendingReply;
  cancel: () => void;
}

type Answerable = Exchange | HeldExchange;

/** Written over for every request. */
export interface CallerRegister extends Caller {
  uid: number;
  gid: number;
  pid: number;
}

export class SessionState {
  readonly fileSystem: FileSystem;
  readonly clock: Clock;
  readonly sharedTtlSeconds: number;
  readonly taken: FlagMask;
  readonly log: (message: string) => void;
  readonly #journal: SessionJournal | undefined;
  readonly caller: CallerRegister;
  readonly inodes: InodeTable;
  readonly handles: HandleTable;
  readonly waits = new Map<number, WaitingRead>();
  /** Uniques whose INTERRUPT came first. */
  readonly interrupted = new Set<number>();
  /** Opens that were answered ESTALE and are being tried again. */
  readonly retries = new Retries();
  /** Files whose poll handle waits for a wake-up. */
  readonly polled = new Set<OpenFile>();
  /** Opens whose bytes the kernel may keep, and opens that always ask. */
  opensCached = 0;
  opensDirect = 0;
  /** Answers that came after their transport was gone, and were not given. */
  droppedReplies = 0;
  #initialized = false;
  /** Rises with every INIT, DESTROY and reset: what began in an earlier life has nothing to do with the tables any more. */
  life = 0;
  /** Rises when the transport is gone: what began before is not answered at all. */
  connection = 0;

  /** The reply under construction; `fuse_out_header` first. */
  readonly head = new Uint8Array(REPLY + DIRECTORY_BYTES);
  readonly out = new DataView(this.head.buffer);
  readonly headText = Buffer.from(this.head.buffer);

  // The request being handled.
  exchange!: Exchange;
  view!: DataView;
  bytes!: Uint8Array;
  /** Where the body ends, extensions not included. */
  end = 0;
  nodeid = 0;
  uniqueLo = 0;
  uniqueHi = 0;
  /** Of `nodeid`, for operations that need one. */
  inode!: Inode;
  answered = false;
  pending: PendingReply | undefined;

  constructor(options: StateOptions) {
    this.fileSystem = options.fileSystem;
    this.clock = options.clock;
    this.sharedTtlSeconds = options.sharedTtlSeconds;
    this.taken = options.taken;
    this.log = options.log;
    this.caller = options.caller ?? { uid: 0, gid: 0, pid: 0 };
    this.#journal = options.journal;
    this.inodes = new InodeTable(options.maxInodes, options.journal);
    this.handles = new HandleTable(options.maxHandles, options.journal);
  }

  get initialized(): boolean {
    return this.#initialized;
  }

  set initialized(is: boolean) {
    this.#initialized = is;
    this.#journal?.initialize(is);
  }

  /** Somebody waits in poll(2) for the file, or is woken. */
  poll(file: OpenFile, isAwaited: boolean): void {
    if (isAwaited) this.polled.add(file);
    else if (!this.polled.delete(file)) return;
    this.#journal?.poll(file, isAwaited);
  }

  /** Goes on as a predecessor left it. */
  restore(left: LeftSession): void {
    this.inodes.clear(this.fileSystem.node(abi.FUSE_ROOT_ID));
    this.inodes.restore(left.inodes, left.nextNodeid);
    this.handles.restore(left.files, left.directories, left.nextFh);
    for (const file of left.polled) this.polled.add(file);
    this.#initialized = left.isInitialized;
  }

  /** The request's unique as a key; exact for every kernel, which counts upwards from small numbers. */
  get unique(): number {
    return this.uniqueLo + this.uniqueHi * TWO_32;
  }

  /** Bytes of reply body that the guest has room for. */
  get room(): number {
    return this.exchange.replyCapacity - REPLY;
  }

  /** Answers with `bodyBytes` of body that stand in `head`, and `payload`. Returns 0, for handlers to return. */
  reply(bodyBytes: number, payload?: Uint8Array): 0 {
    this.answered = true;
    this.send(this.exchange, this.uniqueLo, this.uniqueHi, bodyBytes, payload);
    return 0;
  }

  error(errno: number): void {
    this.answered = true;
    this.sendError(this.exchange, this.uniqueLo, this.uniqueHi, errno);
  }

  noReply(): 0 {
    this.answered = true;
    this.exchange.noReply();
    return 0;
  }

  /** The answer comes through what this returns, before the handler returns or later. */
  later(): PendingReply {
    this.pending = new PendingReply(this);
    return this.pending;
  }

  /** What does not fit is answered EIO: never a reply that is longer than the guest has room for. */
  send(to: Answerable, uniqueLo: number, uniqueHi: number, bodyBytes: number, payload?: Uint8Array): void {
    const length = REPLY + bodyBytes + (payload === undefined ? 0 : payload.length);
    if (length > to.replyCapacity) {
      this.sendError(to, uniqueLo, uniqueHi, EIO);
      return;
    }
    this.#header(length, 0, uniqueLo, uniqueHi);
    to.reply(this.head, REPLY + bodyBytes, payload);
  }

  sendError(to: Answerable, uniqueLo: number, uniqueHi: number, errno: number): void {
    if (to.replyCapacity < REPLY) {
      to.noReply();
      return;
    }
    this.#header(REPLY, -errno, uniqueLo, uniqueHi);
    to.reply(this.head, REPLY);
  }

  #header(length: number, error: number, uniqueLo: number, uniqueHi: number): void {
    abi.OutHeader.len.set(this.out, 0, length);
    abi.OutHeader.error.set(this.out, 0, error);
    this.out.setUint32(abi.OutHeader.unique.offset, uniqueLo, true);
    this.out.setUint32(abi.OutHeader.unique.offset + 4, uniqueHi, true);
  }

  rememberInterrupt(unique: number): void {
    if (this.interrupted.size >= EARLY_INTERRUPTS)
      for (const oldest of this.interrupted) {
        this.interrupted.delete(oldest);
        break;
      }
    this.interrupted.add(unique);
  }

  /** The request at hand is answered ESTALE: the same thread's next LOOKUPs are the kernel's second try. */
  expectRetry(): typeof ESTALE {
    this.retries.expect(this.caller, this.clock.monotonicMs());
    return ESTALE;
  }

  /** The version that this thread's second try looked up as `nodeid`, if that is what it looked up last. */
  lookedUpAgain(nodeid: number): Node | undefined {
    if (this.retries.size === 0) return undefined;
    const retry = this.retries.get(this.caller.pid, this.clock.monotonicMs());
    return retry?.nodeid === nodeid ? retry.node : undefined;
  }

  /**
   * The same at OPEN, which ends the retry. A second try that looked nothing up came by a file that is open,
   * `/proc/self/fd/N`, and there is no newer one to go to: it gets what that file has.
   */
  retried(inode: Inode): Node | undefined {
    if (this.retries.size === 0) return undefined;
    const { pid } = this.caller;
    const retry = this.retries.get(pid, this.clock.monotonicMs());
    this.retries.delete(pid);
    if (retry === undefined) return undefined;
    if (retry.nodeid !== 0) return retry.nodeid === inode.nodeid ? retry.node : undefined;
    return this.handles.version(inode.ino, inode.pinned.dataRevision);
  }

  ttlSeconds(caching: Caching): number {
    return caching === 'shared' ? this.sharedTtlSeconds : 0;
  }

  /** Writes `fuse_entry_out` at `base` of the reply and counts the lookup, for `uid`. False when the kernel holds too many nodeids. */
  entry(base: number, node: Node, uid: number): boolean {
    const caching = this.fileSystem.caching(node);
    const mode = this.fileSystem.shownMode(node);
    const inode = this.inodes.reference(node, caching, mode, uid);
    if (inode === undefined) return false;
    const ttl = this.ttlSeconds(caching);
    const { out } = this;
    abi.EntryOut.nodeid.set(out, base, inode.nodeid);
    abi.EntryOut.generation.set(out, base, 0);
    abi.EntryOut.entryValid.set(out, base, ttl);
    abi.EntryOut.attrValid.set(out, base, ttl);
    abi.EntryOut.entryValidNsec.set(out, base, 0);
    abi.EntryOut.attrValidNsec.set(out, base, 0);
    this.#attr(base + ATTR_IN_ENTRY, node, mode, node.nlink);
    return true;
  }

  /** Writes `fuse_attr_out` of the node as it is now, or as it was when the nodeid's version was current. */
  attributes(inode: Inode, node: Node | undefined): void {
    const { out } = this;
    abi.AttrOut.attrValidNsec.set(out, REPLY, 0);
    abi.AttrOut.dummy.set(out, REPLY, 0);
    const caching = node === undefined ? undefined : this.fileSystem.caching(node);
    if (node !== undefined && caching !== undefined && isCurrent(inode, node, caching)) {
      const mode = this.fileSystem.shownMode(node);
      this.inodes.repin(inode, node, mode);
      abi.AttrOut.attrValid.set(out, REPLY, this.ttlSeconds(caching));
      this.#attr(REPLY + ATTR_IN_ATTR, node, mode, node.nlink);
      return;
    }
    abi.AttrOut.attrValid.set(out, REPLY, 0);
    this.#attr(REPLY + ATTR_IN_ATTR, inode.pinned, inode.pinnedMode, node === undefined ? 0 : inode.pinned.nlink);
  }

  #attr(base: number, node: Node, mode: number, nlink: number): void {
    const { out } = this;
    const sizeBytes = (mode & S_IFMT) === S_IFREG && this.fileSystem.pendingTruncation(node.ino) ? 0 : node.sizeBytes;
    abi.Attr.ino.set(out, base, node.ino);
    abi.Attr.size.set(out, base, sizeBytes);
    abi.Attr.blocks.set(out, base, Math.ceil(sizeBytes / BLOCK_BYTES));
    abi.Attr.atime.set(out, base, node.atime.sec);
    abi.Attr.mtime.set(out, base, node.mtime.sec);
    abi.Attr.ctime.set(out, base, node.ctime.sec);
    abi.Attr.atimensec.set(out, base, node.atime.nsec);
    abi.Attr.mtimensec.set(out, base, node.mtime.nsec);
    abi.Attr.ctimensec.set(out, base, node.ctime.nsec);
    abi.Attr.mode.set(out, base, mode);
    abi.Attr.nlink.set(out, base, nlink);
    abi.Attr.uid.set(out, base, node.uid);
    abi.Attr.gid.set(out, base, node.gid);
    abi.Attr.rdev.set(out, base, 0);
    abi.Attr.blksize.set(out, base, PREFERRED_IO_BYTES);
    abi.Attr.flags.set(out, base, 0);
  }

  /** Ends this life of the session: handles, lookups, waiting reads. `answer`: the kernel still waits for what is held. */
  forgetEverything(answer: boolean): void {
    this.life++;
    if (!answer) this.connection++;
    for (const { pending } of this.waits.values()) pending.fail(EIO);
    this.waits.clear();
    this.interrupted.clear();
    this.polled.clear();
    this.retries.clear();
    this.#journal?.wipe();
    this.handles.clear();
    this.fileSystem.reset();
    this.inodes.clear(this.fileSystem.node(abi.FUSE_ROOT_ID));
  }
}

/** The answer of a request that may outlast its handler. Answers once; what comes later is dropped. */
export class PendingReply {
  readonly #state: SessionState;
  readonly #uniqueLo: number;
  readonly #uniqueHi: number;
  readonly #life: number;
  readonly #connection: number;
  #to: Answerable;
  #settled = false;

  constructor(state: SessionState) {
    this.#state = state;
    this.#uniqueLo = state.uniqueLo;
    this.#uniqueHi = state.uniqueHi;
    this.#life = state.life;
    this.#connection = state.connection;
    this.#to = state.exchange;
  }

  get settled(): boolean {
    return this.#settled;
  }

  /** False once the session was reset: the tables belong to another mount. */
  get live(): boolean {
    return this.#life === this.#state.life;
  }

  holdBy(held: HeldExchange): void {
    this.#to = held;
  }

  /** Nothing will be answered by this: the handler's caller answered already. */
  abandon(): void {
    this.#settled = true;
  }

  fail(errno: number): void {
    if (this.#settle()) this.#state.sendError(this.#to, this.#uniqueLo, this.#uniqueHi, errno);
  }

  finish(bodyBytes: number, payload?: Uint8Array): void {
    if (this.#settle()) this.#state.send(this.#to, this.#uniqueLo, this.#uniqueHi, bodyBytes, payload);
  }

  /** For `Done` callbacks of operations that answer with nothing. */
  settle(errno: number): void {
    if (errno === 0) this.finish(0);
    else this.fail(errno);
  }

  #settle(): boolean {
    if (this.#settled) return false;
    this.#settled = true;
    if (this.#connection === this.#state.connection) return true;
    this.#state.droppedReplies++;
    return false;
  }
}
