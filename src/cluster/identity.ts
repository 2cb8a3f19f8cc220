/** Who makes a request, and what that lets them do. */
import type { Role } from '../records/index.ts';
import { ApiError } from './problem.ts';
import type { Access } from './routes/common.ts';

export interface Identity {
  readonly account: string;
  readonly role: Role;
  /** The id of a key, or the uid at the other end of the unix socket. */
  readonly key: string | undefined;
  readonly uid: number | undefined;
  /** Aborts when it ends: the key was revoked or ran out. */
  readonly ended: AbortSignal | undefined;
}

/** Everything belongs to this account until there are others. */
export const defaultAccount = 'default';

const rank: Readonly<Record<Access, number>> = { none: 0, viewer: 1, operator: 2, admin: 3 };

export const isAllowed = (identity: Identity | undefined, access: Access): boolean =>
  rank[access] === 0 || (identity !== undefined && rank[identity.role] >= rank[access]);

/** NO_KEY, FORBIDDEN. */
export const checkAccess = (identity: Identity | undefined, access: Access): void => {
  if (isAllowed(identity, access)) return;
  if (identity === undefined)
    throw new ApiError('NO_KEY', 'give a key: "Authorization: Bearer ph_…"; `porthole key create` makes one');
  throw new ApiError('FORBIDDEN', `this needs the role ${access}, and yours is ${identity.role}`);
};

/** For logs and limits. */
export const nameOf = (identity: Identity | undefined): string => {
  if (identity === undefined) return 'nobody';
  return identity.key === undefined ? `uid ${identity.uid}` : `key ${identity.key}`;
};
