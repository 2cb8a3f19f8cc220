/**
 * Walks one MessagePack value without building anything, so that a decoder is only run on what is whole and flat enough:
 * decoders allocate arrays by their claimed length before they see an element. `maxValues`: of all, keys of maps and what is
 * within others included, since a byte of an empty one becomes an object.
 * https://github.com/msgpack/msgpack/blob/master/spec.md
 */
export const isWholeMsgpack = (
  bytes: Uint8Array,
  maxDepth: number,
  maxValues: number = Number.POSITIVE_INFINITY,
): boolean => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** Values still to come at each depth; map keys and values count one each. */
  const left: number[] = [1];
  let values = 1;
  let at = 0;
  while (left.length > 0) {
    const depth = left.length - 1;
    if (left[depth] === 0) {
      left.pop();
      continue;
    }
    left[depth]!--;
    if (at >= bytes.length) return false;
    const code = bytes[at++]!;
    const width = lengthWidth(code);
    if (at + width > bytes.length) return false;
    const length = width === 0 ? fixedLength(code) : readLength(view, at, width);
    at += width;
    if (isContainer(code)) {
      const count = isMap(code) ? length * 2 : length;
      // Every value takes a byte at least.
      values += count;
      if (count > bytes.length - at || left.length > maxDepth || values > maxValues) return false;
      left.push(count);
    } else {
      at += isExtension(code) && width > 0 ? length + 1 : length;
      if (at > bytes.length) return false;
    }
  }
  return at === bytes.length;
};

const isMap = (code: number): boolean => (code & 0xf0) === 0x80 || code === 0xde || code === 0xdf;
const isContainer = (code: number): boolean => isMap(code) || (code & 0xf0) === 0x90 || code === 0xdc || code === 0xdd;
const isExtension = (code: number): boolean => code >= 0xc7 && code <= 0xc9;

/** Bytes of the length that follows the first byte: bin, ext, str, array and map 8, 16 and 32. */
const lengthWidth = (code: number): number => {
  if (code === 0xc4 || code === 0xc7 || code === 0xd9) return 1;
  if (code === 0xc5 || code === 0xc8 || code === 0xda || code === 0xdc || code === 0xde) return 2;
  if (code === 0xc6 || code === 0xc9 || code === 0xdb || code === 0xdd || code === 0xdf) return 4;
  return 0;
};

const readLength = (view: DataView, at: number, width: number): number => {
  if (width === 1) return view.getUint8(at);
  return width === 2 ? view.getUint16(at) : view.getUint32(at);
};

/** Bytes that follow, or entries of a small container. 0xc1 is no type; it counts as endless. */
const fixedLength = (code: number): number => {
  if (code <= 0x7f || code >= 0xe0) return 0;
  if (code <= 0x9f) return code & 0x0f;
  if (code <= 0xbf) return code & 0x1f;
  return fixedLengths[code] ?? 0;
};

const fixedLengths: Readonly<Record<number, number>> = {
  0xc1: Number.MAX_SAFE_INTEGER,
  0xca: 4,
  0xcb: 8,
  0xcc: 1,
  0xcd: 2,
  0xce: 4,
  0xcf: 8,
  0xd0: 1,
  0xd1: 2,
  0xd2: 4,
  0xd3: 8,
  0xd4: 2,
  0xd5: 3,
  0xd6: 5,
  0xd7: 9,
  0xd8: 17,
};
