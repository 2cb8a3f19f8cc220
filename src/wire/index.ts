export * from './errno.ts';
export * from './flags.ts';
export * from './ip.ts';
export { isWholeMsgpack } from './msgpack-check.ts';
export { decodeName, decodeText, endOfName } from './names.ts';
export { printable } from './printable.ts';
export { type Field, struct } from './struct.ts';
