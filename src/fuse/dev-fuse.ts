/** The transport over /dev/fuse: mounts on this machine, reads requests, writes replies and notifications. */
import { constants, mkdtempSync, openSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  close,
  MNT_DETACH,
  MS_NODEV,
  MS_NOSUID,
  MS_NOSYMFOLLOW,
  mount,
  read,
  statCached,
  tearDown,
  unmount,
  write,
  writeParts,
} from '../sys/index.ts';
import { EAGAIN, EBUSY, EINTR, EIO, ENODEV, ENOENT, errnoName } from '../wire/index.ts';
import * as abi from './abi.ts';
import { FUSE_INT_REQ_BIT, FUSE_NOTIFY_INVAL_INODE, FUSE_NOTIFY_POLL } from './constants.ts';
import type { Exchange, HeldExchange, Notifier, RequestHandler, RequestJournal } from './exchange.ts';
import { MAX_WRITE_BYTES } from './handlers/lifecycle.ts';
import { NotifyProcess } from './notify-process.ts';
import { operations } from './operations.ts';
import { REQUEST_BYTES, type RequestMemory } from './request-memory.ts';
import { REPLY } from './state.ts';

/** The device bounds no reply; this is what a READ of the greatest size needs. */
const REPLY_CAPACITY = MAX_WRITE_BYTES + REPLY;
/** O_CLOEXEC; every fd that Node opens has it, and the device must. */
const OPEN_FLAGS = constants.O_RDWR | constants.O_NONBLOCK;

const opcodesWithoutReply = new Set(operations.filter(({ reply }) => reply === 'none').map(({ opcode }) => opcode));
/** What ends others, and can't be refused: nobody looks at its answer, and it takes effect. */
const endingOpcodes = new Set([
  ...opcodesWithoutReply,
  ...operations.filter(({ name }) => name.startsWith('RELEASE')).map(({ opcode }) => opcode),
]);
/** Of the requests that can be held at once, so much is one uid's. */
const UID_SHARE = 1 / 4;

/** What outlives this process, and who notes down what requests do. */
export interface KeptRequests {
  readonly memory: RequestMemory;
  readonly journal: RequestJournal;
}

export interface DevFuseOptions {
  /** Where requests outlive this process, for a successor. Without it the mount ends with this process. */
  readonly kept?: KeptRequests;
  /** Called when Node has been given work, of which a loop that blocks its thread must give it a turn. */
  readonly onBusy?: () => void;
}

/** One request, and the way to answer it. */
class Request implements Exchange {
  readonly slot: number;
  readonly request: Uint8Array;
  readonly view: DataView;
  requestBytes = 0;
  replyCapacity = 0;
  isRedone = false;
  isHeld = false;
  readonly #transport: DevFuse;

  constructor(transport: DevFuse, slot: number, bytes: Uint8Array<ArrayBuffer>) {
    this.#transport = transport;
    this.slot = slot;
    this.request = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void {
    this.#transport.answer(this.slot, head, headBytes, payload);
  }

  noReply(): void {
    this.#transport.done(this.slot);
  }

  hold(): HeldExchange {
    return this.#transport.hold(this);
  }
}

/** One mount. `process` serves what is there; `close` unmounts, `leave` leaves it to a successor. */
export class DevFuse implements Notifier {
  readonly fd: number;
  readonly path: string;
  readonly #kept: KeptRequests | undefined;
  /** By slot, as they were first used; without memory that is kept there is one. */
  readonly #requests: Request[] = [];
  readonly #free: number[];
  /** Requests that are held, by uid, of those that have any. */
  readonly #heldOf = new Map<number, number>();
  /** Taken from a predecessor and not yet done again, the first one last. */
  readonly #redo: Request[] = [];
  #refusesRedone = false;
  #handler: RequestHandler | undefined;
  #served = 0;
  #ended: string | undefined;
  #closed = false;
  /** The last one writes; those before it were killed. */
  readonly #notifiers: NotifyProcess[] = [];
  /** Its number among the kernel's connections, where nobody goes on with it after this process; 0: not known. */
  #connection = 0;
  readonly #onBusy: () => void;

