export * from './echo-handler.ts';
export * from './front-end.ts';
export * as fuse from './fuse-requests.ts';
export * from './in-process.ts';
export * from './memory.ts';
export * from './queue.ts';
