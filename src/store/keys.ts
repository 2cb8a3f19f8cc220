import { Buffer } from 'node:buffer';
import type { Key, KeyRange } from './store.ts';

/** A copy of its own, so that neither its sender nor a pool is touched when it moves to another thread. */
export const keyBytes = (key: Key): Uint8Array<ArrayBuffer> =>
  new Uint8Array(typeof key === 'string' ? Buffer.from(key) : key);

/** For messages and for keys that are known to be text. */
export const keyText = (key: Uint8Array): string => Buffer.from(key).toString();

export const compareKeys = (a: Uint8Array, b: Uint8Array): number => Buffer.compare(a, b);

/** All keys that start with `prefix`; all keys there are when it is empty. */
export const prefixRange = (prefix: Key): KeyRange => {
  const start = keyBytes(prefix);
  let length = start.length;
  while (length > 0 && start[length - 1] === 0xff) length--;
  if (length === 0) return { start };
  const end = start.slice(0, length);
  end[length - 1]!++;
  return { start, end };
};

/** The first key after `key`. */
export const keyAfter = (key: Uint8Array): Uint8Array<ArrayBuffer> => {
  const after = new Uint8Array(key.length + 1);
  after.set(key);
  return after;
};
