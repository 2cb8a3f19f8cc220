/**
 * Linux tries an open that met ESTALE once more, from LOOKUP on, and then gives up. A commit between that LOOKUP and its OPEN
 * must not fail the program: the version that was current at the LOOKUP, within the same open(2), is what it gets.
 */
import type { Caller, Node } from '../tree/index.ts';

/** One open that is being tried again, by the thread that opens. */
interface Retry {
  readonly uid: number;
  /** Of the last LOOKUP, monotonic milliseconds. */
  atMs: number;
  /** Of the last LOOKUP, or 0 before it. */
  nodeid: number;
  node: Node | undefined;
}

/** From LOOKUP to OPEN; a guest that is short of CPU takes its time. Nothing later may profit from it. */
const RETRY_MS = 5000;

/** Each may keep one old version alive. A uid may have a quarter; its own oldest goes first. */
export const retryLimits = { retries: 256, bytes: 64 * 1024 * 1024 } as const;
const UID_RETRIES = retryLimits.retries / 4;
const UID_BYTES = retryLimits.bytes / 4;

/** By pid, oldest first. What is not opened in time is dropped by `tick`. */
export class Retries {
  readonly #byPid = new Map<number, Retry>();

  get size(): number {
    return this.#byPid.size;
  }

  /** Bytes of the versions that are kept, whether or not they are still in the tree. */
  get bytes(): number {
    let bytes = 0;
    for (const { node } of this.#byPid.values()) bytes += node?.sizeBytes ?? 0;
    return bytes;
  }

  get(pid: number, nowMs: number): Retry | undefined {
    const retry = this.#byPid.get(pid);
    return retry !== undefined && nowMs - retry.atMs < RETRY_MS ? retry : undefined;
  }

  /** An OPEN was answered ESTALE: LOOKUPs of that thread are the kernel's second try. */
  expect({ pid, uid }: Caller, nowMs: number): void {
    this.#byPid.delete(pid);
    if (pid === 0) return;
    this.#byPid.set(pid, { uid, atMs: nowMs, nodeid: 0, node: undefined });
    this.#bound(uid);
  }

  /** The second try looked a name up and was given this nodeid and version. */
  lookedUp(pid: number, nodeid: number, node: Node, nowMs: number): void {
    const retry = this.get(pid, nowMs);
    if (retry === undefined) return;
    retry.atMs = nowMs;
    retry.nodeid = nodeid;
    retry.node = node;
    this.#byPid.delete(pid);
    this.#byPid.set(pid, retry);
    this.#bound(retry.uid);
  }

  delete(pid: number): boolean {
    return this.#byPid.delete(pid);
  }

  clear(): void {
    this.#byPid.clear();
  }

  /** Lets go what came too late. */
  tick(nowMs: number): void {
    for (const [pid, { atMs }] of this.#byPid) {
      if (nowMs - atMs < RETRY_MS) return;
      this.#byPid.delete(pid);
    }
  }

  nextDeadlineMs(): number {
    for (const { atMs } of this.#byPid.values()) return atMs + RETRY_MS;
    return Number.POSITIVE_INFINITY;
  }

  /** Drops the oldest of a uid that has more than its share. Five uids can fill the table: then the oldest of all. */
  #bound(uid: number): void {
    let bytes = 0;
    let bytesOfUid = 0;
    let countOfUid = 0;
    for (const retry of this.#byPid.values()) {
      const size = retry.node?.sizeBytes ?? 0;
      bytes += size;
      if (retry.uid !== uid) continue;
      bytesOfUid += size;
      countOfUid++;
    }
    for (const [pid, retry] of this.#byPid) {
      const ofUid = retry.uid === uid;
      const uidHasTooMuch = countOfUid > UID_RETRIES || bytesOfUid > UID_BYTES;
      const allHaveTooMuch = this.#byPid.size > retryLimits.retries || bytes > retryLimits.bytes;
      if (!uidHasTooMuch && !allHaveTooMuch) return;
      if (uidHasTooMuch && !ofUid) continue;
      this.#byPid.delete(pid);
      const size = retry.node?.sizeBytes ?? 0;
      bytes -= size;
      if (!ofUid) continue;
      bytesOfUid -= size;
      countOfUid--;
    }
  }
}
