/**
 * Turns decisions into audit records. Whatever a guest does, the log gets a bounded number of denials a second, this
 * memory stays bounded, and each denial is either recorded or counted in a later record.
 */
import { errnoName } from '../wire/index.ts';
import type { AuditRecord, AuditSink } from './audit.ts';
import type { Caller, Way } from './caller.ts';
import { UID_SHARE } from './ledger.ts';
import type { Node } from './node.ts';
import { ruleName } from './policy.ts';
import type { Replica } from './replica.ts';
import { TokenBucket } from './token-bucket.ts';

/**
 * How many denials are recorded: at once, and then a second. A kind is one uid and one rule. The first of each kind is
 * recorded whatever the others used up, unless a guest makes up new uids faster than `newKinds`: a guest has 2^32 of them,
 * and each would be a first.
 */
export const auditLimits = {
  kind: { burst: 20, perSecond: 5 },
  uid: { burst: 400 / UID_SHARE, perSecond: 100 / UID_SHARE },
  vm: { burst: 400, perSecond: 100 },
  newKinds: { burst: 4096, perSecond: 20 },
  /** Kinds that are remembered at once; beyond it the one that was longest without a denial is forgotten. */
  kinds: 4096,
} as const;

interface Kind {
  readonly bucket: TokenBucket;
  /** Denials that were not recorded since the last that was. */
  dropped: number;
}

/** One for each place that decides: a file system for opens and denials, the authority for changes. */
export class Auditor {
  readonly #vm: string;
  readonly #sink: AuditSink;
  readonly #wallMs: () => number;
  /** By uid and rule; the one that was longest without a denial first. */
  readonly #kinds = new Map<string, Kind>();
  /** By uid, in the same order. */
  readonly #uids = new Map<number, TokenBucket>();
  readonly #ofVm: TokenBucket;
  readonly #newKinds: TokenBucket;
  /** Not recorded, and of kinds that are forgotten or were never remembered. */
  #droppedOthers = 0;

  constructor(vm: string, sink: AuditSink, wallMs: () => number) {
    this.#vm = vm;
    this.#sink = sink;
    this.#wallMs = wallMs;
    this.#ofVm = new TokenBucket(auditLimits.vm, wallMs());
    this.#newKinds = new TokenBucket(auditLimits.newKinds, wallMs());
  }

  /** Records a verdict: `errno` 0 is allowed. False when the sink can't keep it. A denial that is too many counts as kept. */
  record(way: Way, operation: string, replica: Replica, node: Node, caller: Caller, errno: number): boolean {
    const rule = ruleName(replica.facts(node).effective.rule);
    let kind: Kind | undefined;
    let droppedOthers = 0;
    if (errno !== 0) {
      kind = this.#admit(caller.uid, rule);
      if (kind === undefined) return true;
      droppedOthers = this.#droppedOthers;
    }
    const record: AuditRecord = {
      timeMs: Math.floor(this.#wallMs()),
      vm: this.#vm,
      way: way.name,
      operation,
      path: replica.snapshot.path(node),
      uid: caller.uid,
      gid: caller.gid,
      pid: caller.pid,
      program: caller.program,
      revision: replica.snapshot.revision,
      verdict: errno === 0 ? 'allowed' : 'denied',
      rule,
      errno: errno === 0 ? undefined : errnoName(errno),
      dropped: kind === undefined || kind.dropped === 0 ? undefined : kind.dropped,
      droppedOthers: droppedOthers === 0 ? undefined : droppedOthers,
    };
    const kept = this.#sink(record);
    if (kind === undefined) return kept;
    if (kept) {
      kind.dropped = 0;
      this.#droppedOthers = 0;
    } else kind.dropped++;
    return kept;
  }

  /** The kind of a denial that is to be recorded; undefined for one that was counted as dropped. */
  #admit(uid: number, rule: string): Kind | undefined {
    const nowMs = this.#wallMs();
    const key = `${uid} ${rule}`;
    let kind = this.#kinds.get(key);
    const isNew = kind === undefined;
    if (isNew && !this.#newKinds.has(nowMs)) {
      this.#droppedOthers++;
      return undefined;
    }
    kind ??= { bucket: new TokenBucket(auditLimits.kind, nowMs), dropped: 0 };
    const forgotten = remember(this.#kinds, key, kind);
    if (forgotten !== undefined) this.#droppedOthers += forgotten.dropped;
    const ofUid = this.#uids.get(uid) ?? new TokenBucket(auditLimits.uid, nowMs);
    remember(this.#uids, uid, ofUid);
    const mayHave = [kind.bucket, ofUid, this.#ofVm].every((bucket) => bucket.has(nowMs));
    if (isNew) this.#newKinds.take();
    else if (!mayHave) {
      kind.dropped++;
      return undefined;
    }
    if (mayHave) for (const bucket of [kind.bucket, ofUid, this.#ofVm]) bucket.take();
    return kind;
  }
}

/** Puts an entry last, and returns the one that had to go for it. */
function remember<K, V>(map: Map<K, V>, key: K, value: V): V | undefined {
  if (!map.delete(key) && map.size >= auditLimits.kinds) {
    const [oldestKey, oldest] = map.entries().next().value!;
    map.delete(oldestKey);
    map.set(key, value);
    return oldest;
  }
  map.set(key, value);
  return undefined;
}
