/** Writes the newest state of one record into a store, one write at a time; what was overtaken meanwhile is never written. */
import { setTimeout as pause } from 'node:timers/promises';
import { encodeRecord } from '../records/index.ts';
import type { Store } from '../store/index.ts';

const againAfterMs = 500;

export class RecordWriter<R extends object> {
  readonly #store: Store;
  readonly #key: string;
  readonly #onTrouble: (what: string) => void;
  #waiting: { readonly record: R | undefined } | undefined;
  #writing: Promise<void> | undefined;
  #closed = false;

  constructor(store: Store, key: string, onTrouble: (what: string) => void) {
    this.#store = store;
    this.#key = key;
    this.#onTrouble = onTrouble;
  }

  /** `undefined` deletes it. Resolves when this record or a newer one is durable; tries until that is so, or it is closed. */
  write(record: R | undefined): Promise<void> {
    this.#waiting = { record };
    this.#writing ??= this.#run();
    return this.#writing;
  }

  close(): void {
    this.#closed = true;
  }

  async #run(): Promise<void> {
    let failed = false;
    while (this.#waiting !== undefined && !this.#closed) {
      const { record } = this.#waiting;
      this.#waiting = undefined;
      try {
        const key = this.#key;
        await this.#store.commit({
          operations: [
            record === undefined ? { type: 'delete', key } : { type: 'put', key, value: encodeRecord(record) },
          ],
        });
        failed = false;
      } catch (error) {
        if (!failed) this.#onTrouble(`writing "${this.#key}" failed, trying again: ${(error as Error).message}`);
        failed = true;
        this.#waiting ??= { record };
        await pause(againAfterMs);
      }
    }
    this.#writing = undefined;
  }
}
