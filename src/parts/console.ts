/** The web console, as `npm run console` packed it. */
import { readFileSync } from 'node:fs';
import { getAsset, isSea } from 'node:sea';
import { checkoutFile } from './start.ts';

export const consoleAsset = 'console.json';
/** In a checkout. */
export const consolePack = `.cache/console/${consoleAsset}`;

/** Its text; undefined in a checkout where it was not built. */
export const builtConsole = (): string | undefined => {
  if (isSea()) return getAsset(consoleAsset, 'utf8');
  try {
    return readFileSync(checkoutFile(consolePack)!, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
};
