export type { AuditRecord, AuditSink } from './audit.ts';
export { type Caller, type Way, ways } from './caller.ts';
export type { Change, Delta } from './delta.ts';
export {
  type Caching,
  type DirectoryEntry,
  type DirectoryHandle,
  type Done,
  type FileSystem,
  type Handle,
  PENDING,
  type SetAttributes,
  type StatFs,
} from './file-system.ts';
export type { Mutation, Outcome, Settle, Upstream } from './mutation.ts';
export { type Acl, type AclEntry, type Node, ROOT_INO, type Time } from './node.ts';
export {
  defaultQuota,
  type Group,
  limits,
  type PolicySpec,
  type Quota,
  type Rule,
  type RuleAclEntry,
  type Spec,
  type SpecEntry,
} from './spec.ts';
