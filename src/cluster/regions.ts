/** Regions: records of the global store, by which managers find those of other regions. */
import { type ImageRecord, RegionRecord, regionKey } from '../records/index.ts';
import { limits } from '../store/index.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { ImageIndex, type ImageName } from './image-index.ts';
import { entriesOf, getRecord, type Kit, kept, put, remove } from './kit.ts';
import { outboxReadKey } from './outbox.ts';
import { ApiError } from './problem.ts';
import { indexKeysOf } from './realign.ts';

export type RegionWish = Pick<RegionRecord, 'name' | 'addresses' | 'authority'>;

export class Regions {
  readonly #kit: Kit;
  readonly #images: ImageIndex;

  constructor(kit: Kit) {
    this.#kit = kit;
    this.#images = new ImageIndex(kit);
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

  /**
   * Forgets one without VMs and images; one that is lost for ever with those that it had. NOT_FOUND, IN_USE, WRONG_STATE for that
   * of this manager.
   */
  async remove(name: string, isLost: boolean, commit: CommitOnce, answer: Answer): Promise<Answer> {
    if (name === this.#kit.regionName)
      throw new ApiError('WRONG_STATE', `the region "${name}" is the one that answers you; ask a manager of another`);
    const key = regionKey(name);
    const found = await getRecord(this.#kit.global, RegionRecord, key);
    if (found === undefined) throw noRegion(name);
    const vms = await indexKeysOf(this.#kit, name);
    const images = await this.#images.of(name);
    if (isLost) await this.#forget(name, vms, images);
    else {
      if (vms.length > 0) throw inUse(name, `${vms.length} VMs`, 'delete them');
      if (images.length > 0)
        throw inUse(name, `${images.length} images (${images.map(textOf).join(', ')})`, 'migrate or remove them');
    }
    const conditions = [{ key, modRevision: found.modRevision }];
    if (!(await commit({ conditions, operations: [remove(key), remove(outboxReadKey(name))] }, answer)))
      throw new ApiError('CONFLICT', `the region "${name}" was changed at the same time; try again`);
    return answer;
  }

  async #forget(name: string, vms: readonly string[], images: readonly ImageRecord[]): Promise<void> {
    for (let i = 0; i < vms.length; i += limits.operations)
      await this.#kit.global.commit({ operations: vms.slice(i, i + limits.operations).map(remove) });
    for (const image of images) await this.#images.removeRegion(image, name);
    await this.#images.disclaimAll(name);
  }
}

const textOf = ({ name, version }: ImageName): string => `${name}:${version}`;

const inUse = (name: string, what: string, first: string): ApiError =>
  new ApiError(
    'IN_USE',
    `the region "${name}" has ${what}; ${first} first. If it is lost for ever: porthole region rm --lost ${name}`,
  );

const noRegion = (name: string): ApiError => new ApiError('NOT_FOUND', `there is no region "${name}"`);
