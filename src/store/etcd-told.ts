/** What a watch told of since it was last compared with what is there: enough to see that something was left out. */
import { Buffer } from 'node:buffer';
import type { KeyValue, WatchEventMessage } from './etcd-schema.ts';

interface Told {
  readonly modRevision: number;
  /** 0: deleted. */
  readonly version: number;
}

const name = (key: Uint8Array): string => Buffer.from(key).toString('latin1');

export class ToldChanges {
  #since: number | undefined;
  #count = 0;
  readonly #last = new Map<string, Told>();
  /** How each revision changed the number of keys. */
  #changes: { readonly revision: number; readonly by: number }[] = [];

  /** Up to here nothing was left out; undefined: not known yet. */
  get since(): number | undefined {
    return this.#since;
  }

  get size(): number {
    return this.#changes.length;
  }

  /** How many keys there are at a revision, as far as was told. */
  countAt(revision: number): number {
    return this.#changes.reduce((sum, change) => (change.revision <= revision ? sum + change.by : sum), this.#count);
  }

  /** At a revision up to which all was told. */
  startFrom(revision: number, count: number): void {
    this.#since = revision;
    this.#count = count;
    this.#changes = this.#changes.filter((change) => change.revision > revision);
    for (const [key, { modRevision }] of this.#last) if (modRevision <= revision) this.#last.delete(key);
  }

  /** @returns false when the key must have changed in between */
  add({ type, kv }: WatchEventMessage): boolean {
    const key = name(kv.key);
    const before = this.#last.get(key);
    const isPut = type === 0;
    const isNext = before === undefined || kv.version === before.version + 1 || (!isPut && before.version > 0);
    this.#last.set(key, { modRevision: kv.modRevision, version: isPut ? kv.version : 0 });
    if (kv.modRevision <= (this.#since ?? 0)) return isNext;
    const by = isPut ? Number(kv.version === 1) : -1;
    this.#changes.push({ revision: kv.modRevision, by });
    return isNext;
  }

  /** @param listed keys that changed since, and `count` how many there are in all, both as of `revision` */
  has(
    listed: readonly KeyValue[],
    { revision, count }: { readonly revision: number; readonly count: number },
  ): boolean {
    if (this.countAt(revision) !== count) return false;
    return listed.every(({ key, modRevision }) => (this.#last.get(name(key))?.modRevision ?? 0) >= modRevision);
  }
}
