/**
 * Quotas: each VM of an account takes a slot `slot/ACCOUNT/TYPE/N` of its region, a key of its own, in the transaction that
 * makes it, and gives it back in the one that frees it. So many creations at once meet in no common key, and none can go over:
 * who takes a slot below the limit has a condition that nobody else has it.
 */
import type { AccountRecord } from '../records/index.ts';
import { keyText, prefixRange } from '../store/index.ts';
import { entriesOf, type Kit } from './kit.ts';
import { ApiError } from './problem.ts';

/** Of an account and region: all slots that are taken, whatever their type. */
export const slotsPrefix = (account: string): string => `slot/${account}/`;

const digits = 9;
const guesses = 8;

const prefixOf = (account: string, type: string): string => `${slotsPrefix(account)}${type}/`;
const numbered = (prefix: string, n: number): string => `${prefix}${String(n).padStart(digits, '0')}`;
/** Of a VM that no limit was there for; after all numbers. */
export const unlimitedSlot = (account: string, type: string, vmId: string): string =>
  `${prefixOf(account, type)}x-${vmId}`;

export const limitOf = ({ quotas }: AccountRecord, region: string, type: string): number | undefined =>
  Object.hasOwn(quotas, region) && Object.hasOwn(quotas[region]!, type) ? quotas[region]![type] : undefined;

/** A key that nobody has taken, as far as was seen: its transaction needs the condition that it is so. QUOTA_EXCEEDED. */
export const freeSlot = async (
  { region, regionName }: Pick<Kit, 'region' | 'regionName'>,
  account: AccountRecord,
  type: string,
  vmId: string,
): Promise<string> => {
  const limit = limitOf(account, regionName, type);
  if (limit === undefined) return unlimitedSlot(account.name, type, vmId);
  const prefix = prefixOf(account.name, type);
  const range = prefixRange(prefix);
  const [{ count }, { count: above }] = await Promise.all([
    region.count(range),
    region.count({ ...range, start: numbered(prefix, limit) }),
  ]);
  if (count >= limit) throw exceeded(account.name, regionName, type, limit, count);
  if (above === 0)
    for (let i = 0; i < guesses; i++) {
      const key = numbered(prefix, Math.floor(Math.random() * limit));
      if ((await region.get(key)) === undefined) return key;
    }
  const taken = (await entriesOf(region, prefix)).entries.map(({ key }) => keyText(key));
  const bound = boundOf(taken, prefix, limit);
  const has = new Set(taken);
  const free = [];
  for (let n = 0; n < bound; n++) if (!has.has(numbered(prefix, n))) free.push(numbered(prefix, n));
  const key = free[Math.floor(Math.random() * free.length)];
  if (key === undefined) throw exceeded(account.name, regionName, type, limit, taken.length);
  return key;
};

/**
 * Below which number slots may be taken: VMs of before a limit was lowered have slots above it, and each of these stands for
 * one below.
 */
export const boundOf = (taken: readonly string[], prefix: string, limit: number): number => {
  // In order: what follows a slot is above it.
  const sorted = taken.toSorted();
  let bound = limit;
  let below = sorted.length;
  for (;;) {
    while (below > 0 && sorted[below - 1]! >= numbered(prefix, bound)) below--;
    const room = Math.max(0, limit - (sorted.length - below));
    if (room >= bound) return bound;
    bound--;
  }
};

const exceeded = (account: string, region: string, type: string, limit: number, used: number): ApiError =>
  new ApiError(
    'QUOTA_EXCEEDED',
    `the account "${account}" may have ${limit} VMs of type "${type}" in the region "${region}" and has ${used}; delete one, or have the quota raised`,
  );
