/** The transport over /dev/fuse: mounts on this machine, reads requests, writes replies and notifications. */
import { constants, openSync } from 'node:fs';
import type { Worker } from 'node:worker_threads';
import { startThread } from '../parts/index.ts';
import {
  close,
  duplicate,
  MNT_DETACH,
  MS_NODEV,
  MS_NOSUID,
  MS_NOSYMFOLLOW,
  mount,
  read,
  unmount,
  write,
  writeParts,
} from '../sys/index.ts';
import { EAGAIN, EINTR, ENODEV, ENOENT, errnoName } from '../wire/index.ts';
import * as abi from './abi.ts';
import { FUSE_NOTIFY_INVAL_INODE, FUSE_NOTIFY_POLL } from './constants.ts';
import type { Exchange, HeldExchange, Notifier, RequestHandler } from './exchange.ts';
import { MAX_WRITE_BYTES } from './handlers/lifecycle.ts';
import { operations } from './operations.ts';
import { REPLY } from './state.ts';

/** A WRITE of the greatest size with its headers, to a whole page. */
const BUFFER_BYTES = MAX_WRITE_BYTES + 4096;
/** The device bounds no reply; this is what a READ of the greatest size needs. */
const REPLY_CAPACITY = MAX_WRITE_BYTES + REPLY;
/** O_CLOEXEC; every fd that Node opens has it, and the device must. */
const OPEN_FLAGS = constants.O_RDWR | constants.O_NONBLOCK;

const opcodesWithoutReply = new Set(operations.filter(({ reply }) => reply === 'none').map(({ opcode }) => opcode));

/** One mount. `process` serves what is there; `close` unmounts. */
export class DevFuse implements Exchange, Notifier {
  readonly fd: number;
  readonly path: string;
  readonly request = new Uint8Array(new ArrayBuffer(BUFFER_BYTES));
  readonly view = new DataView(this.request.buffer);
  requestBytes = 0;
  replyCapacity = 0;
  #handler: RequestHandler | undefined;
  #served = 0;
  #ended: string | undefined;
  #closed = false;
  #notifier: Worker | undefined;

  private constructor(fd: number, path: string) {
    this.fd = fd;
    this.path = path;
  }

  /**
   * Mounts on the directory `path`, for all users, without `default_permissions`: every attempt reaches the session.
   * `followLinks` false: open(2) and the like answer ELOOP where a symlink stands in the tree (readlink(2) reads it still).
   * Throws when the device or the mount is refused; the message says why.
   */
  static mount(path: string, { followLinks = true }: { readonly followLinks?: boolean } = {}): DevFuse {
    const fd = openSync('/dev/fuse', OPEN_FLAGS);
    const uid = process.getuid?.() ?? 0;
    const gid = process.getgid?.() ?? 0;
    const options = `fd=${fd},rootmode=40000,user_id=${uid},group_id=${gid},allow_other`;
    const flags = MS_NOSUID | MS_NODEV | (followLinks ? 0 : MS_NOSYMFOLLOW);
    const result = mount('porthole', path, 'fuse.porthole', flags, options);
    if (result < 0) {
      close(fd);
      throw new Error(`mounting on "${path}" failed: ${errnoName(-result)}; it takes root and an existing directory`);
    }
    return new DevFuse(fd, path);
  }

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
    for (let left = budget; left > 0 && !this.#closed; left--) {
      const bytes = read(this.fd, this.request);
      if (bytes === -EAGAIN) return false;
      // ENOENT: the request was interrupted while it was being read; the next one is due.
      if (bytes === -ENOENT || bytes === -EINTR) continue;
      if (bytes < 0) {
        this.#ended ??= bytes === -ENODEV ? `"${this.path}" was unmounted` : `/dev/fuse failed: ${errnoName(-bytes)}`;
        return false;
      }
      this.#served++;
      this.requestBytes = bytes;
      this.replyCapacity = opcodesWithoutReply.has(abi.InHeader.opcode.get(this.view, 0)) ? 0 : REPLY_CAPACITY;
      handler.handle(this);
    }
    return !this.#closed;
  }

  reply(head: Uint8Array, headBytes: number, payload?: Uint8Array): void {
    // ENOENT: the request was interrupted or its mount is gone; nobody waits for the answer.
    if (!this.#closed) writeParts(this.fd, head, headBytes, payload);
  }

  noReply(): void {}

  hold(): HeldExchange {
    return {
      replyCapacity: this.replyCapacity,
      reply: (head, headBytes, payload) => this.reply(head, headBytes, payload),
      noReply: () => {},
    };
  }

  /**
   * Notifications that drop names take the directory's lock in the kernel, and those that drop bytes wait for pages. Whoever
   * holds these may be waiting for an answer from this very thread, so a thread of its own writes them.
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
    this.#notifier ??= this.#startNotifier();
    this.#notifier.postMessage(message, []);
  }

  #startNotifier(): Worker {
    const worker = startThread('notify-thread', { workerData: { fd: duplicate(this.fd) } });
    worker.unref();
    return worker;
  }

  /** Unmounts, at once if nobody uses it, else as soon as nobody does; answers nothing more. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#handler?.reset();
    if (this.#ended === undefined && unmount(this.path) < 0) unmount(this.path, MNT_DETACH);
    close(this.fd);
    this.#notifier?.postMessage(undefined, []);
  }
}
