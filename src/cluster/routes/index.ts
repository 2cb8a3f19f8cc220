export * from './common.ts';
export * from './metadata.ts';
export * from './rest.ts';
export * from './store.ts';
export * from './vms.ts';
