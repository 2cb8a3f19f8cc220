/** Fixed wire layouts as tables: `struct({ len: 'u32', opcode: 'u32' })` computes the offsets once and freezes a codec per field. */

/** Field types. `u64` is a number (exact up to 2^53) and, for opaque values, a pair of u32 by `lo` and `hi`. `bytesN` only reserves room. */
type FieldType = 'u8' | 'u16' | 'u32' | 'i32' | 'u64' | `bytes${number}`;

/** Reads and writes one little-endian field of a message that starts at `base` in `view`. Never allocates. */
export interface Field {
  readonly offset: number;
  readonly size: number;
  readonly get: (view: DataView, base: number) => number;
  readonly set: (view: DataView, base: number, value: number) => void;
  /** The low and the high 32 bits of a u64, for values that are copied and never calculated with. */
  readonly lo: (view: DataView, base: number) => number;
  readonly hi: (view: DataView, base: number) => number;
}

/** A frozen table: one codec per field, by the field's name. */
type Struct<T extends Record<string, FieldType>> = { readonly [K in keyof T]: Field } & {
  /** Size in bytes. */
  readonly sizeBytes: number;
  /** The field names in order. */
  readonly fields: readonly (keyof T & string)[];
};

const TWO_32 = 2 ** 32;

const unsupported = (): never => {
  throw new TypeError('this field is an array of bytes; slice it out of the message');
};

function field(type: FieldType, offset: number): Field {
  const none = { lo: unsupported, hi: unsupported };
  switch (type) {
    case 'u8':
      return {
        offset,
        size: 1,
        get: (v, b) => v.getUint8(b + offset),
        set: (v, b, x) => v.setUint8(b + offset, x),
        ...none,
      };
    case 'u16':
      return {
        offset,
        size: 2,
        get: (v, b) => v.getUint16(b + offset, true),
        set: (v, b, x) => v.setUint16(b + offset, x, true),
        ...none,
      };
    case 'u32':
      return {
        offset,
        size: 4,
        get: (v, b) => v.getUint32(b + offset, true),
        set: (v, b, x) => v.setUint32(b + offset, x, true),
        ...none,
      };
    case 'i32':
      return {
        offset,
        size: 4,
        get: (v, b) => v.getInt32(b + offset, true),
        set: (v, b, x) => v.setInt32(b + offset, x, true),
        ...none,
      };
    case 'u64':
      return {
        offset,
        size: 8,
        get: (v, b) => v.getUint32(b + offset, true) + v.getUint32(b + offset + 4, true) * TWO_32,
        set: (v, b, x) => {
          v.setUint32(b + offset, x >>> 0, true);
          v.setUint32(b + offset + 4, Math.floor(x / TWO_32), true);
        },
        lo: (v, b) => v.getUint32(b + offset, true),
        hi: (v, b) => v.getUint32(b + offset + 4, true),
      };
    default:
      return { offset, size: Number(type.slice('bytes'.length)), get: unsupported, set: unsupported, ...none };
  }
}

/**
 * A codec for a packed little-endian struct: fields lie one after the other, as the kernel's ABI headers spell out their
 * padding. The tables of the ABI are checked against the C headers by a test.
 */
export function struct<const T extends Record<string, FieldType>>(fields: T): Struct<T> {
  const table: Record<string, Field | number | readonly string[]> = {};
  let offset = 0;
  for (const [name, type] of Object.entries(fields)) {
    const codec = Object.freeze(field(type, offset));
    table[name] = codec;
    offset += codec.size;
  }
  table['sizeBytes'] = offset;
  table['fields'] = Object.freeze(Object.keys(fields));
  return Object.freeze(table) as unknown as Struct<T>;
}
