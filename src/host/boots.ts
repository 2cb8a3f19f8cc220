/** The boots of one VM: `boot/NAME/N` in the region's store, the newest of them. */
import { BootRecord, decodeRecord, encodeRecord, type Once } from '../records/index.ts';
import { keyText, type Operation, prefixRange, type Store } from '../store/index.ts';

const bootPrefix = (name: string): string => `boot/${name}/`;
const bootKey = (name: string, number: number): string => `${bootPrefix(name)}${String(number).padStart(10, '0')}`;

/** Of each VM. */
const bootsKept = 500;

export interface NewBoot {
  readonly bootId: string;
  readonly reason: string;
  /** Committed with it. */
  readonly operations?: readonly Operation[];
  /** Of the request that tells of it. */
  readonly once?: Once | undefined;
}

export class Boots {
  readonly #store: Store;
  readonly #name: string;
  #count: number;
  #committing: Promise<unknown> = Promise.resolve();

  /** `count`: boots that there were at least. */
  constructor(store: Store, name: string, count: number) {
    this.#store = store;
    this.#name = name;
    this.#count = count;
  }

  /** Those that the store has, oldest first. */
  async all(): Promise<BootRecord[]> {
    const { entries } = await this.#store.range(prefixRange(bootPrefix(this.#name)));
    return entries.map(({ key, value }) => decodeRecord(BootRecord, keyText(key), value));
  }

  /** The newest. Its number is counted on from. */
  async last(): Promise<BootRecord | undefined> {
    const last = (await this.all()).at(-1);
    this.#count = Math.max(this.#count, last?.number ?? 0);
    return last;
  }

  /** One after the other, whoever tells. The boot of an earlier try of the same request is that of this one. StoreError. */
  commit(boot: NewBoot): Promise<BootRecord> {
    const committed = this.#committing.then(() => this.#commit(boot));
    this.#committing = committed.catch(() => {});
    return committed;
  }

  async #commit({ bootId, reason, operations = [], once }: NewBoot): Promise<BootRecord> {
    if (once?.isRepeat === true) {
      const found = (await this.all()).findLast(({ request }) => request === once.id);
      if (found !== undefined) return found;
    }
    const number = this.#count + 1;
    const record = { bootId, number, atMs: Date.now(), reason, ...(once && { request: once.id }) };
    await this.#store.commit({
      operations: [
        { type: 'put', key: bootKey(this.#name, number), value: encodeRecord(record satisfies BootRecord) },
        ...operations,
        ...(number > bootsKept ? [{ type: 'delete', key: bootKey(this.#name, number - bootsKept) } as const] : []),
      ],
    });
    this.#count = number;
    return record;
  }
}
