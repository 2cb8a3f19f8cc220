/** Where in etcd a store lies: all its keys below one prefix. */
import { Buffer } from 'node:buffer';
import { keyBytes, prefixRange } from './keys.ts';
import type { CheckedRange } from './request.ts';

type Bytes = Uint8Array<ArrayBuffer>;

export class EtcdPlace {
  readonly name: string;
  /** Prefix of the slots of whoever writes to it. */
  readonly slots: string;
  readonly #prefix: Bytes;
  readonly #end: Uint8Array;

  constructor(prefix: string, name: string) {
    this.name = name;
    this.slots = `${prefix}/slot/${name}/`;
    this.#prefix = keyBytes(`${prefix}/${name}/`);
    this.#end = keyBytes(prefixRange(this.#prefix).end!);
  }

  full(key: Uint8Array): Uint8Array {
    return Buffer.concat([this.#prefix, key]);
  }

  /** The key as callers know it. */
  own(key: Uint8Array): Bytes {
    return new Uint8Array(key.subarray(this.#prefix.length));
  }

  range({ start, end }: CheckedRange): { readonly key: Uint8Array; readonly rangeEnd: Uint8Array } {
    return { key: this.full(start), rangeEnd: end === undefined ? this.#end : this.full(end) };
  }
}
