/** `/.changes`: what each reader is told of each commit, and the readers that wait. */
import { EBUSY, EINTR, EMFILE, ENFILE } from '../wire/index.ts';
import type { Way } from './caller.ts';
import type { Change, Delta } from './delta.ts';
import type { Done } from './file-system.ts';
import { UID_SHARE } from './ledger.ts';
import { type Node, ROOT_INO } from './node.ts';
import type { OpenFile } from './open-files.ts';
import type { OpenJournal } from './open-journal.ts';
import type { RememberedChange, Replica } from './replica.ts';
import type { Snapshot } from './snapshot.ts';

export const changeLimits = {
  /** Handles of the stream in a VM; a uid may have a quarter. Each may keep a line that its reader has not taken whole. */
  handles: 256,
  /** Readers that wait at once in a VM; a uid may have a quarter. More get EBUSY. */
  waiters: 16,
  /** Commits that are remembered for readers that are behind, and changes in all of them; older ones are told as missed. */
  backlog: 256,
  backlogChanges: 8192,
  /** A commit of more changes is told as missed to everybody: each change is judged anew for each reader. */
  commitChanges: 2048,
  /** A reader is given no more lines at once when they have this many characters; the next read gives the rest. */
  batchChars: 4096,
  /** A commit that takes a longer line is told as missed: the reader looks at the tree instead. */
  lineChars: 65_536,
} as const;

interface Remembered {
  readonly revision: number;
  readonly changes: readonly RememberedChange[];
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
  #backlogChanges = 0;
  /** Commits up to this revision are forgotten. */
  #forgotten: number;
  readonly #waiters = new Set<Waiter>();
  readonly #journal: OpenJournal | undefined;
  #handles = 0;
  readonly #handlesOf = new Map<number, number>();

  constructor(
    replica: Replica,
    way: Way,
    monotonicMs: () => number,
    wallMs: () => number,
    journal: OpenJournal | undefined,
  ) {
    this.#replica = replica;
    this.#journal = journal;
    // No kernel checks what a line tells.
    this.#way = { ...way, kernelChecks: false };
    this.#monotonicMs = monotonicMs;
    this.#wallMs = wallMs;
    this.#forgotten = replica.snapshot.revision;
  }

  /** 0, ENFILE when the VM has too many handles of the stream, EMFILE when the uid has. */
  room(uid: number): number {
    if (this.#handles >= changeLimits.handles) return ENFILE;
    return (this.#handlesOf.get(uid) ?? 0) >= changeLimits.handles / UID_SHARE ? EMFILE : 0;
  }

  /** Counts a handle until it is closed. */
  open({ caller }: OpenFile): void {
    this.#handles++;
    this.#handlesOf.set(caller.uid, (this.#handlesOf.get(caller.uid) ?? 0) + 1);
  }

  /** Remembers a commit, and answers the waiting readers that it concerns. */
  applied(delta: Delta, before: Snapshot): void {
    // What happened between the last commit that arrived and a full one is not known.
    if (delta.full || delta.changes.length > changeLimits.commitChanges) {
      this.#backlog.length = 0;
      this.#backlogChanges = 0;
      this.#forgotten = delta.revision;
    } else if (delta.changes.length > 0) {
      const changes = delta.changes.flatMap((change) => remembered(change, before, this.#replica.snapshot) ?? []);
      this.#backlog.push({ revision: delta.revision, changes });
      this.#backlogChanges += changes.length;
      while (this.#backlog.length > changeLimits.backlog || this.#backlogChanges > changeLimits.backlogChanges) {
        const oldest = this.#backlog.shift()!;
        this.#backlogChanges -= oldest.changes.length;
        this.#forgotten = oldest.revision;
      }
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
    this.#journal?.tell(file);
    return bytes;
  }

  /** True when a reader would not have to wait. */
  ready(file: OpenFile): boolean {
    if (file.rest !== undefined) return true;
    const text = this.#news(file);
    if (text !== '') file.rest = encoder.encode(text);
    return text !== '';
  }

  /** Answers when there is something to tell, or with a heartbeat line; at once when there is already. */
  wait(file: OpenFile, sizeBytes: number, done: Done<Uint8Array>): () => void {
    const bytes = this.take(file, sizeBytes);
    if (bytes.length > 0) {
      done(0, bytes);
      return () => {};
    }
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
      // Another reader of the same handle may have been given the first half of a line.
      waiter.file.rest ??= encoder.encode(
        `${JSON.stringify({ revision: this.#replica.snapshot.revision, heartbeat: true })}\n`,
      );
      this.#answer(waiter, 0, this.take(waiter.file, waiter.sizeBytes));
    }
  }

  /** Ends the waits of a handle that is closed. */
  close(file: OpenFile): void {
    this.#handles--;
    const { uid } = file.caller;
    const left = this.#handlesOf.get(uid)! - 1;
    if (left === 0) this.#handlesOf.delete(uid);
    else this.#handlesOf.set(uid, left);
    for (const waiter of [...this.#waiters]) if (waiter.file === file) this.#answer(waiter, EINTR, undefined);
  }

  /** Forgets all handles, and the waiters without answering them. */
  reset(): void {
    this.#waiters.clear();
    this.#handles = 0;
    this.#handlesOf.clear();
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
      text = missed(this.#forgotten);
      file.toldRevision = this.#forgotten;
    }
    for (const { revision, changes } of this.#backlog) {
      if (revision <= file.toldRevision) continue;
      if (text.length >= changeLimits.batchChars) break;
      file.toldRevision = revision;
      const seen = changes.filter((change) => this.#replica.visible(this.#way, change, file.caller, this.#wallMs()));
      if (seen.length === 0) continue;
      const line = JSON.stringify({
        revision,
        changes: seen.map(({ change }) => ({ path: change.path, change: change.what })),
      });
      text += line.length <= changeLimits.lineChars ? `${line}\n` : missed(revision);
    }
    return text;
  }
}

const missed = (revision: number): string => `${JSON.stringify({ revision, missed: true })}\n`;

/** Keeps the nodes' rights and nothing of their bytes: a backlog of values would be as large as a guest likes. */
function remembered(change: Change, before: Snapshot, after: Snapshot): RememberedChange | undefined {
  const snapshot = change.what === 'removed' ? before : after;
  const node = snapshot.node(change.ino);
  if (node === undefined) return undefined;
  const above: Node[] = [];
  for (let at = node; at.ino !== ROOT_INO; ) {
    const parent = snapshot.node(at.parentIno);
    if (parent === undefined) break;
    above.push(parent);
    at = parent;
  }
  return { change, node: { ...node, bytes: undefined }, above };
}
