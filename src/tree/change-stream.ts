/** `/.changes`: what each reader is told of each commit, and the readers that wait. */
import { EBUSY, EINTR } from '../wire/index.ts';
import type { Way } from './caller.ts';
import type { Change, Delta } from './delta.ts';
import type { Done } from './file-system.ts';
import { UID_SHARE } from './ledger.ts';
import type { Node } from './node.ts';
import type { OpenFile } from './open-files.ts';
import type { Replica } from './replica.ts';
import type { Snapshot } from './snapshot.ts';

export const changeLimits = {
  /** Readers that wait at once in a VM; a uid may have a quarter. More get EBUSY. */
  waiters: 16,
  /** Commits that are remembered for readers that are behind; older ones are told as missed. */
  backlog: 256,
} as const;

interface Remembered {
  readonly revision: number;
  readonly changes: readonly { readonly change: Change; readonly node: Node }[];
}

interface Waiter {
  readonly file: OpenFile;
  readonly sizeBytes: number;
  readonly done: Done<Uint8Array>;
  readonly deadlineMs: number;
}

const encoder = new TextEncoder();
const NOTHING = new Uint8Array();

export class ChangeStream {
  readonly #replica: Replica;
  readonly #way: Way;
  readonly #monotonicMs: () => number;
  readonly #wallMs: () => number;
  readonly #backlog: Remembered[] = [];
  /** Commits up to this revision are forgotten. */
  #forgotten: number;
  readonly #waiters = new Set<Waiter>();

  constructor(replica: Replica, way: Way, monotonicMs: () => number, wallMs: () => number) {
    this.#replica = replica;
    this.#way = way;
    this.#monotonicMs = monotonicMs;
    this.#wallMs = wallMs;
    this.#forgotten = replica.snapshot.revision;
  }

  /** Remembers a commit, and answers the waiting readers that it concerns. */
  applied(delta: Delta, before: Snapshot): void {
    if (delta.full) {
      this.#backlog.length = 0;
      this.#forgotten = delta.revision - (delta.changes.length > 0 ? 0 : 1);
    }
    if (delta.changes.length > 0) {
      const after = this.#replica.snapshot;
      const changes = delta.changes.flatMap((change) => {
        const node = after.node(change.ino) ?? before.node(change.ino);
        return node === undefined ? [] : [{ change, node }];
      });
      this.#backlog.push({ revision: delta.revision, changes });
      if (this.#backlog.length > changeLimits.backlog) this.#forgotten = this.#backlog.shift()!.revision;
    }
    for (const waiter of [...this.#waiters]) {
      const bytes = this.take(waiter.file, waiter.sizeBytes);
      if (bytes.length > 0) this.#answer(waiter, 0, bytes);
    }
  }

  /** Up to `sizeBytes` of what the reader has not been told; empty when there is nothing yet. */
  take(file: OpenFile, sizeBytes: number): Uint8Array {
    if (file.rest === undefined) {
      const text = this.#news(file);
      if (text === '') return NOTHING;
      file.rest = encoder.encode(text);
    }
    const bytes = file.rest.subarray(0, sizeBytes);
    file.rest = bytes.length === file.rest.length ? undefined : file.rest.subarray(bytes.length);
    return bytes;
  }

  /** True when a reader would not have to wait. */
  ready(file: OpenFile): boolean {
    if (file.rest !== undefined) return true;
    const text = this.#news(file);
    if (text !== '') file.rest = encoder.encode(text);
    return text !== '';
  }

  wait(file: OpenFile, sizeBytes: number, done: Done<Uint8Array>): () => void {
    let ofUid = 0;
    for (const waiter of this.#waiters) if (waiter.file.caller.uid === file.caller.uid) ofUid++;
    if (this.#waiters.size >= changeLimits.waiters || ofUid >= changeLimits.waiters / UID_SHARE) {
      done(EBUSY, undefined);
      return () => {};
    }
    const waiter: Waiter = { file, sizeBytes, done, deadlineMs: this.#monotonicMs() + this.#way.heartbeatMs };
    this.#waiters.add(waiter);
    return () => this.#answer(waiter, EINTR, undefined);
  }

  heartbeat(due: (waiter: { readonly deadlineMs: number }) => boolean): void {
    for (const waiter of [...this.#waiters]) {
      if (!due(waiter)) continue;
      waiter.file.rest = encoder.encode(
        `${JSON.stringify({ revision: this.#replica.snapshot.revision, heartbeat: true })}\n`,
      );
      this.#answer(waiter, 0, this.take(waiter.file, waiter.sizeBytes));
    }
  }

  /** Ends the wait of a handle that is closed. */
  close(file: OpenFile): void {
    for (const waiter of [...this.#waiters]) if (waiter.file === file) this.#answer(waiter, EINTR, undefined);
  }

  /** Forgets all waiters without answering them. */
  reset(): void {
    this.#waiters.clear();
  }

  nextDeadlineMs(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const waiter of this.#waiters) next = Math.min(next, waiter.deadlineMs);
    return next;
  }

  #answer(waiter: Waiter, errno: number, bytes: Uint8Array | undefined): void {
    if (this.#waiters.delete(waiter)) waiter.done(errno, bytes);
  }

  /** One JSON line for each commit that the reader has not been told of and may see something of. */
  #news(file: OpenFile): string {
    let text = '';
    if (file.toldRevision < this.#forgotten) {
      text = `${JSON.stringify({ revision: this.#forgotten, missed: true })}\n`;
      file.toldRevision = this.#forgotten;
    }
    for (const { revision, changes } of this.#backlog) {
      if (revision <= file.toldRevision) continue;
      file.toldRevision = revision;
      const seen = changes.filter(({ change, node }) =>
        this.#replica.visible(this.#way, change, node, file.caller, this.#wallMs()),
      );
      if (seen.length === 0) continue;
      text += `${JSON.stringify({ revision, changes: seen.map(({ change }) => ({ path: change.path, change: change.what })) })}\n`;
    }
    return text;
  }
}
