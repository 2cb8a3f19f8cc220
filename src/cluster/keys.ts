/**
 * Keys of the API: `ph_ID_SECRET`. The store holds SHA-256 of the secret, which has 256 bits and needs no slow hash. All
 * keys are held in memory and follow the store by a watch, so that a revoked key ends within moments, its open streams too.
 */
import { Buffer } from 'node:buffer';
import { createHash, timingSafeEqual } from 'node:crypto';
import { AccountRecord, accountKey, KeyRecord, type Role } from '../records/index.ts';
import { keyText, prefixRange } from '../store/index.ts';
import { isLeaving, noAccount } from './accounts.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { entriesOf, getRecord, type Kit, kept, pause, put, remove } from './kit.ts';
import { ApiError } from './problem.ts';

const prefix = 'key/';
const retryMs = 200;
/** A key that nothing was heard of for so long is not trusted: a revocation would not be seen. */
const trustMs = 4_000;
const longestTimerMs = 2 ** 31 - 1;
/** How long a key is listed after its end. Then it goes when another is made, with few others. */
const listedAfterEndMs = 30 * 24 * 3_600_000;
const expiredAtOnce = 50;

const keyPattern = /^ph_([0-9a-f]{16})_([A-Za-z0-9_-]{43})$/;

export type KeyFacts = Pick<KeyRecord, 'id' | 'account' | 'name' | 'role' | 'vms' | 'createdAtMs' | 'expiresAtMs'>;

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

export class Keys {
  readonly #kit: Kit;
  readonly #held = new Map<string, Held>();
  /** When the watch broke, by the monotonic clock; undefined while it runs. */
  #blindSinceMs: number | undefined = performance.now();
  #loaded = Promise.withResolvers<void>();

  constructor(kit: Kit) {
    this.#kit = kit;
  }

  /** Resolves when the keys of the store are known. */
  get ready(): Promise<void> {
    return this.#loaded.promise;
  }

  /** Until the signal: follows the store. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { global, log } = this.#kit;
    while (!signal.aborted) {
      try {
        const { revision, entries } = await entriesOf(global, prefix);
        const found = new Set(entries.map(({ key }) => keyText(key).slice(prefix.length)));
        for (const id of [...this.#held.keys()]) if (!found.has(id)) this.#drop(id);
        for (const entry of entries) this.#hold(kept(KeyRecord, entry).record);
        this.#blindSinceMs = undefined;
        this.#loaded.resolve();
        for await (const { events } of global.watch(prefixRange(prefix), { from: revision + 1, signal })) {
          for (const event of events) {
            if (event.type === 'put') this.#hold(kept(KeyRecord, event.entry).record);
            else this.#drop(keyText(event.key).slice(prefix.length));
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
  check(text: string): { readonly key: KeyFacts; readonly ended: AbortSignal } | undefined {
    const [, id, secret] = keyPattern.exec(text) ?? [];
    const held = id === undefined ? undefined : this.#held.get(id);
    const isRight = timingSafeEqual(hashOf(secret ?? ''), held?.hash ?? nobody);
    if (!isRight || held === undefined || held.ended.signal.aborted) return undefined;
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
    const transaction = {
      conditions: [
        { key: `${prefix}${id}`, exists: false },
        { key: owner.key, modRevision: owner.modRevision },
      ],
      operations: [put(`${prefix}${id}`, record), ...this.#longExpired().map((old) => remove(`${prefix}${old}`))],
    };
    // What is kept for a repeat says that there is one, and not the secret.
    const committed = commit
      ? await commit(transaction, { status: 409, headers: {}, body: JSON.stringify({ key: id }) })
      : (await this.#kit.global.commit(transaction)).committed;
    if (!committed) throw new ApiError('CONFLICT', `the account "${account}" was changed at the same time; try again`);
    // Known here at once, so that it works in the next request.
    this.#hold(record);
    return { key: factsOf(record), text: `ph_${id}_${secret}` };
  }

  #longExpired(): string[] {
    const atMs = this.#kit.wallMs() - listedAfterEndMs;
    const old = [...this.#held.values()].filter(({ record }) => isExpired(record, atMs));
    return old.slice(0, expiredAtOnce).map(({ record }) => record.id);
  }

  async list(account: string): Promise<KeyFacts[]> {
    const { entries } = await entriesOf(this.#kit.global, prefix);
    return entries
      .map((entry) => kept(KeyRecord, entry).record)
      .filter((record) => record.account === account)
      .map(factsOf);
  }

  /** NOT_FOUND. */
  async revoke(account: string, id: string, commit: CommitOnce, answer: Answer): Promise<Answer> {
    const key = `${prefix}${id}`;
    const entry = await this.#kit.global.get(key);
    if (entry === undefined || kept(KeyRecord, entry).record.account !== account)
      throw new ApiError('NOT_FOUND', `there is no key "${id}"`);
    const conditions = [{ key, modRevision: entry.modRevision }];
    if (!(await commit({ conditions, operations: [remove(key)] }, answer)))
      throw new ApiError('NOT_FOUND', `the key "${id}" was revoked a moment ago`);
    this.#drop(id);
    return answer;
  }

  #hold(record: KeyRecord): void {
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
