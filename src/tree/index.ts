export { isDirectory } from './access.ts';
export type { AuditRecord, AuditSink } from './audit.ts';
export { Authority, type AuthorityOptions, type Commit, type Kept, type Restored } from './authority.ts';
export { type Caller, type Way, ways } from './caller.ts';
export type { Clock } from './clock.ts';
export type { Change, Delta, Usage } from './delta.ts';
export { type Explanation, explain, type Verdict } from './explain.ts';
export {
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
export { checkName, utf8Bytes } from './name.ts';
export { type Acl, type AclEntry, type Node, ROOT_INO, type Time } from './node.ts';
export { CHANGES_NAME, Policy, ruleName } from './policy.ts';
export { type Caching, Replica } from './replica.ts';
export { Snapshot } from './snapshot.ts';
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
export { TreeFileSystem, type TreeFileSystemOptions } from './tree-file-system.ts';
