export { isDirectory } from './access.ts';
export { ANONYMOUS, AnonymousView } from './anonymous-view.ts';
export { AppliedMutations } from './applied.ts';
export type { AuditRecord, AuditSink } from './audit.ts';
export { Authority, type AuthorityOptions, type Edited, type Loaded } from './authority.ts';
export { type Caller, type Way, ways } from './caller.ts';
export type { Clock } from './clock.ts';
export {
  ANSWERED_KEPT,
  type Answered,
  APPLIED_KEPT,
  type Applied,
  type Commit,
  type Kept,
  type Persist,
  type Restored,
} from './commit.ts';
export type { Change, Delta, Usage } from './delta.ts';
export { type Edit, type EditCondition, TreeError, type TreeErrorCode } from './edit.ts';
export { type Explanation, explain, type Verdict } from './explain.ts';
export {
  type DirectoryEntry,
  type DirectoryHandle,
  type Done,
  type FileSystem,
  type Handle,
  PENDING,
  type SetAttributes,
} from './file-system.ts';
export type { Fetched, Mutation, Outcome, Settle, Upstream } from './mutation.ts';
export { type Acl, type AclEntry, type Node, ROOT_INO, type Time } from './node.ts';
export type { OpenDirectory } from './open-directories.ts';
export { type OpenFile, openMask } from './open-files.ts';
export type { LeftDirectory, LeftFile, OpenJournal } from './open-journal.ts';
export { standing } from './outside.ts';
export { CHANGES_NAME, Policy, ruleName } from './policy.ts';
export { type CallerClass, Comparison, callersOf, type RightsChange, underPolicy } from './preview.ts';
export { type Caching, Replica } from './replica.ts';
export { type Right, rightsOf, TreeRights } from './rights.ts';
export type { Snapshot } from './snapshot.ts';
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
export { TokenBucket } from './token-bucket.ts';
export { TreeFileSystem } from './tree-file-system.ts';
