export * from './errno.ts';
export * from './flags.ts';
export { type Field, struct } from './struct.ts';
