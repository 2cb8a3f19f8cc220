/**
 * Where the next page of a list begins: opaque to callers, bound to the revision of the first page and to its filters, so
 * that pages neither repeat nor miss what was there all along.
 */
import { Buffer } from 'node:buffer';
import { z } from 'zod';
import { ApiError } from './problem.ts';

const Cursor = z.tuple([z.int(), z.int().positive(), z.string(), z.string()]);

export interface Position {
  readonly epoch: number;
  readonly revision: number;
  /** Key of the next entry. */
  readonly next: string;
}

export const writeCursor = ({ epoch, revision, next }: Position, filters: string): string =>
  Buffer.from(JSON.stringify([epoch, revision, next, filters])).toString('base64url');

/** @param prefix what every key of the list starts with */
export const readCursor = (cursor: string, filters: string, prefix: string, epoch: number): Position => {
  let position: z.infer<typeof Cursor>;
  try {
    position = Cursor.parse(JSON.parse(Buffer.from(cursor, 'base64url').toString()));
  } catch {
    throw new ApiError('BAD_CURSOR', 'the cursor is not one of this server; leave it out to start anew');
  }
  const [ofEpoch, revision, next, ofFilters] = position;
  if (ofFilters !== filters)
    throw new ApiError(
      'BAD_CURSOR',
      'the cursor belongs to a list with other filters; repeat the first page’s filters',
    );
  if (!next.startsWith(prefix)) throw new ApiError('BAD_CURSOR', 'the cursor is not one of this list');
  if (ofEpoch !== epoch) throw new ApiError('COMPACTED', 'the store was restored since the first page; start anew');
  return { epoch: ofEpoch, revision, next };
};
