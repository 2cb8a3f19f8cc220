/** What several ways that speak 9P can't do for the same reason. */
import type { Cannot } from './suite.ts';

/** Linux's own 9P client, however it was mounted. */
export const byV9fs = (cannot: Cannot) => ({ v9fs: cannot, 'v9fs-client': cannot }) as const;

/** All that speaks 9P. */
export const by9p = (cannot: Cannot) => ({ ninep: cannot, ...byV9fs(cannot) }) as const;
