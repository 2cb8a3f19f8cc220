/** The newest commits of one tree, for watchers that resume, and the watchers. Holds paths, no values. */
import { decode, encode } from '@msgpack/msgpack';
import * as z from 'zod';
import type { TreeCommit } from '../records/index.ts';
import { HostRefusal } from './host-error.ts';

/** Commits that are kept; a watcher that is behind by more begins anew. */
const commitsKept = 4096;
/** Paths of all of them together, in UTF-16 code units. */
const charactersKept = 16 * 1024 * 1024;

/** How long a watcher is told nothing while commits pass that do not concern it. */
const tellMs = 1_000;

/** Of those that an orderly end leaves for the next daemon. */
const charactersLeft = 256 * 1024;
const whats = ['created', 'changed', 'attributes', 'removed'] as const;
const leftRecord = z.object({
  revision: z.int(),
  forgotten: z.int(),
  commits: z.array(
    z.object({
      revision: z.int(),
      policyChanged: z.boolean(),
      changes: z.array(z.tuple([z.string(), z.enum(whats)])),
    }),
  ),
});

const charactersOf = (commit: TreeCommit): number =>
  commit.changes.reduce((sum, { path }) => sum + path.length + 32, 64);

export class TreeHistory {
  readonly #epoch: number;
  /** From `#first` on; those before it are dropped many at once, for it moves all the others. */
  #commits: TreeCommit[] = [];
  #first = 0;
  #characters = 0;
  /** Commits up to this revision are not known. */
  #forgotten: number;
  #newest: number;
  #ended: Error | undefined;
  readonly #watchers = new Set<() => void>();

  /** `epoch` and `revision`: of the tree as it is now. `left`: what the history before it left, at whatever revision. */
  constructor(epoch: number, revision: number, left?: Uint8Array) {
    this.#epoch = epoch;
    this.#forgotten = revision;
    this.#newest = revision;
    const found = left && leftRecord.safeParse(decode(left)).data;
    // Anything else was committed since, or lost.
    if (found?.revision !== revision) return;
    this.#forgotten = found.forgotten;
    this.#commits = found.commits.map(({ changes, ...rest }) => ({
      epoch,
      ...rest,
      changes: changes.map(([path, what]) => ({ path, what })),
    }));
    this.#characters = this.#commits.reduce((sum, commit) => sum + charactersOf(commit), 0);
  }

  /** For the history after this one: the newest commits. Undefined when there are none. */
  leave(): Uint8Array | undefined {
    let first = this.#commits.length;
    for (let left = charactersLeft; first > this.#first; first--) {
      left -= charactersOf(this.#commits[first - 1]!);
      if (left < 0) break;
    }
    if (first === this.#commits.length) return undefined;
    return encode({
      revision: this.#newest,
      forgotten: first === this.#first ? this.#forgotten : this.#commits[first - 1]!.revision,
      commits: this.#commits.slice(first).map(({ revision, policyChanged, changes }) => ({
        revision,
        policyChanged,
        changes: changes.map(({ path, what }) => [path, what]),
      })),
    } satisfies z.infer<typeof leftRecord>);
  }

  add(commit: TreeCommit): void {
    this.#commits.push(commit);
    this.#newest = commit.revision;
    this.#characters += charactersOf(commit);
    const isLarge = this.#characters > charactersKept;
    while (this.#commits.length - this.#first > commitsKept || this.#characters > charactersKept) {
      const oldest = this.#commits[this.#first++]!;
      this.#characters -= charactersOf(oldest);
      this.#forgotten = oldest.revision;
    }
    if (isLarge || this.#first > commitsKept / 4) {
      this.#commits.splice(0, this.#first);
      this.#first = 0;
    }
    this.#wake();
  }

  /** A commit that changed nothing that can be seen: it is not kept, and may be resumed from. */
  passed(revision: number): void {
    this.#newest = revision;
    this.#wake();
  }

  /** Every watch ends with this error, once it has told what there was before. */
  end(error: Error): void {
    this.#ended ??= error;
    this.#wake();
  }

  /**
   * Every commit from `from` on (default: the next one). HOST_COMPACTED when that is older than what is known, at once or
   * when the consumer falls behind. A commit without changes says how far it has looked where none concerned the path.
   */
  watch(path: string, from: number | undefined, signal: AbortSignal | undefined): AsyncIterable<TreeCommit> {
    const first = from ?? this.#newest + 1;
    if (first > this.#newest + 1)
      throw new HostRefusal('HOST_INVALID', `revision ${first} lies ahead; the newest is ${this.#newest}`);
    this.#check(first);
    return this.#tell(path, first, signal);
  }

  async *#tell(path: string, from: number, signal: AbortSignal | undefined): AsyncGenerator<TreeCommit> {
    let next = from;
    let told = from - 1;
    let passedSinceMs: number | undefined;
    for (;;) {
      signal?.throwIfAborted();
      this.#check(next);
      const commit = this.#firstFrom(next);
      if (commit !== undefined) {
        next = commit.revision + 1;
        const changes =
          path === '/' ? commit.changes : commit.changes.filter((change) => isAtOrBelow(change.path, path));
        if (changes.length === 0 && !commit.policyChanged) continue;
        told = commit.revision;
        passedSinceMs = undefined;
        yield { ...commit, changes };
        continue;
      }
      if (this.#ended !== undefined) throw this.#ended;
      next = Math.max(next, this.#newest + 1);
      if (next - 1 === told) {
        await this.#nextCommit(signal);
        continue;
      }
      passedSinceMs ??= performance.now();
      const leftMs = passedSinceMs + tellMs - performance.now();
      if (leftMs > 0) {
        await this.#nextCommit(signal, leftMs);
        continue;
      }
      told = next - 1;
      passedSinceMs = undefined;
      yield { epoch: this.#epoch, revision: told, changes: [], policyChanged: false };
    }
  }

  #firstFrom(revision: number): TreeCommit | undefined {
    let low = this.#first;
    let high = this.#commits.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#commits[middle]!.revision < revision) low = middle + 1;
      else high = middle;
    }
    return this.#commits[low];
  }

  #check(from: number): void {
    if (from > this.#forgotten) return;
    throw new HostRefusal(
      'HOST_COMPACTED',
      `changes from revision ${from} on are no longer known; read the tree again and watch from its revision`,
      { oldestRevision: this.#forgotten + 1 },
    );
  }

  /** Or the time is over. */
  #nextCommit(signal: AbortSignal | undefined, timeoutMs?: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = (): void => {
      clearTimeout(timer);
      this.#watchers.delete(wake);
      signal?.removeEventListener('abort', wake);
      resolve();
    };
    const timer = timeoutMs === undefined ? undefined : setTimeout(wake, Math.ceil(timeoutMs)).unref();
    this.#watchers.add(wake);
    signal?.addEventListener('abort', wake, { once: true });
    return promise;
  }

  #wake(): void {
    for (const wake of this.#watchers) wake();
  }
}

export const isAtOrBelow = (path: string, top: string): boolean =>
  top === '/' || path === top || path.startsWith(`${top}/`);
