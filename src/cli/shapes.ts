/** What the API takes and answers, as its definition says. */
import type { z } from 'zod';
import type { Attachment, HostStatus, routes } from '../cluster/index.ts';
import type { Explanation } from '../tree/index.ts';

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
export type EditResult = z.infer<typeof routes.EditResultShape>;
export type ImportResult = z.infer<typeof routes.ImportResultShape>;
export type PolicyResult = Pick<ImportResult, 'revision' | 'warnings' | 'notApplied'>;
export type Host = Omit<HostStatus, 'startedAtMs'> & { readonly startedAt: string };
export type { Attachment };

/** Of a commit, as `watch` tells it. */
export interface Commit {
  readonly revision: string;
  readonly policyChanged: boolean;
  readonly changes: readonly { readonly path: string; readonly what: string }[];
}

/** Of a policy: what it says of a path for a caller. */
export interface Explained extends Omit<Explanation, 'mode' | 'shownMode'> {
  /** Four octal digits. */
  readonly mode: string;
  readonly shownMode: string;
}
