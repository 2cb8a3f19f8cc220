/**
 * Mutations on their way to the host daemon. Each has a sequence number, by which the daemon knows it again: what was sent
 * and not answered when a daemon went away is sent again to the next one, which answers what its predecessor had committed
 * and does the rest.
 */
import type { Mutation, Outcome, Settle } from '../tree/index.ts';
import { EIO } from '../wire/index.ts';
import { encodeMessage } from './link.ts';
import { type LinkWay, monotonicMs } from './link-messages.ts';
import type { NumberedUpstream } from './mutation-log.ts';

/**
 * Mutations that the host daemon has at once; the others wait here. Each may come back as a commit with a whole value: a
 * guest that filled its rings with writes of one byte to a long file would have the daemon send more than it may. Also how
 * many may wait for a daemon that is away.
 */
const UNDERWAY = 32;
/** What may wait beyond those. */
const UNSENT_BYTES = 64 * 1024 * 1024;
/** A uid may have a quarter of either: the others' mutations go past its own. */
const UID_UNDERWAY = UNDERWAY / 4;
const UID_UNSENT_BYTES = UNSENT_BYTES / 4;
/** How long a mutation may wait for the host daemon; it refuses one that it comes to later. */
const MUTATION_MS = 5_000;
/** What an answer that was on time may take to arrive. */
const ANSWER_MS = 500;
/** A daemon that has not answered for so long is away: no mutations but those that it has wait for it. */
const AWAY_MS = 1_000;

/** Encoded already: the mutation and its caller are the file system's to use again. */
interface Waiting {
  readonly sequence: number;
  readonly uid: number;
  readonly frame: Uint8Array;
  readonly settle: Settle;
  sinceMs: number;
  /** The daemon is keeping it, and will answer. */
  isTaken: boolean;
}

/** How many mutations of a uid are under way, and how many bytes of its wait. */
interface Share {
  underway: number;
  unsentBytes: number;
}

const refused: Outcome = { errno: EIO, revision: 0, ino: 0 };

/** Settles each mutation exactly once: with the daemon's answer, or with EIO when neither that nor `taken` comes in time. */
export class MutationSender {
  readonly #send: (frame: Uint8Array) => boolean;
  readonly #nextSequence: () => number;
  /** Sent, or to be sent to the next daemon, in this order. */
  readonly #waiting = new Map<number, Waiting>();
  readonly #unsent: Waiting[] = [];
  /** By uid, of those that have any. */
  readonly #shares = new Map<number, Share>();
  #unsentBytes = 0;
  #connected = false;

  /** `send` queues a frame; false when it can't. `nextSequence` gives numbers that this holder has never used. */
  constructor(send: (frame: Uint8Array) => boolean, nextSequence: () => number) {
    this.#send = send;
    this.#nextSequence = nextSequence;
  }

  /** Mutations that wait for the host daemon. */
  get size(): number {
    return this.#waiting.size + this.#unsent.length;
  }

  upstream(way: LinkWay): NumberedUpstream {
    return {
      submit: (mutation, settle, sequence = 0, sending = () => undefined) =>
        this.#submit(way, mutation, settle, sequence, sending),
    };
  }

