/**
 * The keeper: a process that outlives device processes and holds their descriptors, so that a successor gets them. It does
 * nothing else, so that there is nothing in it to break. Every VM has a socket of its own, which only its uid may open, and a
 * store of its own behind it: a device process that a guest has taken over reaches what is its VM's already.
 *
 * VMs are added and taken away over the admin socket, which is root's: one JSON object a line, `{"open":NAME,"path":PATH,
 * "uid":UID}` or `{"close":NAME}`, answered by `{"errno":N}`; or `{"build":true}`, answered with what this keeper runs.
 */
import { chmodSync, chownSync, lstatSync, readlinkSync, renameSync, unlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import {
  accept,
  close,
  EPOLLIN,
  Epoll,
  getSeals,
  listenUnix,
  read,
  receive,
  receiveWithFds,
  send,
  sendWithFds,
} from '../sys/index.ts';
import { EAGAIN, EEXIST, EINTR, EINVAL, EIO, ENOENT, ENOSPC } from '../wire/index.ts';
import { KeeperClient } from './keeper-client.ts';
import * as protocol from './keeper-protocol.ts';

/** No longer than the names of sockets themselves, whose paths may be as long as paths of sockets can be. */
const NEXT = '.next';
const limits = {
  /** Descriptors of one VM: four for each queue and memory region, in the old and the new table, and some. */
  descriptors: 320,
  /** Connections of one VM: a device process, its successor, and their neighbours for other sockets of the VM. */
  connections: 8,
  adminLineBytes: 4096,
} as const;

interface Kept {
  fd: number;
  number: number;
}

interface Vm {
  readonly path: string;
  readonly listenFd: number;
  readonly kept: Map<string, Kept>;
  readonly connections: Set<number>;
  /** It sent what the keeper does not take: nobody of that VM is listened to any more. */
  isRefused: boolean;
}

/**
 * Sockets, eventfds and shared memory, which is all that there is to keep. Closing anything else may wait for somebody (a file
 * of a FUSE file system for whoever serves it), and the keeper waits for nobody.
 */
function isKeepable(fd: number): boolean {
  const link = readlinkSync(`/proc/self/fd/${fd}`);
  return link.startsWith('socket:[') || link === 'anon_inode:[eventfd]' || getSeals(fd) >= 0;
}

/** Closes a socket's file, if it is one: what a keeper that died has left. */
function removeSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket() === true) unlinkSync(path);
}

/** What is no socket is left alone. */
function removeOther(path: string): void {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat !== undefined && !stat.isSocket()) throw new Error(`"${path}" is no socket`);
}

/** A listening socket that only `uid` may open (and root). Throws in words. */
function listenFor(path: string, uid: number | undefined, kind: 'stream' | 'packets'): number {
  // Under another name first: at every moment one or the other listens at `path`.
  const making = join(dirname(path), NEXT);
  removeSocket(making);
  const umask = process.umask(0o777);
  const fd = listenUnix(making, 8, kind);
  process.umask(umask);
  if (fd < 0) throw new Error(`listening on "${making}" failed with errno ${-fd}`);
  try {
    if (uid !== undefined) chownSync(making, uid, -1);
    chmodSync(making, 0o600);
    removeOther(path);
    renameSync(making, path);
  } catch (error) {
    close(fd);
    throw error;
  }
  return fd;
}

export class Keeper {
  readonly #epoll = new Epoll(64);
  readonly #callbacks = new Map<number, () => void>();
  readonly #vms = new Map<string, Vm>();
  readonly #packet = new Uint8Array(new ArrayBuffer(protocol.PACKET_BYTES + 1));
  readonly #answer = new Uint8Array(new ArrayBuffer(protocol.PACKET_BYTES));
  readonly #taken = new Uint8Array(new ArrayBuffer(4096));
  readonly #build: string;
  /** Told when other keepers have all that this one had. */
  onLeft: () => void = () => undefined;

