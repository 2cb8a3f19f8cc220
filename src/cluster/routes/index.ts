export * from './attachment.ts';
export * from './cluster.ts';
export * from './common.ts';
export * from './console.ts';
export * from './metadata.ts';
export * from './rest.ts';
export * from './store.ts';
export * from './vms.ts';
