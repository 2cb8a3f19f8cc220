/**
 * Which images there are and in which regions, in the global store. A region that adds one claims its name first, so that two
 * regions can't give one name and version to different bytes.
 */
import { ImageRecord } from '../records/index.ts';
import { keyText } from '../store/index.ts';
import { entriesOf, getRecord, type Kept, type Kit, kept, put, remove, unchanged } from './kit.ts';
import { ApiError } from './problem.ts';

/** Of the region's store: images that it has. */
export const ownImagePrefix = 'regionimage/';

const imagePrefix = 'image/';
/** Who brings an image to the region: before it is anywhere else. */
export const imageAddPrefix = 'imageadd/';
const imageKey = ({ name, version }: ImageName): string => `${imagePrefix}${name}/${version}`;
/** Which region's operation is about to add it. */
const claimPrefix = 'imageclaim/';
const claimKey = ({ name, version }: ImageName): string => `${claimPrefix}${name}/${version}`;

export interface ImageName {
  readonly name: string;
  readonly version: string;
}

export const quoted = ({ name, version }: ImageName): string => `the image "${name}" version "${version}"`;

export class ImageIndex {
  readonly #kit: Kit;

  constructor(kit: Kit) {
    this.#kit = kit;
  }

  async list(name?: string): Promise<Kept<ImageRecord>[]> {
    const { entries } = await entriesOf(this.#kit.global, name === undefined ? imagePrefix : `${imagePrefix}${name}/`);
    return entries.map((entry) => kept(ImageRecord, entry));
  }

  async find(image: ImageName): Promise<ImageRecord | undefined> {
    return (await getRecord(this.#kit.global, ImageRecord, imageKey(image)))?.record;
  }

  /** Whether its name is anybody's, or about to be. */
  async isTaken(image: ImageName): Promise<boolean> {
    const [found, claim] = await Promise.all(
      [imageKey(image), claimKey(image)].map((key) => this.#kit.global.get(key)),
    );
    return found !== undefined || claim !== undefined;
  }

  /** False when it is there, or another operation has claimed it. To claim it again is no error. */
  async claim(image: ImageName, operation: string): Promise<boolean> {
    const key = claimKey(image);
    const { committed } = await this.#kit.global.commit({
      conditions: [
        { key, exists: false },
        { key: imageKey(image), exists: false },
      ],
      operations: [put(key, { region: this.#kit.regionName, operation })],
    });
    return committed || (await this.#isClaimed(image, operation)) !== undefined;
  }

  /** Gives up the claim of an operation, where it has one. */
  async disclaim(image: ImageName, operation: string): Promise<void> {
    const claimed = await this.#isClaimed(image, operation);
    if (claimed === undefined) return;
    await this.#kit.global.commit({ conditions: [claimed], operations: [remove(claimKey(image))] });
  }

  async #isClaimed(image: ImageName, operation: string) {
    const key = claimKey(image);
    const entry = await this.#kit.global.get(key);
    if (entry === undefined) return undefined;
    const claim = JSON.parse(new TextDecoder().decode(entry.value)) as { readonly operation: string };
    return claim.operation === operation ? { key, modRevision: entry.modRevision } : undefined;
  }

  /**
   * This region has it from now on; the claim of the operation that brought it ends. CONFLICT when the name is another's or that
   * of other bytes: that operation's claim was taken from it.
   */
  async addRegion(image: ImageRecord, operation: string): Promise<void> {
    const key = imageKey(image);
    const regions = [this.#kit.regionName];
    await this.#change(key, (before) => {
      if (before === undefined) return { ...image, regions };
      const isOther = before.digest !== image.digest && before.regions !== undefined;
      if (isOther || before.account !== image.account)
        throw new ApiError('CONFLICT', `${quoted(image)} is another by now; give another version`);
      return {
        ...before,
        digest: image.digest,
        regions: [...new Set([...(before.regions ?? []), ...regions])].toSorted(),
      };
    });
    await this.disclaim(image, operation);
  }

  /** A region has it no more. A name without regions is free. Another that has the name by now stays. */
  async removeRegion(image: ImageRecord, name = this.#kit.regionName): Promise<void> {
    await this.#change(imageKey(image), (before) => {
      if (before?.digest !== image.digest || before.createdAtMs !== image.createdAtMs) return before;
      const regions = before.regions?.filter((region) => region !== name) ?? [];
      return regions.length === 0 ? undefined : { ...before, regions };
    });
  }

  /** Gives up what a region was about to add. */
  async disclaimAll(region: string): Promise<void> {
    for (const { key, value, modRevision } of (await entriesOf(this.#kit.global, claimPrefix)).entries) {
      const claim = JSON.parse(new TextDecoder().decode(value)) as { readonly region: string };
      if (claim.region !== region) continue;
      const name = keyText(key);
      await this.#kit.global.commit({ conditions: [{ key: name, modRevision }], operations: [remove(name)] });
    }
  }

  /** Those that a region has. */
  async of(region: string): Promise<ImageRecord[]> {
    return (await this.list()).map(({ record }) => record).filter(({ regions }) => regions?.includes(region) === true);
  }

  async #change(key: string, next: (before: ImageRecord | undefined) => ImageRecord | undefined): Promise<void> {
    for (;;) {
      const before = await getRecord(this.#kit.global, ImageRecord, key);
      const after = next(before?.record);
      if (after === before?.record) return;
      const { committed } = await this.#kit.global.commit({
        conditions: [unchanged(key, before)],
        operations: [after === undefined ? remove(key) : put(key, after)],
      });
      if (committed) return;
    }
  }
}
