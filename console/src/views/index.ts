/** All views. Another one is another row, and a file that exports it as its default. */
import type { ComponentType } from 'preact';

export interface ViewProps {
  /** What stands in the address for each `{name}` of the pattern. */
  readonly params: Readonly<Record<string, string>>;
}

export interface View {
  readonly pattern: string;
  readonly title: string;
  readonly inMenu: boolean;
  readonly load: () => Promise<{ readonly default: ComponentType<ViewProps> }>;
}

export const views: readonly View[] = [
  { pattern: '/vms', title: 'VMs', inMenu: true, load: () => import('./vms.tsx') },
];

/** Where `/` leads. */
export const home = '/vms';