  private constructor(fd: number, path: string, { kept, onBusy = () => {} }: DevFuseOptions) {
    this.fd = fd;
    this.path = path;
    this.#kept = kept;
    this.#onBusy = onBusy;
    const slots = kept?.memory.slots ?? 1;
    this.#free = Array.from({ length: slots }, (_, index) => slots - 1 - index);
  }

  /**
   * Mounts on the directory `path`, for all users, without `default_permissions`: every attempt reaches the session.
   * `followLinks` false: open(2) and the like answer ELOOP where a symlink stands in the tree (readlink(2) reads it still).
   * Throws when the device or the mount is refused; the message says why.
   */
  static mount(path: string, options: DevFuseOptions & { readonly followLinks?: boolean } = {}): DevFuse {
    const { followLinks = true, kept } = options;
    const fd = openSync('/dev/fuse', OPEN_FLAGS);
    const uid = process.getuid?.() ?? 0;
    const gid = process.getgid?.() ?? 0;
    const data = `fd=${fd},rootmode=40000,user_id=${uid},group_id=${gid},allow_other`;
    const flags = MS_NOSUID | MS_NODEV | (followLinks ? 0 : MS_NOSYMFOLLOW);
    const result = mount('porthole', path, 'fuse.porthole', flags, data);
    if (result < 0) {
      close(fd);
      throw new Error(`mounting on "${path}" failed: ${errnoName(-result)}; it takes root and an existing directory`);
    }
    const transport = new DevFuse(fd, path, options);
    if (kept === undefined) transport.#connection = connectionAt(path);
    return transport;
  }

  /**
   * Goes on with the mount at `path` of a predecessor, which has left `fd` (taken over) and `options.kept`. What it had read and not
   * answered is served first; `refusesRedone`: is refused.
   */
  static resume(
    fd: number,
    path: string,
    options: DevFuseOptions & { readonly kept: KeptRequests },
    refusesRedone: boolean,
  ): DevFuse {
    const transport = new DevFuse(fd, path, options);
    transport.#refusesRedone = refusesRedone;
    transport.#takeUp(options.kept.memory);
    return transport;
  }

