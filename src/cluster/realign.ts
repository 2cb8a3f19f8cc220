/**
 * What the global store has of a region, made anew from what the region says: where one of the two was restored, the other knows
 * what it does not, and no entry of the outbox tells of that any more.
 */
import { ImageRecord, IndexedRecord, type OutboxReadRecord } from '../records/index.ts';
import { keyText, type Operation } from '../store/index.ts';
import { ImageIndex, ownImagePrefix } from './image-index.ts';
import { entriesOf, type Kept, type Kit, kept, put, remove, unchanged } from './kit.ts';
import { ApiError } from './problem.ts';

/** `index/vm/ACCOUNT/REGION/…` */
const indexPrefix = 'index/vm/';
/** Of one transaction, with what says how far it came. */
const operationsAtOnce = 80;

/** Keys of a region's VMs in the index, of all accounts. */
export const indexKeysOf = async ({ global }: Pick<Kit, 'global'>, region: string): Promise<string[]> => {
  const { entries } = await entriesOf(global, indexPrefix);
  return entries.map(({ key }) => keyText(key)).filter((key) => key.slice(indexPrefix.length).split('/')[1] === region);
};

/** Whether an earlier life of one of the stores said how far the outbox was read, or nothing says it any more. */
export const isOfBefore = ({ region, global }: Kit, read: Kept<OutboxReadRecord> | undefined): boolean => {
  if (read === undefined) return true;
  const { epoch, globalEpoch = global.epoch } = read.record;
  return epoch !== region.epoch || globalEpoch !== global.epoch;
};

/**
 * What waits in the outbox is all applied afterwards: of what it says of VMs, that in its order comes to the same.
 * @returns false when another manager was at it; what it did is seen in the next round
 */
export const realign = async (
  kit: Kit,
  readKey: string,
  read: Kept<OutboxReadRecord> | undefined,
): Promise<boolean> => {
  const { region, global, regionName } = kit;
  const { entries } = await entriesOf(region, 'indexed/');
  const own = new Map(
    entries.map((entry) => {
      const { key, record } = kept(IndexedRecord, entry);
      return [record.key, key.slice('indexed/'.length)] as const;
    }),
  );
  const there = new Set(await indexKeysOf(kit, regionName));
  const operations: Operation[] = [
    ...[...own].filter(([key]) => !there.has(key)).map(([key, name]) => put(key, { name })),
    ...[...there].filter((key) => !own.has(key)).map(remove),
  ];
  await realignImages(kit);
  const aligned: OutboxReadRecord = { epoch: region.epoch, globalEpoch: global.epoch, revision: 0 };
  const meanwhile: OutboxReadRecord = read?.record ?? { epoch: 0, revision: 0 };
  let condition = unchanged(readKey, read);
  do {
    const some = operations.splice(0, operationsAtOnce);
    const outcome = await global.commit({
      conditions: [condition],
      operations: [...some, put(readKey, operations.length > 0 ? meanwhile : aligned)],
    });
    if (!outcome.committed) return false;
    condition = { key: readKey, modRevision: outcome.revision };
  } while (operations.length > 0);
  return true;
};

const realignImages = async (kit: Kit): Promise<void> => {
  const index = new ImageIndex(kit);
  const { entries } = await entriesOf(kit.region, ownImagePrefix);
  const own = new Map(entries.map((entry) => [keyText(entry.key).slice(ownImagePrefix.length), entry]));
  for (const image of await index.of(kit.regionName))
    if (!own.has(`${image.name}/${image.version}`)) await index.removeRegion(image);
  for (const entry of own.values()) {
    const { record } = kept(ImageRecord, entry);
    // Its name was given to others since: it is of use here, and not to be copied.
    await index.addRegion(record, '').catch((error: unknown) => {
      if (!(error instanceof ApiError && error.code === 'CONFLICT')) throw error;
      kit.log.warn({ err: error }, 'an image of this region has a name that is another’s since a store was restored');
    });
  }
};
