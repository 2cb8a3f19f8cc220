export * from './errno.ts';
export * from './flags.ts';
export { printable } from './printable.ts';
export { type Field, struct } from './struct.ts';
