export * from './errno.ts';
export * from './flags.ts';
export { type Field, type Struct, struct } from './struct.ts';