  /** A daemon is there: what waits is sent, in the order in which it was sent before. */
  connect(): void {
    this.#connected = true;
    for (const waiting of this.#waiting.values()) this.#sendOrRefuse(waiting);
    this.#sendMore();
  }

  /** The daemon is gone: what waits is kept for the next one, which knows what became of what this one had taken. */
  disconnect(): void {
    this.#connected = false;
    const nowMs = monotonicMs();
    for (const waiting of this.#waiting.values()) {
      if (waiting.isTaken) waiting.sinceMs = nowMs;
      waiting.isTaken = false;
    }
  }

  /** Nobody will ever answer. */
  refuseAll(): void {
    const all = [...this.#waiting.values(), ...this.#unsent.splice(0)];
    this.#waiting.clear();
    this.#shares.clear();
    this.#unsentBytes = 0;
    for (const { settle } of all) settle(refused);
  }

  settle(sequence: number, outcome: Outcome): void {
    this.#end(sequence)?.settle(outcome);
    this.#sendMore();
  }

  /** The daemon is keeping it: a guest must not be told that it failed before that is so. */
  taken(sequence: number): void {
    const waiting = this.#waiting.get(sequence);
    if (waiting !== undefined) waiting.isTaken = true;
  }

  /** Answers EIO for what waited too long: the daemon will refuse it. */
  tick(): void {
    const nowMs = monotonicMs();
    for (const [sequence, { settle, sinceMs, isTaken }] of this.#waiting) {
      if (isTaken || nowMs - sinceMs < MUTATION_MS + ANSWER_MS) continue;
      this.#end(sequence);
      settle(refused);
    }
    while (this.#unsent.length > 0 && nowMs - this.#unsent[0]!.sinceMs > MUTATION_MS) {
      const late = this.#unsent.shift()!;
      this.#countUnsent(late, -1);
      late.settle(refused);
    }
    this.#sendMore();
  }

  /** Milliseconds until the next thing is due, or Infinity. */
  dueInMs(): number {
    let oldestMs = this.#unsent[0]?.sinceMs ?? Number.POSITIVE_INFINITY;
    for (const { sinceMs, isTaken } of this.#waiting.values()) if (!isTaken) oldestMs = Math.min(oldestMs, sinceMs);
    return oldestMs + MUTATION_MS + ANSWER_MS - monotonicMs();
  }

  #submit(way: LinkWay, mutation: Mutation, settle: Settle, given: number, sending: (sequence: number) => void): void {
    const sinceMs = monotonicMs();
    const { uid } = mutation.caller;
    if (this.#isAway(uid, sinceMs)) return settle(refused);
    const sequence = given === 0 ? this.#nextSequence() : given;
    sending(sequence);
    const frame = encodeMessage({ type: 'mutation', sequence, way, mutation, expiresMs: sinceMs + MUTATION_MS });
    const waiting = { sequence, uid, frame, settle, sinceMs, isTaken: false };
    if (this.#mayStart(uid)) return this.#start(waiting);
    const unsentBytes = (this.#shares.get(uid)?.unsentBytes ?? 0) + frame.length;
    if (unsentBytes > UID_UNSENT_BYTES || this.#unsentBytes + frame.length > UNSENT_BYTES) return settle(refused);
    this.#unsent.push(waiting);
    return this.#countUnsent(waiting, 1);
  }

  #mayStart(uid: number): boolean {
    return this.#waiting.size < UNDERWAY && this.#underway(uid) < UID_UNDERWAY;
  }

  #underway(uid: number): number {
    return this.#shares.get(uid)?.underway ?? 0;
  }

  #share(uid: number): Share {
    let share = this.#shares.get(uid);
    if (share === undefined) this.#shares.set(uid, (share = { underway: 0, unsentBytes: 0 }));
    return share;
  }

  #start(waiting: Waiting): void {
    this.#waiting.set(waiting.sequence, waiting);
    this.#share(waiting.uid).underway++;
    if (this.#connected) this.#sendOrRefuse(waiting);
  }

  /** It is under way no more. */
  #end(sequence: number): Waiting | undefined {
    const waiting = this.#waiting.get(sequence);
    if (waiting === undefined) return undefined;
    this.#waiting.delete(sequence);
    const share = this.#share(waiting.uid);
    share.underway--;
    this.#forgetShare(waiting.uid, share);
    return waiting;
  }

  #countUnsent({ uid, frame }: Waiting, sign: 1 | -1): void {
    const share = this.#share(uid);
    share.unsentBytes += sign * frame.length;
    this.#unsentBytes += sign * frame.length;
    this.#forgetShare(uid, share);
  }

  #forgetShare(uid: number, { underway, unsentBytes }: Share): void {
    if (underway === 0 && unsentBytes === 0) this.#shares.delete(uid);
  }

  #sendOrRefuse({ sequence, frame, settle }: Waiting): void {
    if (this.#send(frame)) return;
    this.#end(sequence);
    settle(refused);
  }

  /** Oldest first, but for uids that have their share. */
  #sendMore(): void {
    while (this.#waiting.size < UNDERWAY) {
      const at = this.#unsent.findIndex(({ uid }) => this.#mayStart(uid));
      if (at < 0) return;
      const [next] = this.#unsent.splice(at, 1) as [Waiting];
      this.#countUnsent(next, -1);
      if (monotonicMs() - next.sinceMs > MUTATION_MS) next.settle(refused);
      else this.#start(next);
    }
  }

  #isAway(uid: number, nowMs: number): boolean {
    return !this.#mayStart(uid) && (!this.#connected || nowMs - this.#oldestSinceMs() > AWAY_MS);
  }

  #oldestSinceMs(): number {
    let oldestMs = Number.POSITIVE_INFINITY;
    for (const { sinceMs } of this.#waiting.values()) oldestMs = Math.min(oldestMs, sinceMs);
    return oldestMs;
  }
}
