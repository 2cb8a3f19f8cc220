export * from './errno.ts';
export * from './flags.ts';
export { type Field, type FieldType, type Struct, struct } from './struct.ts';