  /** Listens for the host daemon, and tells it `build`. Throws when that is not possible. */
  constructor(adminPath: string, build: string) {
    this.#build = build;
    const admin = listenFor(adminPath, undefined, 'stream');
    this.#watch(admin, () => {
      const fd = accept(admin);
      if (fd >= 0) this.#serveAdmin(fd);
    });
  }

  /** Blocks for ever; a signal ends the process. */
  run(): never {
    for (;;) this.turn(-1);
  }

  /** Serves what comes within `timeoutMs`. */
  turn(timeoutMs: number): void {
    const count = this.#epoll.wait(timeoutMs);
    if (count < 0 && count !== -EINTR) throw new Error(`waiting for events failed with errno ${-count}`);
    for (let i = 0; i < count; i++) this.#callbacks.get(this.#epoll.eventFd(i))?.();
  }

  /** Ends the process that its starter left: serves until the end of `fd`. */
  endWith(fd: number): void {
    this.#watch(fd, () => {
      if (read(fd, this.#taken) <= 0) process.exit(0);
    });
  }

  #watch(fd: number, onReady: () => void): void {
    this.#epoll.add(fd, EPOLLIN);
    this.#callbacks.set(fd, onReady);
  }

  #unwatch(fd: number): void {
    this.#epoll.remove(fd);
    this.#callbacks.delete(fd);
    close(fd);
  }

  // --- the host daemon ---

  #serveAdmin(fd: number): void {
    let text = '';
    const buffer = new Uint8Array(new ArrayBuffer(limits.adminLineBytes));
    this.#watch(fd, () => {
      const got = read(fd, buffer);
      if (got === -EAGAIN || got === -EINTR) return;
      if (got <= 0 || text.length + got > limits.adminLineBytes) return this.#unwatch(fd);
      text += Buffer.from(buffer.subarray(0, got)).toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const line = text.slice(0, end);
        text = text.slice(end + 1);
        send(fd, Buffer.from(`${JSON.stringify(this.#answerOf(line))}\n`));
      }
    });
  }

  #answerOf(line: string): { readonly errno: number; readonly build?: string } {
    try {
      const { open, close: closed, path, uid, build } = JSON.parse(line) as Record<string, unknown>;
      if (build === true) return { errno: 0, build: this.#build };
      if (typeof closed === 'string') return { errno: this.#close(closed) };
      if (typeof open !== 'string' || typeof path !== 'string') return { errno: EINVAL };
      return { errno: this.#open(open, path, typeof uid === 'number' ? uid : undefined) };
    } catch {
      return { errno: EIO };
    }
  }

  #open(name: string, path: string, uid: number | undefined): number {
    const there = this.#vms.get(name);
    if (there !== undefined) return there.path === path ? 0 : EEXIST;
    // Whoever listens there is the keeper before this one. Who connects from here on waits until we have what it had.
    const before = new KeeperClient(path);
    let listenFd: number;
    const kept = new Map<string, Kept>();
    try {
      listenFd = listenFor(path, uid, 'packets');
      for (const { name: of, number, fd } of before.takeOver())
        if (kept.size < limits.descriptors && isKeepable(fd)) kept.set(of, { fd, number });
        else close(fd);
    } finally {
      before.close();
    }
    const vm: Vm = { path, listenFd, kept, connections: new Set(), isRefused: false };
    this.#vms.set(name, vm);
    this.#watch(listenFd, () => {
      const fd = accept(listenFd);
      if (fd < 0) return;
      if (vm.isRefused || vm.connections.size >= limits.connections) close(fd);
      else this.#connect(vm, fd);
    });
    return 0;
  }

  #close(name: string): number {
    const vm = this.#vms.get(name);
    if (vm === undefined) return ENOENT;
    this.#vms.delete(name);
    for (const fd of vm.connections) this.#unwatch(fd);
    for (const { fd } of vm.kept.values()) close(fd);
    this.#unwatch(vm.listenFd);
    removeSocket(vm.path);
    return 0;
  }

  /** Another keeper has it. Device processes find that one at the same path. */
  #leave(vm: Vm): void {
    for (const [name, one] of this.#vms) if (one === vm) this.#vms.delete(name);
    for (const fd of vm.connections) this.#unwatch(fd);
    for (const { fd } of vm.kept.values()) close(fd);
    this.#unwatch(vm.listenFd);
    if (this.#vms.size === 0) this.onLeft();
  }

  // --- device processes ---

  #connect(vm: Vm, fd: number): void {
    vm.connections.add(fd);
    const fds: number[] = [];
    this.#watch(fd, () => {
      const got = receiveWithFds(fd, this.#packet, this.#packet.length, fds, 1);
      if (got === -EAGAIN || got === -EINTR) return;
      if (fds.some((came) => !isKeepable(came))) return this.#refuse(vm);
      const request = got <= 0 ? undefined : protocol.readRequest(this.#packet, got);
      const answered = request !== undefined && this.#serve(vm, fd, request, fds);
      for (const left of fds.splice(0)) close(left);
      if (answered && request.op === protocol.HAND_OVER) return this.#leave(vm);
      if (answered) return;
      vm.connections.delete(fd);
      this.#unwatch(fd);
    });
  }

  /** What came stays open for ever, once a VM: it must not be closed. */
  #refuse(vm: Vm): void {
    vm.isRefused = true;
    for (const fd of vm.connections) this.#unwatch(fd);
    vm.connections.clear();
  }

  /** False when the peer does not take its answer: it can't be served any more. */
  #serve(vm: Vm, to: number, request: protocol.KeeperRequest, fds: number[]): boolean {
    let errno = 0;
    switch (request.op) {
      case protocol.PUT:
        errno = this.#put(vm, request, fds);
        break;
      case protocol.DROP:
        errno = this.#drop(vm, request.name);
        break;
      case protocol.LIST:
      case protocol.HAND_OVER:
        for (const [name, { fd, number }] of vm.kept) {
          const bytes = protocol.writeAnswer(this.#answer, protocol.ENTRY, 0, name, number);
          if (sendWithFds(to, this.#answer, bytes, [fd]) !== bytes) return false;
        }
        break;
      case protocol.FINISH:
        errno = this.#finish(vm, request);
        break;
    }
    const bytes = protocol.writeAnswer(this.#answer, protocol.DONE, errno);
    return send(to, this.#answer, bytes) === bytes;
  }

  #put(vm: Vm, { name, number }: protocol.KeeperRequest, fds: number[]): number {
    const [fd] = fds;
    if (fd === undefined || name === '') return EINVAL;
    const there = vm.kept.get(name);
    if (there === undefined && vm.kept.size >= limits.descriptors) return ENOSPC;
    if (there !== undefined) close(there.fd);
    vm.kept.set(name, { fd, number });
    fds.length = 0;
    return 0;
  }

  #drop(vm: Vm, name: string): number {
    const there = vm.kept.get(name);
    if (there === undefined) return ENOENT;
    close(there.fd);
    vm.kept.delete(name);
    return 0;
  }

  #finish(vm: Vm, { name, number, take, extra }: protocol.KeeperRequest): number {
    const kept = vm.kept.get(name);
    if (kept === undefined) return ENOENT;
    if (kept.number >= number) return 0;
    kept.number = number;
    if (extra.length > 0 && send(kept.fd, extra) !== extra.length) return EIO;
    if (take > 0 && receive(kept.fd, this.#taken, take) !== take) return EIO;
    return 0;
  }
}
