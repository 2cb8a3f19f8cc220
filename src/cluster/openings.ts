/**
 * Work that an account has begun and that has not ended: so much of a kind at once, and no more. Each takes a key of its own,
 * `opening/KIND/ACCOUNT/N`, in the transaction that begins it, and gives it back in the one that ends it.
 */
import { keyText, prefixRange } from '../store/index.ts';
import type { Kit } from './kit.ts';
import { ApiError } from './problem.ts';

/** By kind: how many at once, and what they are. */
const kinds = {
  batch: { most: 32, what: 'requests about many VMs' },
  image: { most: 32, what: 'images on their way to this region' },
} as const;

interface Opening {
  readonly kind: keyof typeof kinds;
  readonly account: string;
}

/**
 * Begins something under a key that nobody has: its transaction needs the condition that this is so, and a record that names
 * it for whoever ends it. False: another condition did not hold. TOO_MANY_REQUESTS.
 */
export const withOpening = async (
  kit: Pick<Kit, 'region'>,
  opening: Opening,
  begin: (key: string) => Promise<boolean>,
): Promise<boolean> => {
  for (;;) {
    const key = await freeOne(kit, opening);
    if (await begin(key)) return true;
    if ((await kit.region.get(key)) === undefined) return false;
  }
};

const freeOne = async ({ region }: Pick<Kit, 'region'>, { kind, account }: Opening): Promise<string> => {
  const { most, what } = kinds[kind];
  const prefix = `opening/${kind}/${account}/`;
  const { entries } = await region.range(prefixRange(prefix), { limit: most });
  const taken = new Set(entries.map(({ key }) => keyText(key)));
  const free = Array.from({ length: most }, (_, n) => `${prefix}${n}`).filter((key) => !taken.has(key));
  const key = free[Math.floor(Math.random() * free.length)];
  if (key !== undefined) return key;
  throw new ApiError(
    'TOO_MANY_REQUESTS',
    `the account "${account}" has ${most} ${what} that have not ended; wait for one of them, or cancel one: \`porthole operation ls\` lists them`,
  );
};
