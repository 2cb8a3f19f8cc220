/** Turns decisions into audit records; keeps floods of denials out of the log, never the first of a kind. */
import { errnoName } from '../wire/index.ts';
import type { AuditRecord, AuditSink } from './audit.ts';
import type { Caller, Way } from './caller.ts';
import type { Node } from './node.ts';
import { ruleName } from './policy.ts';
import type { Replica } from './replica.ts';

/** Denials recorded of one uid and rule: at once, and then a second. */
const BURST = 20;
const PER_SECOND = 5;
/** Kinds (uid and rule) that are remembered at once; beyond it the oldest is forgotten, and counts as new when it returns. */
const KINDS = 4096;

interface Bucket {
  tokens: number;
  filledMs: number;
  dropped: number;
}

export class Auditor {
  readonly #vm: string;
  readonly #sink: AuditSink;
  readonly #wallMs: () => number;
  readonly #denials = new Map<string, Bucket>();

  constructor(vm: string, sink: AuditSink, wallMs: () => number) {
    this.#vm = vm;
    this.#sink = sink;
    this.#wallMs = wallMs;
  }

  /** Records a verdict: `errno` 0 is allowed. False when the sink can't keep it. A denial that is too many counts as kept. */
  record(way: Way, operation: string, replica: Replica, node: Node, caller: Caller, errno: number): boolean {
    const rule = ruleName(replica.facts(node).effective.rule);
    const dropped = errno === 0 ? 0 : this.#admit(`${caller.uid} ${rule}`);
    if (dropped < 0) return true;
    const record: AuditRecord = {
      time: new Date(this.#wallMs()).toISOString(),
      vm: this.#vm,
      way: way.name,
      operation,
      path: replica.snapshot.path(node),
      uid: caller.uid,
      gid: caller.gid,
      pid: caller.pid,
      ...(caller.program === undefined ? {} : { program: caller.program }),
      revision: replica.snapshot.revision,
      verdict: errno === 0 ? 'allowed' : 'denied',
      rule,
      ...(errno === 0 ? {} : { errno: errnoName(errno) }),
      ...(dropped === 0 ? {} : { dropped }),
    };
    return this.#sink(record);
  }

  /** How many of this kind were dropped since the last that was recorded, or −1 to drop this one. */
  #admit(kind: string): number {
    const nowMs = this.#wallMs();
    let bucket = this.#denials.get(kind);
    if (bucket === undefined) {
      if (this.#denials.size >= KINDS) this.#denials.delete(this.#denials.keys().next().value!);
      bucket = { tokens: BURST, filledMs: nowMs, dropped: 0 };
      this.#denials.set(kind, bucket);
    }
    bucket.tokens = Math.min(BURST, bucket.tokens + (Math.max(0, nowMs - bucket.filledMs) / 1000) * PER_SECOND);
    bucket.filledMs = nowMs;
    if (bucket.tokens < 1) {
      bucket.dropped++;
      return -1;
    }
    bucket.tokens--;
    const { dropped } = bucket;
    bucket.dropped = 0;
    return dropped;
  }
}
