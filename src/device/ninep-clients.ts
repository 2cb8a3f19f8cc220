/** The 9P clients of one place where they come from: how many there may be, what is due, what they did. */
import type { NinepSession } from '../ninep/index.ts';
import type { TreeFileSystem } from '../tree/index.ts';
import type { Served } from './loop.ts';
import { type Admission, type BootToken, isPrivileged, type NinepPeer } from './ninep-admission.ts';

/** A guest's kernel takes one for each mount. */
const MAX_CLIENTS = 16;
/** Of those, for peers that nobody vouches for. */
const MAX_UNPRIVILEGED = 4;
/** How long such a peer may stay without attaching. */
const UNATTACHED_MS = 10_000;

/** What sessions of one place have in common. */
export interface NinepPlace {
  /** A new one for each client. */
  readonly fileSystem: () => TreeFileSystem;
  /** Whether the policy of now knows a uid. */
  readonly isUser: (uid: number) => boolean;
  /** As whom attaches count that name no uid, by the policy of now. */
  readonly uidOfMount: () => number | undefined;
  readonly token: BootToken;
  readonly onEvent: (what: 'connected' | 'disconnected' | 'refused' | 'broken', detail: string) => void;
}

export interface NinepClient {
  readonly session: NinepSession;
  readonly admission: Admission;
  nextDeadlineMs(): number;
  tick(nowMs: number): void;
  close(): void;
}

/** A stream that can be read without an event that tells of it. */
export interface PolledStream {
  /** Takes what is there; whether there was anything. */
  take(): boolean;
}

interface Known {
  readonly client: NinepClient;
  /** For people. */
  readonly name: string;
  readonly sinceMs: number;
}

/** Counters that are amounts of now. */
const amounts: ReadonlySet<string> = new Set(['9p.fids', '9p.requests', '9p.requestBytes', '9p.xattrBytes']);

export class NinepClients implements Served {
  /** Reads that brought something. */
  servedCount = 0;
  /** Streams that brought something, and may bring more before the loop sleeps. */
  readonly #awake = new Set<PolledStream>();
  #hasTaken = false;
  #isSpinning = false;
  readonly #onEvent: NinepPlace['onEvent'];
  readonly #known = new Map<NinepClient, Known>();
  /** What those that are gone have counted. */
  readonly #counted = new Map<string, number>();

  constructor(onEvent: NinepPlace['onEvent']) {
    this.#onEvent = onEvent;
  }

  /** An event told that there is something to read in a stream. */
  wake(stream: PolledStream): void {
    if (!stream.take()) return;
    this.#hasTaken = true;
    this.#awake.add(stream);
  }

  /** It is closed. */
  forget(stream: PolledStream): void {
    this.#awake.delete(stream);
  }

  /** Tells by `servedCount` of what events brought, and reads again while the loop spins, which spares the wake-up. */
  process(): boolean {
    if (this.#hasTaken) this.servedCount++;
    this.#hasTaken = false;
    if (this.#isSpinning) for (const stream of this.#awake) if (stream.take()) this.servedCount++;
    // What is left in a stream is told of again.
    return false;
  }

  /** Streams have no kicks: an event tells of them, whether it is waited for or not. */
  suppressKicks(suppress: boolean): boolean {
    this.#isSpinning = suppress;
    if (!suppress) this.#awake.clear();
    return false;
  }

  nextDeadlineMs(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const known of this.#known.values()) next = Math.min(next, known.client.nextDeadlineMs(), leaveMs(known));
    return next;
  }

  tick(nowMs: number): void {
    for (const known of this.#known.values()) {
      if (leaveMs(known) <= nowMs) {
        this.#count('9p.unattached', 1);
        known.client.close();
      } else if (known.client.nextDeadlineMs() <= nowMs) known.client.tick(nowMs);
    }
  }

  /** Whether another one may come. Tells of one that may not. */
  hasRoomFor(peer: NinepPeer, name: string): boolean {
    if (this.#known.size >= MAX_CLIENTS) this.refuse(`${name}: there are ${MAX_CLIENTS} connections already`);
    else if (!isPrivileged(peer) && this.#unvouched >= MAX_UNPRIVILEGED)
      this.refuse(`${name}: there are ${MAX_UNPRIVILEGED} connections already from ports that take no privilege`);
    else return true;
    return false;
  }

  refuse(reason: string): void {
    this.#count('9p.refusedConnections', 1);
    this.#onEvent('refused', reason);
  }

  add(client: NinepClient, name: string): void {
    this.#known.set(client, { client, name, sinceMs: performance.now() });
    this.#onEvent('connected', name);
  }

  /** It is gone. `malformation`: what it did wrong. */
  remove(client: NinepClient, malformation: string | undefined): void {
    const known = this.#known.get(client);
    if (known === undefined) return;
    this.#known.delete(client);
    client.admission.end();
    this.#count('9p.refusedAttaches', client.admission.refused);
    for (const [name, value] of client.session.counters())
      if (!amounts.has(name) && value > 0) this.#count(name, value);
    if (malformation !== undefined) this.#onEvent('broken', `${known.name}: ${malformation}`);
    this.#onEvent('disconnected', known.name);
  }

  /** A name may come more than once: its values belong together. */
  *counters(): Generator<readonly [name: string, value: number]> {
    yield ['9p.connections', this.#known.size];
    yield* this.#counted;
    for (const { session, admission } of this.#known.keys()) {
      yield ['9p.refusedAttaches', admission.refused];
      yield* session.counters();
    }
  }

  close(): void {
    for (const client of this.#known.keys()) client.close();
  }

  get #unvouched(): number {
    return [...this.#known.keys()].filter(({ admission }) => !admission.isVouchedFor).length;
  }

  #count(name: string, value: number): void {
    this.#counted.set(name, (this.#counted.get(name) ?? 0) + value);
  }
}

/** When a peer that nobody vouches for, and that has not attached, must go. */
const leaveMs = ({ client: { admission }, sinceMs }: Known): number =>
  admission.isVouchedFor ? Number.POSITIVE_INFINITY : sinceMs + UNATTACHED_MS;
