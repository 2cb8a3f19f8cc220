/**
 * Sessions of the console: a browser that showed a key once goes on with a cookie, which no script can read. The region's store
 * has the hash of its id, so every manager of the region knows it. A session may what its key may, and ends with it.
 */
import { createHash } from 'node:crypto';
import { SessionRecord } from '../records/index.ts';
import { follow } from './follow.ts';
import type { CheckedKey, Keys } from './keys.ts';
import { getRecord, type Kept, type Kit, put, remove, unchanged } from './kit.ts';
import { ApiError } from './problem.ts';

const prefix = 'session/';
const idBytes = 32;
/** It ends after so long without use, and so long after it began. */
const idleMs = 12 * 3_600_000;
export const longestMs = 7 * 24 * 3_600_000;
/** How often its use is written down. */
const renewMs = 10 * 60_000;
/** Of one key at once; the oldest goes for another. */
const mostOfKey = 32;
const expiredAtOnce = 20;

export interface CheckedSession extends CheckedKey {
  readonly expiresAtMs: number;
}

interface Held {
  readonly record: SessionRecord;
  readonly modRevision: number;
  readonly ended: AbortController;
  timer: NodeJS.Timeout | undefined;
}

const keyOf = (id: string): string => `${prefix}${createHash('sha256').update(id).digest('hex')}`;
const endOf = ({ createdAtMs }: Pick<SessionRecord, 'createdAtMs'>, usedAtMs: number): number =>
  Math.min(createdAtMs + longestMs, usedAtMs + idleMs);

export class Sessions {
  readonly #kit: Kit;
  readonly #keys: Keys;
  readonly #held = new Map<string, Held>();

  constructor(kit: Kit, keys: Keys) {
    this.#kit = kit;
    this.#keys = keys;
  }

  /** Until the signal: hears of sessions that end at other managers. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { region: store } = this.#kit;
    await follow(
      this.#kit,
      { store, prefix, schema: SessionRecord, signal },
      {
        all: (records) => {
          const there = new Set(records.map(({ key }) => key));
          for (const key of [...this.#held.keys()]) if (!there.has(key)) this.#drop(key);
          for (const record of records) this.#hold(record);
        },
        put: (record) => void this.#hold(record),
        removed: (key) => this.#drop(key),
      },
    );
    for (const key of [...this.#held.keys()]) this.#drop(key);
  }

  /** @returns what its cookie has, which nobody can read again */
  async create(key: string): Promise<{ readonly id: string; readonly expiresAtMs: number }> {
    const { region, randomBytes, wallMs } = this.#kit;
    const id = randomBytes(idBytes).toString('base64url');
    const createdAtMs = wallMs();
    const record: SessionRecord = { key, createdAtMs, expiresAtMs: endOf({ createdAtMs }, createdAtMs) };
    await region.commit({ operations: [put(keyOf(id), record), ...this.#superfluous(key).map(remove)] });
    return { id, expiresAtMs: record.expiresAtMs };
  }

  #superfluous(ofKey: string): string[] {
    const nowMs = this.#kit.wallMs();
    const all = [...this.#held];
    const over = all.filter(([, { record }]) => nowMs >= record.expiresAtMs || !this.#keys.find(record.key));
    const own = all.filter(([key, { record }]) => record.key === ofKey && !over.some(([gone]) => gone === key));
    const oldest = own.toSorted(([, a], [, b]) => a.record.createdAtMs - b.record.createdAtMs);
    const most = oldest.slice(0, Math.max(0, own.length - mostOfKey + 1));
    return [...over.slice(0, expiredAtOnce), ...most].map(([key]) => key);
  }

  /** Undefined when it is none, has ended, or its key has. */
  async check(id: string): Promise<CheckedSession | undefined> {
    const key = keyOf(id);
    const nowMs = this.#kit.wallMs();
    const isOver = ({ record, ended }: Held): boolean => ended.signal.aborted || nowMs >= record.expiresAtMs;
    let held = this.#held.get(key);
    // One that was begun, or used, at another manager just now.
    if (held === undefined || isOver(held)) held = await this.#read(key);
    if (held === undefined || isOver(held)) return undefined;
    const { record } = held;
    const checked = this.#keys.find(record.key);
    if (checked === undefined) return undefined;
    const expiresAtMs = endOf(record, nowMs);
    if (expiresAtMs - record.expiresAtMs >= renewMs) await this.#renew(key, held, expiresAtMs);
    return { key: checked.key, ended: AbortSignal.any([checked.ended, held.ended.signal]), expiresAtMs };
  }

  async #read(key: string): Promise<Held | undefined> {
    const found = await getRecord(this.#kit.region, SessionRecord, key);
    return found && this.#hold(found);
  }

  async #renew(key: string, { record, modRevision }: Held, expiresAtMs: number): Promise<void> {
    // Another manager, or another request, may have been faster: then it is renewed.
    await this.#kit.region.commit({
      conditions: [unchanged(key, { modRevision })],
      operations: [put(key, { ...record, expiresAtMs })],
    });
  }

  async end(id: string): Promise<void> {
    const key = keyOf(id);
    await this.#kit.region.commit({ operations: [remove(key)] });
    this.#drop(key);
  }

  #hold({ key, record, modRevision }: Kept<SessionRecord>): Held {
    const before = this.#held.get(key);
    if (before !== undefined && before.modRevision >= modRevision) return before;
    clearTimeout(before?.timer);
    const ended = before?.ended.signal.aborted === false ? before.ended : new AbortController();
    const held: Held = { record, modRevision, ended, timer: undefined };
    this.#arm(held);
    this.#held.set(key, held);
    return held;
  }

  #arm(held: Held): void {
    const leftMs = held.record.expiresAtMs - this.#kit.wallMs();
    held.timer = setTimeout(
      () => {
        if (this.#kit.wallMs() >= held.record.expiresAtMs) held.ended.abort(sessionEnded());
        else this.#arm(held);
      },
      Math.max(1, leftMs),
    ).unref();
  }

  #drop(key: string): void {
    const held = this.#held.get(key);
    if (held === undefined) return;
    this.#held.delete(key);
    clearTimeout(held.timer);
    held.ended.abort(sessionEnded());
  }
}

export const sessionEnded = (): ApiError => new ApiError('BAD_KEY', 'the session has ended; sign in again');
