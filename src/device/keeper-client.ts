/**
 * A device process's end of the keeper. What is given to the keeper is remembered here too: when the keeper is gone, it is
 * given all of it again as soon as one answers at the same path. Nothing here throws for what the keeper does.
 */
import {
  close,
  connectUnix,
  duplicate,
  POLLIN,
  pollOne,
  receive,
  receiveWithFds,
  send,
  sendWithFds,
} from '../sys/index.ts';
import { EAGAIN, EINTR, EINVAL } from '../wire/index.ts';
import * as protocol from './keeper-protocol.ts';

/** The keeper answers in microseconds; one that does not is taken for gone. */
const ANSWER_MS = 2_000;
/** From one attempt to connect to the next: one that hangs up is perhaps replaced, and then another is there already. */
const RETRY_MS = 500;

interface Given {
  readonly fd: number;
  number: number;
}

/** What the keeper had when it was asked; `fd` is the asker's. */
export interface Found {
  readonly name: string;
  readonly number: number;
  readonly fd: number;
}

export class KeeperClient {
  readonly #path: string;
  #fd = -1;
  readonly #given = new Map<string, Given>();
  readonly #packet = new Uint8Array(new ArrayBuffer(protocol.PACKET_BYTES));
  #connectedAtMs = Number.NEGATIVE_INFINITY;
  #retryAtMs = Number.POSITIVE_INFINITY;
  /** Told when the keeper is gone, before `fd` is closed, and when one answers again. */
  onChange: (isThere: boolean) => void = () => undefined;

  /** Connects; where nobody answers, it is tried again and again (`tick`). */
  constructor(path: string) {
    this.#path = path;
    this.#connect();
  }

  get isConnected(): boolean {
    return this.#fd >= 0;
  }

  /** Everything that the keeper has; undefined where it does not answer. */
  list(): Found[] | undefined {
    return this.#list(protocol.LIST);
  }

  /** The same, for a successor: one that hung up meanwhile may have been replaced by another. */
  listAnew(): Found[] | undefined {
    const found = this.list();
    if (found !== undefined) return found;
    if (this.#fd < 0) this.#connect();
    return this.list();
  }

  /** For the next keeper: everything that this one has, and has no longer then. */
  takeOver(): Found[] {
    const known = this.list() ?? [];
    const found = this.#list(protocol.HAND_OVER);
    // An older one answers the first alone, and is ended by whoever started us.
    if (found === undefined) return known;
    for (const { fd } of known) close(fd);
    return found;
  }

  #list(op: number): Found[] | undefined {
    const found: Found[] = [];
    if (this.#ask(op, '', { found }) === 0) return found;
    for (const { fd } of found) close(fd);
    return undefined;
  }

  /** Gives a copy of `fd`, in place of what had that name. False: this descriptor can't be kept. */
  put(name: string, fd: number, number = 0): boolean {
    this.#forget(name);
    const copy = duplicate(fd);
    if (copy < 0) return false;
    this.#given.set(name, { fd: copy, number });
    return this.#ask(protocol.PUT, name, { fd, number }) !== EINVAL;
  }

  /** Remembers what the keeper has already: the found descriptor is the client's from now on. */
  adopt({ name, number, fd }: Found): void {
    this.#forget(name);
    this.#given.set(name, { fd, number });
  }

  drop(name: string): void {
    this.#forget(name);
    this.#ask(protocol.DROP, name);
  }

  /**
   * Sends `reply` to the kept socket `name` and takes `take` bytes from it, once for this `number`. Without a keeper it is done
   * here. False when the peer does not take it.
   */
  finish(name: string, number: number, reply: Uint8Array, take: number): boolean {
    const given = this.#given.get(name);
    if (given === undefined) return false;
    const wasNumber = given.number;
    given.number = Math.max(given.number, number);
    if (this.isConnected) {
      const errno = this.#ask(protocol.FINISH, name, { number, take, extra: reply });
      if (errno !== undefined) return errno === 0;
    }
    if (wasNumber >= number) return true;
    if (reply.length > 0 && send(given.fd, reply) !== reply.length) return false;
    return take === 0 || receive(given.fd, new Uint8Array(take), take) === take;
  }

  #forget(name: string): void {
    const given = this.#given.get(name);
    if (given !== undefined) close(given.fd);
    this.#given.delete(name);
  }