  #takeUp(memory: RequestMemory): void {
    const left = Array.from({ length: memory.used }, (_, slot) => slot).filter((slot) => memory.uniqueAt(slot) > 0);
    for (const slot of left.toSorted((a, b) => memory.uniqueAt(b) - memory.uniqueAt(a))) {
      const request = this.#request(slot);
      request.requestBytes = abi.InHeader.len.get(request.view, 0);
      if (request.requestBytes > REQUEST_BYTES || (expectsReply(request) && !this.#isAwaited(request)))
        memory.clear(slot);
      else this.#redo.push(request);
    }
    const isLeft = new Set(this.#redo.map(({ slot }) => slot));
    this.#free.splice(0, this.#free.length, ...this.#free.filter((slot) => !isLeft.has(slot)));
  }

  /**
   * Whether the kernel still waits for the answer: it says so of a request whose INTERRUPT is answered (`fuse_dev_do_write`,
   * fs/fuse/dev.c), and to do that changes nothing.
   */
  #isAwaited({ view }: Request): boolean {
    const answer = new Uint8Array(new ArrayBuffer(REPLY));
    const out = new DataView(answer.buffer);
    abi.OutHeader.len.set(out, 0, REPLY);
    const { offset } = abi.OutHeader.unique;
    out.setUint32(offset, (abi.InHeader.unique.lo(view, 0) | FUSE_INT_REQ_BIT) >>> 0, true);
    out.setUint32(offset + 4, abi.InHeader.unique.hi(view, 0), true);
    return write(this.fd, answer) === REPLY;
  }

  /** Whether something is left that a predecessor had begun. */
  get hasRedone(): boolean {
    return this.#redo.length > 0;
  }

  /** Whether a request that was the `order`th is still to be answered. */
  isInFlight(_queue: number, slot: number, order: number): boolean {
    return order > 0 && this.orderOf(0, slot) === order;
  }

  /** A number of the request in a slot, which no other request has; 0 for none, or where nothing is kept. */
  orderOf(_queue: number, slot: number): number {
    return this.#kept?.memory.uniqueAt(slot) ?? 0;
  }

  /** Answers are out as soon as they are given. */
  show(): void {}

  /** Says who answers. Before it, nothing is read. */
  attach(handler: RequestHandler): void {
    this.#handler = handler;
  }

  /** Requests served so far. */
  get served(): number {
    return this.#served;
  }

  /** Why there is nothing to serve any more: somebody unmounted it. */
  get ended(): string | undefined {
    return this.#ended;
  }

  /** Serves up to `budget` requests; returns whether more may wait. */
  process(budget: number): boolean {
    const handler = this.#handler;
    if (handler === undefined) return false;
    let left = budget;
    for (; left > 0 && this.#redo.length > 0; left--) this.#again(handler, this.#redo.pop()!);
    for (; left > 0 && !this.#closed; left--) {
      const request = this.#request(this.#free.pop()!);
      const bytes = read(this.fd, request.request);
      if (bytes > 0) {
        request.requestBytes = bytes;
        // Now: once it is handled, what it asks for may be under way.
        if (this.#hasRoom(request)) this.#handle(handler, request);
        else this.#refuse(request, EBUSY);
        continue;
      }
      this.#free.push(request.slot);
      if (bytes === -EAGAIN) return false;
      // ENOENT: the request was interrupted while it was being read; the next one is due.
      if (bytes === -ENOENT || bytes === -EINTR) continue;
      this.#ended ??= bytes === -ENODEV ? `"${this.path}" was unmounted` : `/dev/fuse failed: ${errnoName(-bytes)}`;
      return false;
    }
    return !this.#closed;
  }

  #request(slot: number): Request {
    const bytes = (): Uint8Array<ArrayBuffer> =>
      this.#kept?.memory.bytes(slot) ?? new Uint8Array(new ArrayBuffer(REQUEST_BYTES));
    return (this.#requests[slot] ??= new Request(this, slot, bytes()));
  }

  /** Whether it may be held. The last slot is for what ends others: without it nothing could be read any more. */
  #hasRoom({ view }: Request): boolean {
    if (this.#kept === undefined || endingOpcodes.has(abi.InHeader.opcode.get(view, 0))) return true;
    const held = this.#heldOf.get(abi.InHeader.uid.get(view, 0)) ?? 0;
    return this.#free.length > 0 && held < this.#kept.memory.slots * UID_SHARE;
  }

  #countHeld({ view }: Request, sign: 1 | -1): void {
    const uid = abi.InHeader.uid.get(view, 0);
    const held = (this.#heldOf.get(uid) ?? 0) + sign;
    if (held === 0) this.#heldOf.delete(uid);
    else this.#heldOf.set(uid, held);
  }

  #handle(handler: RequestHandler, request: Request): void {
    this.#served++;
    request.replyCapacity = expectsReply(request) ? REPLY_CAPACITY : 0;
    const journal = this.#kept?.journal;
    journal?.begins(0, request.slot);
    handler.handle(request);
    journal?.ends();
    if (this.#kept === undefined) this.#free.push(request.slot);
  }

  #again(handler: RequestHandler, request: Request): void {
    request.isRedone = true;
    if (!this.#refusesRedone) this.#handle(handler, request);
    else if (expectsReply(request)) this.#refuse(request, EIO);
    else this.done(request.slot);
    request.isRedone = false;
  }

  #refuse({ slot, view }: Request, errno: number): void {
    const answer = new Uint8Array(new ArrayBuffer(REPLY));
    const out = new DataView(answer.buffer);
    abi.OutHeader.len.set(out, 0, REPLY);
    abi.OutHeader.error.set(out, 0, -errno);
    const { offset } = abi.OutHeader.unique;
    out.setUint32(offset, abi.InHeader.unique.lo(view, 0), true);
    out.setUint32(offset + 4, abi.InHeader.unique.hi(view, 0), true);
    this.answer(slot, answer, REPLY);
  }

  /** For requests only. */
  answer(slot: number, head: Uint8Array, headBytes: number, payload?: Uint8Array): void {
    if (this.#closed) return;
    this.#kept?.journal.gives(0, slot);
    // ENOENT: the request was interrupted or its mount is gone; nobody waits for the answer.
    writeParts(this.fd, head, headBytes, payload);
    this.#isDone(slot);
  }

  /** For requests only: this one has no answer. */
  done(slot: number): void {
    this.#kept?.journal.gives(0, slot);
    this.#isDone(slot);
  }

  #isDone(slot: number): void {
    if (this.#kept === undefined) return;
    const request = this.#requests[slot]!;
    if (request.isHeld) this.#countHeld(request, -1);
    request.isHeld = false;
    this.#kept.memory.clear(slot);
    this.#kept.journal.shown();
    this.#free.push(slot);
  }

  /** For requests only. Where requests are kept they stay where they are until they are answered. */
  hold(request: Request): HeldExchange {
    const { replyCapacity, slot } = request;
    const reply = (head: Uint8Array, headBytes: number, payload?: Uint8Array): void =>
      this.answer(slot, head, headBytes, payload);
    if (this.#kept !== undefined && this.#free.length === 0) {
      // A RELEASE; or one of a predecessor's, which had as many.
      this.#refuse(request, EBUSY);
      return { replyCapacity, reply: () => {}, noReply: () => {} };
    }
    if (this.#kept !== undefined) this.#countHeld(request, 1);
    request.isHeld = this.#kept !== undefined;
    return { replyCapacity, reply, noReply: () => this.done(slot) };
  }

  /**
   * Notifications that drop names take the directory's lock in the kernel, and those that drop bytes wait for pages. Whoever
   * holds these may be waiting for an answer from this very process, so another one writes them.
   */
  notify(message: Uint8Array): void {
    if (this.#closed) return;
    const view = new DataView(message.buffer, message.byteOffset);
    const code = abi.OutHeader.error.get(view, 0);
    const takesNoLock =
      code === FUSE_NOTIFY_POLL ||
      (code === FUSE_NOTIFY_INVAL_INODE && view.getInt32(REPLY + abi.NotifyInvalInodeOut.off.offset + 4, true) < 0);
    if (takesNoLock) {
      // ENOENT: the kernel holds no such inode any more.
      write(this.fd, message);
      return;
    }
    let notifier = this.#notifiers.at(-1);
    if (notifier?.hasEnded !== false) this.#notifiers.push((notifier = this.#newNotifier()));
    notifier.notify(message);
  }

  #newNotifier(): NotifyProcess {
    const abortFd = this.#connection === 0 ? undefined : openAbort(this.#connection);
    try {
      return new NotifyProcess(this.fd, { abortFd, onBusy: this.#onBusy });
    } finally {
      if (abortFd !== undefined) close(abortFd);
    }
  }

  /** Answers nothing more, and leaves the mount with all that was read to a successor. */
  leave(): void {
    this.#end(() => {});
  }

  /** Unmounts; answers nothing more: whoever waits for an answer, or uses it later, is told so by an error. */
  close(): void {
    this.#end(() => {
      this.#handler?.reset();
      if (this.#ended === undefined && unmount(this.path) < 0) tearDown(this.path);
    });
  }

  #end(before: () => void): void {
    if (this.#closed) return;
    this.#closed = true;
    before();
    close(this.fd);
    for (const notifier of this.#notifiers) notifier.close();
  }
}

/** What the kernel calls the connection of the mount at `path`; 0 where it does not say. */
const connectionAt = (path: string): number => {
  const stat = statCached(path, true);
  return typeof stat === 'number' ? 0 : Number(stat.device.split(':')[1]);
};

/** What ends a connection when something is written to it, where the kernel lets us have that. */
const openAbort = (connection: number): number | undefined => {
  try {
    return openControl(`${connection}/abort`);
  } catch {
    return undefined;
  }
};

/** A file of the kernel's control file system, which may be mounted nowhere. */
const openControl = (name: string): number => {
  const place = mkdtempSync(join(tmpdir(), 'porthole-fusectl-'));
  try {
    const error = mount('fusectl', place, 'fusectl', MS_NOSUID | MS_NODEV, null);
    if (error < 0) throw new Error(`mounting fusectl failed: ${errnoName(-error)}`);
    try {
      return openSync(join(place, name), constants.O_WRONLY);
    } finally {
      unmount(place, MNT_DETACH);
    }
  } finally {
    rmdirSync(place);
  }
};

const expectsReply = ({ view }: Request): boolean => !opcodesWithoutReply.has(abi.InHeader.opcode.get(view, 0));
