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
  { pattern: '/vms/{name}', title: 'VM', inMenu: false, load: () => import('./vm.tsx') },
  { pattern: '/vms/{name}/console', title: 'Console', inMenu: false, load: () => import('./console.tsx') },
  { pattern: '/vms/{name}/metadata', title: 'Metadata', inMenu: false, load: () => import('./metadata.tsx') },
  { pattern: '/vms/{name}/policy', title: 'Policy', inMenu: false, load: () => import('./policy.tsx') },
  { pattern: '/audit', title: 'Audit', inMenu: true, load: () => import('./audit.tsx') },
  { pattern: '/images', title: 'Images', inMenu: true, load: () => import('./images.tsx') },
  { pattern: '/operations', title: 'Operations', inMenu: true, load: () => import('./operations.tsx') },
];

/** Where `/` leads. */
export const home = '/vms';
