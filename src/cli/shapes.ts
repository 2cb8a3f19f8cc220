/** What the API takes and answers, as its definition says. */
import type { z } from 'zod';
import type { ResultOf, routes } from '../cluster/index.ts';

export type Vm = z.infer<typeof routes.VmShape>;
export type NewVm = z.input<typeof routes.CreateVm>;
export type Operation = z.infer<typeof routes.OperationShape>;
export interface VmAndOperation {
  readonly vm: Vm;
  readonly operation: Operation;
}
export type Image = z.infer<typeof routes.ImageShape>;
export type NewImage = z.input<typeof routes.AddImage>;
export type Key = z.infer<typeof routes.KeyShape>;
export type AuditEvent = z.infer<typeof routes.AuditEventShape>;
export type TreeEntry = z.infer<typeof routes.EntryShape>;
export type Directory = z.infer<typeof routes.DirectoryShape>;
export type Tree = z.infer<typeof routes.TreeShape>;
export type HostStatus = ResultOf<'getHost'>;
export type Store = HostStatus['stores']['region'];
export type Top = ResultOf<'getTop'>;
export type Attachment = ResultOf<'getAttachment'>;
/** Of a policy: what it says of a path for a caller. */
export type Explained = ResultOf<'explainPolicy'>;

/** Of a commit, as `watch` tells it. */
export interface Commit {
  readonly revision: string;
  readonly policyChanged: boolean;
  readonly changes: readonly { readonly path: string; readonly what: string }[];
}