  /** The errno of the answer; undefined when there is none. */
  #ask(
    op: number,
    name: string,
    {
      fd,
      number = 0,
      take = 0,
      extra,
      found,
    }: Partial<Given> & { take?: number; extra?: Uint8Array; found?: Found[] } = {},
  ): number | undefined {
    if (this.#fd < 0) return undefined;
    const bytes = protocol.writeRequest(this.#packet, op, name, number, take, extra);
    const sent =
      fd === undefined ? send(this.#fd, this.#packet, bytes) : sendWithFds(this.#fd, this.#packet, bytes, [fd]);
    return sent === bytes ? this.#answer(found) : this.#lost();
  }

  #answer(found: Found[] | undefined): number | undefined {
    const deadline = performance.now() + ANSWER_MS;
    const fds: number[] = [];
    for (;;) {
      const left = Math.ceil(deadline - performance.now());
      const ready = left <= 0 ? -EAGAIN : pollOne(this.#fd, POLLIN, left);
      if (ready === -EINTR) continue;
      if (ready < 0) return this.#lost();
      const got = receiveWithFds(this.#fd, this.#packet, this.#packet.length, fds, 1);
      if (got === -EAGAIN || got === -EINTR) continue;
      const answer = got <= 0 ? undefined : protocol.readAnswer(this.#packet, got);
      if (answer === undefined) return this.#lost();
      if (answer.kind === protocol.DONE) return answer.errno;
      const [fd] = fds.splice(0);
      if (fd === undefined) continue;
      if (found === undefined) close(fd);
      else found.push({ name: answer.name, number: answer.number, fd });
    }
  }

  #lost(): undefined {
    if (this.#fd < 0) return;
    this.#retryAtMs = this.#connectedAtMs + RETRY_MS;
    this.onChange(false);
    close(this.#fd);
    this.#fd = -1;
  }

  #connect(): void {
    const fd = connectUnix(this.#path, 'packets');
    if (fd < 0) {
      this.#retryAtMs = performance.now() + RETRY_MS;
      return;
    }
    this.#fd = fd;
    this.#connectedAtMs = performance.now();
    this.#retryAtMs = Number.POSITIVE_INFINITY;
  }

  /** Descriptor to watch: readable when the keeper is gone, for it says nothing unasked. -1 while there is none. */
  get fd(): number {
    return this.#fd;
  }

  /** Looks whether the keeper is still there; call it when `fd` is readable. */
  check(): void {
    if (this.#fd >= 0 && receive(this.#fd, this.#packet, 1) !== -EAGAIN) this.#lost();
  }

  nextDeadlineMs(): number {
    return this.#retryAtMs;
  }

  /** Tries to reach a keeper, and gives it all that is to be kept. */
  tick(nowMs: number): void {
    if (nowMs < this.#retryAtMs) return;
    this.#connect();
    if (this.#fd < 0) return;
    for (const found of this.list() ?? [])
      if (this.#given.has(found.name)) close(found.fd);
      else {
        close(found.fd);
        this.#ask(protocol.DROP, found.name);
      }
    for (const [name, { fd, number }] of this.#given) this.#ask(protocol.PUT, name, { fd, number });
    if (this.#fd >= 0) this.onChange(true);
  }

  /** Hangs up; what the keeper has stays there. */
  close(): void {
    if (this.#fd >= 0) close(this.#fd);
    this.#fd = -1;
    this.#retryAtMs = Number.POSITIVE_INFINITY;
    for (const { fd } of this.#given.values()) close(fd);
    this.#given.clear();
  }
}
