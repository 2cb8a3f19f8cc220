/** Who makes a request, and what that lets them do: the one place where access to the API is decided. */
import { defaultAccount, type KeyRecord, type Role } from '../records/index.ts';
import { ApiError } from './problem.ts';
import type { Access, Scope } from './routes/common.ts';

/** The only VMs that a key may touch. */
export type VmScope = NonNullable<KeyRecord['vms']>;

export interface Identity {
  readonly account: string;
  readonly role: Role;
  /** Undefined: all VMs of the account. */
  readonly vms: VmScope | undefined;
  /** The id of a key, or the uid at the other end of the unix socket. */
  readonly key: string | undefined;
  readonly uid: number | undefined;
  /** Aborts when it ends: the key was revoked or ran out. */
  readonly ended: AbortSignal | undefined;
}

/** What a route asks of whoever calls it. */
export interface Need {
  readonly access: Access;
  readonly scope: Scope;
  /** The VM in its path. */
  readonly vm: string | undefined;
}

const rank: Readonly<Record<Access, number>> = { none: 0, viewer: 1, operator: 2, admin: 3 };

export const hasRole = ({ role }: Pick<Identity, 'role'>, access: Access): boolean => rank[role] >= rank[access];

/** NO_KEY, FORBIDDEN. */
export const checkAccess = (identity: Identity | undefined, { access, scope, vm }: Need): void => {
  if (access === 'none') return;
  if (identity === undefined)
    throw new ApiError('NO_KEY', 'give a key: "Authorization: Bearer ph_…"; `porthole key create` makes one');
  if (!hasRole(identity, access))
    throw new ApiError('FORBIDDEN', `this needs the role ${access}, and yours is ${identity.role}`);
  switch (scope) {
    case 'self':
    case 'vms':
      return;
    case 'vm':
      return checkVm(identity, vm ?? '');
    case 'account':
      return checkUnscoped(identity);
    case 'cluster':
      checkUnscoped(identity);
      if (identity.account !== defaultAccount)
        throw new ApiError('FORBIDDEN', `this is for the account "${defaultAccount}", which has the cluster`);
  }
};

const checkUnscoped = ({ vms }: Identity): void => {
  if (vms !== undefined) throw new ApiError('FORBIDDEN', 'your key is for certain VMs only, and this is not about one');
};

/** Whether a key for certain VMs is for this one too. That the VM is of the account is looked at where it is found. */
export const mayTouch = ({ vms }: Pick<Identity, 'vms'>, vm: string): boolean =>
  vms === undefined || vms.names.includes(vm) || vms.prefixes.some((prefix) => vm.startsWith(prefix));

/** FORBIDDEN. */
export const checkVm = (identity: Identity, vm: string): void => {
  if (!mayTouch(identity, vm)) throw new ApiError('FORBIDDEN', `your key is for other VMs than "${vm}"`);
};

/** Whether it sees what is of no account: all that a host recorded. */
export const seesCluster = ({ account, vms }: Identity): boolean => account === defaultAccount && vms === undefined;

/** The account that a request is about which may name another. FORBIDDEN. */
export const accountOf = (identity: Identity, asked: string | undefined): string => {
  if (asked === undefined || asked === identity.account) return identity.account;
  if (identity.account === defaultAccount) return asked;
  throw new ApiError('FORBIDDEN', `your key is of the account "${identity.account}", not "${asked}"`);
};

/** For logs and limits. */
export const nameOf = (identity: Identity | undefined): string => {
  if (identity === undefined) return 'nobody';
  return identity.key === undefined ? `uid ${identity.uid}` : `key ${identity.key}`;
};
