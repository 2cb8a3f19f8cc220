/**
 * Keys of the API: `ph_ID_SECRET`. The store holds SHA-256 of the secret, which has 256 bits and needs no slow hash.
 *
 * They are made in the global store. Each region keeps a copy, by which its managers decide, so that it goes on when it is
 * cut off. A key is revoked in the region's store, and in the global one by the outbox. In place of a revoked key's copy a
 * mark is left, which no later copy replaces. All copies are held in memory and follow the region's store by a watch, so
 * that a revoked key ends within moments, its open streams too.
 */
import { Buffer } from 'node:buffer';
import { createHash, timingSafeEqual } from 'node:crypto';
import { AccountRecord, accountKey, KeyCopyRecord, KeyRecord, type Role } from '../records/index.ts';
import { keyText, prefixRange } from '../store/index.ts';
import { isLeaving, noAccount } from './accounts.ts';
import { follow } from './follow.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { entriesOf, getRecord, type Kept, type Kit, kept, pause, put, remove, unchanged } from './kit.ts';
import { type Outbox, outboxEntry } from './outbox.ts';
import { ApiError } from './problem.ts';

const prefix = 'key/';
const retryMs = 200;
/** A key that nothing was heard of for so long is not trusted: a revocation would not be seen. */
const trustMs = 4_000;
const longestTimerMs = 2 ** 31 - 1;
/**
 * How long a key is listed after its end, and a revoked one remembered in a region. The former then goes when another is
 * made, with few others.
 */
const afterEndMs = 30 * 24 * 3_600_000;
const expiredAtOnce = 50;
/** How long whoever revokes a key waits for the global store to hear of it. */
const tellMs = 2_000;

const keyPattern = /^ph_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$/;

export type KeyFacts = Pick<KeyRecord, 'id' | 'account' | 'name' | 'role' | 'vms' | 'createdAtMs' | 'expiresAtMs'>;

/** A key that is valid, and a signal that aborts when it ends. */
export interface CheckedKey {
  readonly key: KeyFacts;
  readonly ended: AbortSignal;
}

export interface KeyWish {
  readonly name: string;
  readonly role: Role;
  /** The only VMs that it may touch. */
  readonly vms?: KeyRecord['vms'];
  readonly expiresAtMs: number | undefined;
}

interface Held {
  readonly record: KeyRecord;
  readonly hash: Buffer;
  readonly ended: AbortController;
  timer: NodeJS.Timeout | undefined;
}

const hashOf = (secret: string): Buffer => createHash('sha256').update(secret).digest();
const nobody = hashOf('');
const keyOf = (id: string): string => `${prefix}${id}`;
const idOf = (key: string): string => key.slice(prefix.length);

export class Keys {
  readonly #kit: Kit;
  readonly #outbox: Outbox;
  readonly #held = new Map<string, Held>();
  /** Ids that have a mark: what is heard late of such a key is old. */
  readonly #revoked = new Set<string>();
  /** When the watch broke, by the monotonic clock; undefined while it runs. */
  #blindSinceMs: number | undefined = performance.now();
  #loaded = Promise.withResolvers<void>();

  constructor(kit: Kit, outbox: Outbox) {
    this.#kit = kit;
    this.#outbox = outbox;
  }

  /** Resolves when the region has a copy of every key, and they are known here. */
  get ready(): Promise<void> {
    return this.#loaded.promise;
  }

