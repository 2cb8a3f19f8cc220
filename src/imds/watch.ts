/** What changed in the tree, for agents that hold a copy of it: commits that are remembered, and the streams that tell of them. */
import type { Writable } from 'node:stream';
import { type Delta, isDirectory, type Node, type Replica, type Snapshot } from '../tree/index.ts';
import { isPublic, nodeJson } from './node-json.ts';

export const watchLimits = {
  /** Commits that are remembered for streams that come back, and characters of their lines. */
  backlog: 1024,
  backlogChars: 8 * 1024 * 1024,
  /** What a stream may have unsent: then it is cut off, and comes back from where it was. */
  unsentBytes: 4 * 1024 * 1024,
} as const;

interface Stream {
  readonly id: number;
  readonly outgoing: Writable;
  appliedRevision: number;
}

interface Waiter {
  readonly revision: number;
  readonly resolve: (applied: boolean) => void;
  readonly timer: NodeJS.Timeout;
}

export class Watch implements Disposable {
  readonly #replica: Replica;
  readonly #backlog: { readonly revision: number; readonly line: string }[] = [];
  #backlogChars = 0;
  /** Commits up to this revision are forgotten. */
  #forgotten: number;
  readonly #streams = new Map<number, Stream>();
  readonly #waiters = new Set<Waiter>();
  /** Of each node, whether its bytes were told. */
  #told = new Map<number, boolean>();
  #lastId = 0;
  readonly #stop: () => void;
  readonly #beat: NodeJS.Timeout;

  constructor(replica: Replica, heartbeatMs: number) {
    this.#replica = replica;
    this.#forgotten = replica.snapshot.revision;
    this.#judgeAll();
    this.#stop = replica.onApply((delta, before) => this.#applied(delta, before));
    this.#beat = setInterval(() => this.#heartbeat(), heartbeatMs);
    this.#beat.unref();
  }

  get streams(): number {
    return this.#streams.size;
  }

  /** Whether a stream can go on after a revision. */
  reaches(revision: number): boolean {
    return revision >= this.#forgotten && revision <= this.#replica.snapshot.revision;
  }

  /** The number of the next stream. */
  nextId(): number {
    return ++this.#lastId;
  }

  /**
   * Tells a stream of every commit after a revision that `reaches`, until its reader is gone. Returns the characters of those
   * that it is told at once.
   */
  follow(id: number, revision: number, outgoing: Writable): number {
    const stream: Stream = { id, outgoing, appliedRevision: revision };
    this.#streams.set(id, stream);
    outgoing.once('close', () => {
      this.#streams.delete(id);
      this.#settle();
    });
    outgoing.write(heartbeatLine(this.#replica.snapshot.revision));
    let characters = 0;
    for (const entry of this.#backlog) {
      if (entry.revision <= revision || outgoing.destroyed) continue;
      this.#send(stream, entry.line);
      characters += entry.line.length;
    }
    return characters;
  }

  /** An agent says what its copy has. False: there is no such stream. */
  acknowledge(id: number, revision: number): boolean {
    const stream = this.#streams.get(id);
    if (stream === undefined) return false;
    stream.appliedRevision = Math.max(stream.appliedRevision, Math.min(revision, this.#replica.snapshot.revision));
    this.#settle();
    return true;
  }

  /** Resolves with true once every stream has applied a commit, with false when one has not within `withinMs`. */
  applied(revision: number, withinMs: number): Promise<boolean> {
    if (this.#haveApplied(revision)) return Promise.resolve(true);
    return new Promise((resolve) => {
      const waiter: Waiter = {
        revision,
        resolve,
        timer: setTimeout(() => {
          this.#waiters.delete(waiter);
          resolve(false);
        }, withinMs),
      };
      this.#waiters.add(waiter);
    });
  }

  /** From now on there are none. */
  endStreams(): void {
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const { outgoing } of streams) outgoing.end();
    this.#settle();
  }

  [Symbol.dispose](): void {
    this.#stop();
    clearInterval(this.#beat);
    this.endStreams();
    for (const waiter of this.#waiters) {
      clearTimeout(waiter.timer);
      waiter.resolve(false);
    }
    this.#waiters.clear();
  }

  #haveApplied(revision: number): boolean {
    for (const stream of this.#streams.values()) if (stream.appliedRevision < revision) return false;
    return true;
  }

  #settle(): void {
    for (const waiter of [...this.#waiters]) {
      if (!this.#haveApplied(waiter.revision)) continue;
      this.#waiters.delete(waiter);
      clearTimeout(waiter.timer);
      waiter.resolve(true);
    }
  }

  #applied(delta: Delta, before: Snapshot): void {
    const { revision } = delta;
    if (delta.full) {
      // What happened between the last commit that arrived and this one is not known.
      this.#backlog.length = 0;
      this.#backlogChars = 0;
      this.#forgotten = revision;
      this.#judgeAll();
      this.endStreams();
      return;
    }
    const put = [...delta.put, ...this.#judgedAnew(delta, before)];
    for (const node of put) this.#told.set(node.ino, isPublic(this.#replica, node));
    for (const ino of delta.remove) this.#told.delete(ino);
    const line = `${JSON.stringify({
      revision,
      put: put.map((node) => nodeJson(this.#replica, node)),
      remove: delta.remove,
      ...(delta.policy !== undefined && { policy: delta.policy }),
      changes: delta.changes,
      usage: delta.usage,
    })}\n`;
    this.#backlog.push({ revision, line });
    this.#backlogChars += line.length;
    while (this.#backlog.length > watchLimits.backlog || this.#backlogChars > watchLimits.backlogChars) {
      const oldest = this.#backlog.shift()!;
      this.#backlogChars -= oldest.line.length;
      this.#forgotten = oldest.revision;
    }
    for (const stream of this.#streams.values()) this.#send(stream, line);
  }

  /** Nodes that are the same, and that everybody may read now, or not everybody any more. */
  #judgedAnew({ put, policy }: Delta, before: Snapshot): Node[] {
    const decidesBelow = put.some((node) => {
      const old = before.node(node.ino);
      return old !== undefined && isDirectory(node) && !samePlaceAndMode(old, node);
    });
    if (policy === undefined && !decidesBelow) return [];
    const there = new Set(put.map(({ ino }) => ino));
    return [...this.#replica.snapshot.nodes.values()].filter(
      (node) => !there.has(node.ino) && isPublic(this.#replica, node) !== this.#told.get(node.ino),
    );
  }

  #judgeAll(): void {
    const nodes = [...this.#replica.snapshot.nodes.values()];
    this.#told = new Map(nodes.map((node) => [node.ino, isPublic(this.#replica, node)]));
  }

  #send({ outgoing }: Stream, line: string): void {
    if (outgoing.destroyed) return;
    outgoing.write(line);
    if (outgoing.writableLength > watchLimits.unsentBytes) outgoing.destroy();
  }

  #heartbeat(): void {
    const line = heartbeatLine(this.#replica.snapshot.revision);
    for (const stream of this.#streams.values()) this.#send(stream, line);
  }
}

const heartbeatLine = (revision: number): string => `${JSON.stringify({ revision, heartbeat: true })}\n`;

const samePlaceAndMode = (a: Node, b: Node): boolean =>
  a.parentIno === b.parentIno &&
  a.name === b.name &&
  a.mode === b.mode &&
  a.acl === b.acl &&
  a.uid === b.uid &&
  a.gid === b.gid;
