/** What `readers.c` is told and what it answers. */

/** How it reads: open/read/close in pieces, fstat and one read, mmap, one descriptor held open. */
export const modes = ['read', 'stat', 'map', 'held'] as const;

/** The JSON that it prints when it ends. */
export interface Report {
  readonly mode: string;
  /** Whole copies read, and how many of them differ from the one before. */
  readonly reads: number;
  readonly distinct: number;
  /** Numbers of the oldest and the newest value read. */
  readonly lowest: number;
  readonly highest: number;
  /** How often the number of the last completed write had moved before an open. */
  readonly floors: number;
  readonly movedWhileHeld: number;
  readonly violations: number;
  readonly details: readonly { readonly kind: string; readonly expected: number; readonly got: number }[];
}