  /** Until the signal: keeps the region's copies, and follows them. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const copied = Promise.withResolvers<void>();
    const copying = this.#keepCopies(signal, copied.resolve);
    await Promise.race([copied.promise, copying]);
    await this.#follow(signal);
    await copying;
  }

  async #keepCopies(signal: AbortSignal, copied: () => void): Promise<void> {
    await follow(
      this.#kit,
      { store: this.#kit.global, prefix, schema: KeyRecord, signal },
      {
        all: async (originals) => {
          await this.#copyAll(originals);
          copied();
        },
        put: ({ key }) => this.#copy(key),
        removed: (key) => this.#copy(key),
      },
    );
  }

  async #copies(): Promise<Kept<KeyCopyRecord>[]> {
    const { entries } = await entriesOf(this.#kit.region, prefix);
    return entries.map((entry) => kept(KeyCopyRecord, entry));
  }

  async #copyAll(originals: readonly Kept<KeyRecord>[]): Promise<void> {
    const copies = await this.#copies();
    const copied = new Set(copies.map(({ key }) => key));
    const there = new Set(originals.map(({ key }) => key));
    for (const key of there) if (!copied.has(key)) await this.#copy(key);
    const forgottenMs = this.#kit.wallMs() - afterEndMs;
    for (const { key, record, modRevision } of copies) {
      if (there.has(key)) continue;
      if (record.state === 'valid') await this.#copy(key);
      else if (record.atMs < forgottenMs)
        await this.#kit.region.commit({ conditions: [{ key, modRevision }], operations: [remove(key)] });
    }
  }

  /**
   * Has the region say what the global store says of a key, unless it was revoked here. The copy is read first, and a mark
   * is left even where there was none: what another manager read before that it can then not write any more.
   */
  async #copy(key: string): Promise<void> {
    const { region, global } = this.#kit;
    for (;;) {
      const copy = await getRecord(region, KeyCopyRecord, key);
      if (copy?.record.state === 'revoked') return;
      const original = await getRecord(global, KeyRecord, key);
      // A key never changes.
      if (copy !== undefined && original !== undefined) return;
      const now: KeyCopyRecord = original === undefined ? this.#revokedNow() : { state: 'valid', key: original.record };
      const transaction = { conditions: [unchanged(key, copy)], operations: [put(key, now)] };
      if ((await region.commit(transaction)).committed) return;
    }
  }

  #revokedNow(): KeyCopyRecord {
    return { state: 'revoked', atMs: this.#kit.wallMs() };
  }

  async #follow(signal: AbortSignal): Promise<void> {
    const { region, log } = this.#kit;
    while (!signal.aborted) {
      try {
        const { revision, entries } = await entriesOf(region, prefix);
        const found = new Set(entries.map(({ key }) => idOf(keyText(key))));
        for (const id of [...this.#held.keys(), ...this.#revoked]) if (!found.has(id)) this.#forget(id);
        for (const entry of entries) this.#heard(kept(KeyCopyRecord, entry));
        this.#blindSinceMs = undefined;
        this.#loaded.resolve();
        for await (const { events } of region.watch(prefixRange(prefix), { from: revision + 1, signal })) {
          for (const event of events) {
            if (event.type === 'put') this.#heard(kept(KeyCopyRecord, event.entry));
            else this.#forget(idOf(keyText(event.key)));
          }
        }
      } catch (error) {
        this.#blindSinceMs ??= performance.now();
        if (!signal.aborted) log.error({ err: error }, 'following the keys failed; beginning anew');
        await pause(retryMs, signal);
        if (performance.now() - this.#blindSinceMs >= trustMs) for (const id of [...this.#held.keys()]) this.#drop(id);
      }
    }
    for (const id of [...this.#held.keys()]) this.#drop(id);
  }

  /** The key, and a signal that aborts when it ends; undefined when it is not valid. Takes as long for every wrong one. */
  check(text: string): CheckedKey | undefined {
    const [, id, secret] = keyPattern.exec(text) ?? [];
    const held = id === undefined ? undefined : this.#held.get(id);
    const isRight = timingSafeEqual(hashOf(secret ?? ''), held?.hash ?? nobody);
    return isRight ? this.#valid(held) : undefined;
  }

  /** The key that a session is of, as `check`. */
  find(id: string): CheckedKey | undefined {
    return this.#valid(this.#held.get(id));
  }

  #valid(held: Held | undefined): CheckedKey | undefined {
    if (held === undefined || held.ended.signal.aborted) return undefined;
    if (this.#blindSinceMs !== undefined && performance.now() - this.#blindSinceMs >= trustMs) return undefined;
    if (isExpired(held.record, this.#kit.wallMs())) return undefined;
    return { key: factsOf(held.record), ended: held.ended.signal };
  }

  /** @returns the key's text, which nobody can read again */
  async create(
    account: string,
    { name, role, vms, expiresAtMs }: KeyWish,
    commit?: CommitOnce,
  ): Promise<{ readonly key: KeyFacts; readonly text: string }> {
    const id = this.#kit.randomBytes(8).toString('hex');
    const secret = this.#kit.randomBytes(32).toString('base64url');
    const record: KeyRecord = {
      id,
      account,
      name,
      role,
      secretHash: hashOf(secret).toString('hex'),
      createdAtMs: this.#kit.wallMs(),
      ...(vms !== undefined && { vms }),
      ...(expiresAtMs !== undefined && { expiresAtMs }),
    };
    const owner = await getRecord(this.#kit.global, AccountRecord, accountKey(account));
    if (owner === undefined) throw noAccount(account);
    if (owner.record.state === 'leaving') throw isLeaving(account);
    const key = keyOf(id);
    const transaction = {
      conditions: [
        { key, exists: false },
        { key: owner.key, modRevision: owner.modRevision },
      ],
      operations: [put(key, record), ...this.#longExpired().map((old) => remove(keyOf(old)))],
    };
    // What is kept for a repeat says that there is one, and not the secret.
    const committed = commit
      ? await commit(transaction, { status: 409, headers: {}, body: JSON.stringify({ key: id }) })
      : (await this.#kit.global.commit(transaction)).committed;
    if (!committed) throw new ApiError('CONFLICT', `the account "${account}" was changed at the same time; try again`);
    await this.#copy(key);
    // Known here at once, so that it works in the next request.
    this.#hold(record);
    return { key: factsOf(record), text: `ph_${id}_${secret}` };
  }

  #longExpired(): string[] {
    const atMs = this.#kit.wallMs() - afterEndMs;
    const old = [...this.#held.values()].filter(({ record }) => isExpired(record, atMs));
    return old.slice(0, expiredAtOnce).map(({ record }) => record.id);
  }

  async list(account: string): Promise<KeyFacts[]> {
    return (await this.#copies())
      .flatMap(({ record }) => validOf(record) ?? [])
      .filter((record) => record.account === account)
      .map(factsOf);
  }

  /**
   * In this region when it resolves, and everywhere else unless the global store is away: then as soon as it is back.
   * `commit` is that of the region. NOT_FOUND.
   */
  async revoke(account: string, id: string, commit: CommitOnce, answer: Answer): Promise<Answer> {
    const { region, global } = this.#kit;
    const key = keyOf(id);
    for (;;) {
      const copy = await getRecord(region, KeyCopyRecord, key);
      // One that was made in another region may not have come here yet.
      const found = copy === undefined ? (await getRecord(global, KeyRecord, key))?.record : validOf(copy.record);
      if (found?.account !== account) throw new ApiError('NOT_FOUND', `there is no key "${id}"`);
      const operations = [put(key, this.#revokedNow()), outboxEntry(this.#kit, [{ type: 'delete', key }])];
      if (await commit({ conditions: [unchanged(key, copy)], operations }, answer)) break;
    }
    this.#end(id);
    await this.#tell(id);
    return answer;
  }

  async #tell(id: string): Promise<void> {
    const over = new AbortController();
    const isTold = await Promise.race([
      this.#outbox.drain().then(
        () => true,
        () => false,
      ),
      pause(tellMs, over.signal).then(() => false),
    ]);
    over.abort();
    if (!isTold) this.#kit.log.warn({ key: id }, 'a key is revoked in this region; others hear of it later');
  }

  #heard({ key, record }: Kept<KeyCopyRecord>): void {
    if (record.state === 'valid') this.#hold(record.key);
    else this.#end(idOf(key));
  }

  #end(id: string): void {
    this.#revoked.add(id);
    this.#drop(id);
  }

  #forget(id: string): void {
    this.#revoked.delete(id);
    this.#drop(id);
  }

  #hold(record: KeyRecord): void {
    if (this.#revoked.has(record.id)) return;
    const before = this.#held.get(record.id);
    if (before !== undefined && JSON.stringify(before.record) === JSON.stringify(record)) return;
    this.#drop(record.id);
    const ended = new AbortController();
    const held: Held = { record, hash: Buffer.from(record.secretHash, 'hex'), ended, timer: undefined };
    this.#armExpiry(held);
    this.#held.set(record.id, held);
  }

  #armExpiry(held: Held): void {
    const { expiresAtMs } = held.record;
    if (expiresAtMs === undefined) return;
    const leftMs = expiresAtMs - this.#kit.wallMs();
    held.timer = setTimeout(
      () => {
        if (isExpired(held.record, this.#kit.wallMs()))
          held.ended.abort(new ApiError('BAD_KEY', 'the key has expired'));
        else this.#armExpiry(held);
      },
      Math.min(Math.max(1, leftMs), longestTimerMs),
    ).unref();
  }

  #drop(id: string): void {
    const held = this.#held.get(id);
    if (held === undefined) return;
    this.#held.delete(id);
    clearTimeout(held.timer);
    held.ended.abort(new ApiError('BAD_KEY', 'the key was revoked'));
  }
}

const validOf = (copy: KeyCopyRecord): KeyRecord | undefined => (copy.state === 'valid' ? copy.key : undefined);

const isExpired = ({ expiresAtMs }: KeyRecord, nowMs: number): boolean =>
  expiresAtMs !== undefined && nowMs >= expiresAtMs;

const factsOf = ({ id, account, name, role, vms, createdAtMs, expiresAtMs }: KeyRecord): KeyFacts => ({
  id,
  account,
  name,
  role,
  vms,
  createdAtMs,
  expiresAtMs,
});
