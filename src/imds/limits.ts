/** What one VM's metadata server takes, and the counters of what it refused. */
import { TokenBucket } from '../tree/index.ts';

export interface ServerLimits {
  readonly connections: number;
  /** Of one connection, sent before the first was answered. */
  readonly pipelined: number;
  /** Being answered at once, streams and long polls included. */
  readonly inFlight: number;
  readonly headerBytes: number;
  readonly headers: number;
  readonly bodyBytes: number;
  /** Of bodies that come and answers that are not taken, all of this machine's together. */
  readonly heldBytes: number;
  /** A client gets so long for its headers, and so long for a whole request. */
  readonly headersMs: number;
  readonly requestMs: number;
  /** One that neither sends nor takes anything is cut off, unless it waits for a change. */
  readonly idleMs: number;
  /** Requests to façades, and requests of each uid and of the agent as a whole. */
  readonly facadeRate: Rate;
  readonly uidRate: Rate;
  readonly agentRate: Rate;
  /** Bytes of what has the token is asked and answered: to make JSON of 1 MiB takes some 5 ms of all machines' time. */
  readonly agentBytes: Rate;
  /** Watch streams. */
  readonly watchers: number;
  readonly heartbeatMs: number;
}

export interface Rate {
  readonly burst: number;
  readonly perSecond: number;
}

const MIB = 1024 * 1024;

export const defaultLimits: ServerLimits = {
  connections: 256,
  pipelined: 16,
  inFlight: 128,
  headerBytes: 16 * 1024,
  headers: 64,
  bodyBytes: 2 * MIB,
  heldBytes: 64 * MIB,
  headersMs: 5_000,
  requestMs: 15_000,
  idleMs: 30_000,
  facadeRate: { burst: 1000, perSecond: 500 },
  uidRate: { burst: 1000, perSecond: 500 },
  agentRate: { burst: 4000, perSecond: 2000 },
  agentBytes: { burst: 64 * MIB, perSecond: 32 * MIB },
  watchers: 8,
  heartbeatMs: 10_000,
};

/** Why something was refused; each is counted. */
export const rejectReasons = [
  'connections',
  'pipelined',
  'in-flight',
  'malformed',
  'header-size',
  'body-size',
  'slow',
  'forwarded',
  'host',
  'target',
  'rate',
  'uid-rate',
  'byte-rate',
  'unsent',
  'no-token',
  'bad-token',
  'token-taken',
  'no-boot',
  'not-privileged',
  'no-session',
  'no-flavor',
  'watchers',
] as const;

export type RejectReason = (typeof rejectReasons)[number];

/** An answer that is thrown, from wherever it is known. */
export class Rejection extends Error {
  readonly code = 'REQUEST_REJECTED';
  readonly status: number;
  readonly reason: RejectReason;

  constructor(status: number, reason: RejectReason, words: string) {
    super(words);
    this.name = 'Rejection';
    this.status = status;
    this.reason = reason;
  }
}

/** uids of which a bucket is remembered; beyond it the one that was longest without a request is forgotten. */
const REMEMBERED_UIDS = 1024;

export class RateLimits {
  readonly #limits: ServerLimits;
  readonly #nowMs: () => number;
  readonly #facade: TokenBucket;
  readonly #agent: TokenBucket;
  readonly #agentBytes: TokenBucket;
  readonly #uids = new Map<number, TokenBucket>();

  constructor(limits: ServerLimits, nowMs: () => number) {
    this.#limits = limits;
    this.#nowMs = nowMs;
    this.#facade = new TokenBucket(limits.facadeRate, nowMs());
    this.#agent = new TokenBucket(limits.agentRate, nowMs());
    this.#agentBytes = new TokenBucket(limits.agentBytes, nowMs());
  }

  /** Rejection 429. Also for requests whose token is wrong: guessing is no faster. */
  anonymous(): void {
    if (!this.#take(this.#facade)) throw new Rejection(429, 'rate', 'too many requests; try again later');
  }

  /** Rejection 429. */
  agent(uid: number | undefined): void {
    if (uid !== undefined && !this.#take(this.#ofUid(uid)))
      throw new Rejection(429, 'uid-rate', `too many requests of uid ${uid}; try again later`);
    if (!this.#take(this.#agent)) throw new Rejection(429, 'rate', 'too many requests; try again later');
  }

  /** Rejection 429, until those that `spent` told of are made up for. */
  bytes(): void {
    if (!this.#agentBytes.has(this.#nowMs())) throw new Rejection(429, 'byte-rate', 'too many bytes; try again later');
  }

  spent(bytes: number): void {
    this.#agentBytes.take(bytes);
  }

  #take(bucket: TokenBucket): boolean {
    if (!bucket.has(this.#nowMs())) return false;
    bucket.take();
    return true;
  }

  #ofUid(uid: number): TokenBucket {
    const bucket = this.#uids.get(uid) ?? new TokenBucket(this.#limits.uidRate, this.#nowMs());
    if (!this.#uids.delete(uid) && this.#uids.size >= REMEMBERED_UIDS)
      this.#uids.delete(this.#uids.keys().next().value!);
    this.#uids.set(uid, bucket);
    return bucket;
  }
}
