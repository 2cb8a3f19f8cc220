/** Revisions of a tree as the API shows them, `EPOCH.REVISION`, and the conditions that quote them. */
import type { TreeAnswer } from '../records/index.ts';
import { ApiError } from './problem.ts';
import { revisionPattern } from './routes/common.ts';

export const writeRevision = ({ epoch }: Pick<TreeAnswer, 'epoch'>, revision: number): string => `${epoch}.${revision}`;

/** @param what the text is, for the message */
export const readRevision = (text: string, what: string): TreeAnswer => {
  const [, epoch, revision] = revisionPattern.exec(text) ?? [];
  if (epoch === undefined)
    throw new ApiError('BAD_REQUEST', `${what} ${JSON.stringify(text)} is no revision of a tree`);
  return { epoch: Number(epoch), revision: Number(revision) };
};

export const etagOf = (revision: string): string => `"${revision}"`;

/** An `If-Match` header: one strong tag, or `*`. Undefined when there is none. */
export const readIfMatch = (header: string | undefined): TreeAnswer | '*' | undefined => {
  if (header === undefined) return undefined;
  const text = header.trim();
  if (text === '*') return '*';
  if (!/^"[^"]*"$/.test(text))
    throw new ApiError('BAD_REQUEST', 'If-Match must be one ETag as it was answered, with its quotes, or *');
  return readRevision(text.slice(1, -1), 'the ETag of If-Match');
};

/** Revisions of another epoch match nothing: the store was restored in between. */
export const checkEpoch = (wanted: TreeAnswer, current: TreeAnswer): void => {
  if (wanted.epoch !== current.epoch)
    throw new ApiError('PRECONDITION_FAILED', 'the store was restored since that revision; read again, then repeat');
};
