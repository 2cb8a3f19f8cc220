/** Regions: records of the global store, by which managers find those of other regions. */
import { RegionRecord, regionKey } from '../records/index.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { entriesOf, getRecord, type Kit, kept, put, remove } from './kit.ts';
import { ApiError } from './problem.ts';

export type RegionWish = Pick<RegionRecord, 'name' | 'addresses' | 'authority'>;

export class Regions {
  readonly #kit: Kit;

  constructor(kit: Kit) {
    this.#kit = kit;
  }

  /** That of this manager, which is there from its first start. */
  async ensureOwn(): Promise<void> {
    const key = regionKey(this.#kit.regionName);
    const record: RegionRecord = { name: this.#kit.regionName, addresses: [], addedAtMs: this.#kit.wallMs() };
    await this.#kit.global.commit({ conditions: [{ key, exists: false }], operations: [put(key, record)] });
  }

  async list(): Promise<RegionRecord[]> {
    const { entries } = await entriesOf(this.#kit.global, 'region/');
    return entries.map((entry) => kept(RegionRecord, entry).record);
  }

  async find(name: string): Promise<RegionRecord | undefined> {
    return (await getRecord(this.#kit.global, RegionRecord, regionKey(name)))?.record;
  }

  /** NOT_FOUND. */
  async get(name: string): Promise<RegionRecord> {
    const found = await this.find(name);
    if (found === undefined) throw noRegion(name);
    return found;
  }

  /** Makes it, or says where its managers are now. CONFLICT. */
  async set(
    { name, addresses, authority }: RegionWish,
    commit: CommitOnce,
    answer: (region: RegionRecord) => Answer,
  ): Promise<Answer> {
    const key = regionKey(name);
    const before = await getRecord(this.#kit.global, RegionRecord, key);
    const { authority: _, ...rest } = before?.record ?? { name, addedAtMs: this.#kit.wallMs() };
    const record: RegionRecord = { ...rest, addresses, ...(authority !== undefined && { authority }) };
    const condition = before === undefined ? { key, exists: false } : { key, modRevision: before.modRevision };
    const told = answer(record);
    if (!(await commit({ conditions: [condition], operations: [put(key, record)] }, told)))
      throw new ApiError('CONFLICT', `the region "${name}" was changed at the same time; try again`);
    return told;
  }

  /** Forgets one without VMs. NOT_FOUND, IN_USE, WRONG_STATE for that of this manager. */
  async remove(name: string, accounts: readonly string[], commit: CommitOnce, answer: Answer): Promise<Answer> {
    if (name === this.#kit.regionName)
      throw new ApiError('WRONG_STATE', `the region "${name}" is the one that answers you; ask a manager of another`);
    const key = regionKey(name);
    const found = await getRecord(this.#kit.global, RegionRecord, key);
    if (found === undefined) throw noRegion(name);
    for (const account of accounts) {
      const index = `index/vm/${account}/${name}/`;
      const { entries } = await entriesOf(this.#kit.global, index);
      if (entries.length > 0)
        throw new ApiError(
          'IN_USE',
          `the account "${account}" has ${entries.length} VMs in the region "${name}"; delete them first`,
        );
    }
    const conditions = [{ key, modRevision: found.modRevision }];
    if (!(await commit({ conditions, operations: [remove(key)] }, answer)))
      throw new ApiError('CONFLICT', `the region "${name}" was changed at the same time; try again`);
    return answer;
  }
}

const noRegion = (name: string): ApiError => new ApiError('NOT_FOUND', `there is no region "${name}"`);
