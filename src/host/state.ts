/**
 * What a state directory keeps of a tree, so that a restart changes nothing that a guest can tell: inode numbers,
 * revisions, times, and everything that guests made or wrote.
 *
 * What wins when the spec file changed meanwhile: each file made outside is kept with the digest of the value that the
 * outside last gave it. A value of the spec that has another digest replaces what a guest wrote; one with the same digest
 * does not, nor does it bring a burned `once` value back. What the spec no longer has is removed; what guests made stays,
 * unless the spec now has something else under the same name.
 *
 * Values that only the outside gave are not kept: the spec file gives them again.
 */

import { Buffer } from 'node:buffer';
import { resolve } from 'node:path';
import { decode, encode } from '@msgpack/msgpack';
import * as z from 'zod';
import { type StateChange, StateFile, StoreError } from '../store/index.ts';
import type { Commit, Restored } from '../tree/index.ts';
import { S_IFLNK, S_IFMT } from '../wire/index.ts';
import { decodeKept, encodeKept, inoKey, whole } from './node-record.ts';

const countersRecord = z.object({ revision: whole, nextIno: whole });

const countersKey = 'counters';
const sourceKey = 'spec-file';
const nodePrefix = 'node/';
const nodeKey = (ino: number): string => nodePrefix + inoKey(ino);

/** Keeps one tree in a store. The caller closes it. */
export class State implements Disposable {
  readonly readOnly: boolean;
  readonly #store: StateFile;

  /** StoreError as `StateFile`. */
  constructor(directory: string, options: { readonly readOnly?: boolean } = {}) {
    this.readOnly = options.readOnly ?? false;
    this.#store = new StateFile({ directory: resolve(directory), readOnly: this.readOnly });
  }

  /** Absolute path of the spec file that the tree was last loaded from. */
  get specFile(): string | undefined {
    const value = this.#store.get(sourceKey);
    return value === undefined ? undefined : Buffer.from(value).toString();
  }

  rememberSpecFile(file: string): void {
    if (file !== this.specFile) this.#store.commit([{ key: sourceKey, value: Buffer.from(file) }]);
  }

  /** One transaction; on the disk when it returns. StoreError when it is not. */
  readonly persist = (commits: readonly Commit[]): void => {
    const changes: StateChange[] = [];
    for (const { revision, nextIno, put, remove } of commits) {
      for (const ino of remove) changes.push({ key: nodeKey(ino), value: undefined });
      for (const kept of put) {
        const { node, keepBytes } = kept;
        // A link has no digest: its target itself tells whether the outside has changed it.
        const bytes = keepBytes || (node.mode & S_IFMT) === S_IFLNK ? node.bytes : undefined;
        changes.push({ key: nodeKey(node.ino), value: encodeKept(kept, { bytes }) });
      }
      const counters: z.infer<typeof countersRecord> = { revision, nextIno };
      changes.push({ key: countersKey, value: encode(counters) });
    }
    this.#store.commit(changes);
  };

  /** Undefined when nothing was ever kept. StoreError STORE_DAMAGED when a record cannot be read. */
  restore(): Restored | undefined {
    const value = this.#store.get(countersKey);
    if (value === undefined) return undefined;
    const { revision, nextIno } = this.#read('the counters', () => countersRecord.parse(decode(value)));
    const nodes = this.#store.scan(nodePrefix).map(({ key, value: record }) =>
      this.#read(key, () => {
        const { kept } = decodeKept(record);
        const { node } = kept;
        if (nodeKey(node.ino) !== key || node.ino >= nextIno || node.revision > revision) {
          throw new RangeError(`inode ${node.ino} of revision ${node.revision} is beyond the counters`);
        }
        return kept;
      }),
    );
    return { revision, nextIno, nodes };
  }

  #read<T>(what: string, read: () => T): T {
    try {
      return read();
    } catch (error) {
      const message = `the record "${what}" in the state directory "${this.#store.directory}" is damaged; restore the directory from a backup, or move it away to start anew`;
      throw new StoreError('STORE_DAMAGED', message, error);
    }
  }

  close(): void {
    this.#store.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
