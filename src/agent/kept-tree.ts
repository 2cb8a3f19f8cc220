/**
 * The copy of the tree in memory that outlives this process: a successor goes on from the commit that this one saw last, also
 * while the server is away. It holds what the copy holds, so no value that not everybody may read.
 *
 *   head     two numbers: where what counts begins and ends, written in one piece
 *   frames   a whole tree, and the commits after it
 */
import { readSync, writeSync } from 'node:fs';
import { encodeMessage, readerOnDevice } from '../device/index.ts';
import { close, fileSize, memfd, truncate } from '../sys/index.ts';
import type { Delta, Replica } from '../tree/index.ts';

const HEAD_BYTES = 16;
/** Commits may take so many times the bytes of the tree, and this much at least, before a whole tree takes their place. */
const MOST_TIMES = 2;
const LEAST_BYTES = 1024 * 1024;

export class KeptTree {
  readonly fd: number;
  readonly #head = new Float64Array(2);
  /** Of the whole tree that counts. */
  #treeBytes = 0;
  #isClosed = false;

  /** `fd`: what a predecessor has left. Throws when there is no memory for it. */
  constructor(fd?: number) {
    this.fd = fd ?? memfd('porthole-tree', HEAD_BYTES);
    if (this.fd < 0) throw new Error(`making the memory of the tree failed with errno ${-this.fd}`);
  }

  /** Brings an empty replica to what a predecessor had. False: it has left nothing that can be read. */
  load(replica: Replica): boolean {
    const size = fileSize(this.fd);
    if (size < HEAD_BYTES) return false;
    readSync(this.fd, this.#head, 0, HEAD_BYTES, 0);
    const [start, end] = this.#head as unknown as [number, number];
    if (!(start >= HEAD_BYTES && start < end && end <= size)) return false;
    const bytes = new Uint8Array(end - start);
    if (readSync(this.fd, bytes, 0, bytes.length, start) !== bytes.length) return false;
    try {
      const deltas = readerOnDevice()
        .feed(bytes)
        .flatMap((message) => (message.type === 'delta' ? [message.delta] : []));
      if (deltas[0]?.full !== true) return false;
      for (const delta of deltas) replica.apply(delta);
    } catch {
      // Of a version that is not known here.
      return false;
    }
    this.#treeBytes = bytes.length;
    return true;
  }

  /** `replica` has applied it. */
  keep(delta: Delta, replica: Replica): void {
    if (this.#isClosed) return;
    const [start, end] = this.#head as unknown as [number, number];
    if (delta.full || end - start > Math.max(MOST_TIMES * this.#treeBytes, LEAST_BYTES))
      return this.#keepWhole(replica);
    const frame = encodeMessage({ type: 'delta', delta });
    writeSync(this.fd, frame, 0, frame.length, end);
    return this.#counts(start, end + frame.length);
  }

  /** Beside what counts until it is there: before it, where it fits, else behind it. */
  #keepWhole({ snapshot, policy, usage }: Replica): void {
    const { revision, nodes } = snapshot;
    const put = [...nodes.values()];
    const frame = encodeMessage({
      type: 'delta',
      delta: { revision, full: true, put, remove: [], policy: policy.spec, changes: [], usage },
    });
    const [start, end] = this.#head as unknown as [number, number];
    const at = HEAD_BYTES + frame.length <= start ? HEAD_BYTES : Math.max(end, HEAD_BYTES);
    writeSync(this.fd, frame, 0, frame.length, at);
    this.#treeBytes = frame.length;
    this.#counts(at, at + frame.length);
    truncate(this.fd, at + frame.length);
  }

  #counts(start: number, end: number): void {
    this.#head[0] = start;
    this.#head[1] = end;
    writeSync(this.fd, this.#head, 0, HEAD_BYTES, 0);
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    close(this.fd);
  }
}
