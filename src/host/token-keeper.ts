/** The token of a VM's boot, in the region's store: `token/NAME`, written in the transaction of each boot and by its claims. */
import { type Incident, newTokenRecord, type TokenRecord, type TokenStore } from '../imds/index.ts';
import { decodeRecord, encodeRecord, TokenKept } from '../records/index.ts';
import type { Operation, Store } from '../store/index.ts';

export const tokenKey = (name: string): string => `token/${name}`;

export class TokenKeeper implements TokenStore {
  readonly #store: Store;
  readonly #key: string;
  readonly #vmId: string;
  /** Of what was read or written last; undefined where that is not known. */
  #revision: number | undefined;

  constructor(store: Store, vm: { readonly name: string; readonly id: string }) {
    this.#store = store;
    this.#key = tokenKey(vm.name);
    this.#vmId = vm.id;
  }

  /** Of the transaction that commits a boot: no token of before is worth anything once it is. `untold`: as of `newTokenRecord`. */
  ofBoot(boot: string, randomBytes: (count: number) => Uint8Array, untold: Incident | undefined): Operation {
    return this.#put(newTokenRecord(boot, randomBytes, untold));
  }

  /** StoreError. That of a VM which had the name before is nobody's. */
  async load(): Promise<TokenRecord | undefined> {
    const entry = await this.#store.get(this.#key);
    this.#revision = entry?.modRevision ?? 0;
    if (entry === undefined) return undefined;
    const { vmId, ...record } = decodeRecord(TokenKept, this.#key, entry.value);
    return vmId === this.#vmId ? record : undefined;
  }

  /** StoreError; and rejects where another boot was committed meanwhile, whose record stays. */
  async save(record: TokenRecord): Promise<void> {
    if (this.#revision === undefined) {
      // A transaction whose answer was lost may have been committed, or a boot may have been.
      const kept = await this.load();
      if (kept !== undefined && kept.boot !== record.boot) throw new Error('the machine was booted anew meanwhile');
    }
    const modRevision = this.#revision!;
    this.#revision = undefined;
    const outcome = await this.#store.commit({
      conditions: [modRevision === 0 ? { key: this.#key, exists: false } : { key: this.#key, modRevision }],
      operations: [this.#put(record)],
    });
    if (!outcome.committed) throw new Error('the machine was booted anew meanwhile');
    this.#revision = outcome.revision;
  }

  #put(record: TokenRecord): Operation {
    const kept: TokenKept = { ...record, vmId: this.#vmId };
    return { type: 'put', key: this.#key, value: encodeRecord(kept) };
  }
}
