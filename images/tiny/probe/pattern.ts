/** Values whose every copy can be checked; `readers.c` says what they look like and does the checking. */

const trailerBytes = 12;

/** Value `number` (1 to 2^32 − 1) of exactly `lengthBytes`, which must have room for header and trailer (64 is enough). */
export function patternValue(number: number, lengthBytes: number): Buffer {
  const value = Buffer.alloc(lengthBytes);
  for (let index = 0; index < lengthBytes >>> 2; index++) {
    const bits = word(number, index);
    value[index * 4] = bits;
    value[index * 4 + 1] = bits >>> 8;
    value[index * 4 + 2] = bits >>> 16;
    value[index * 4 + 3] = bits >>> 24;
  }
  value.write(`${number} ${lengthBytes}\n`, 0, 'latin1');
  value.write(`\n${String(number).padStart(10, '0')}\n`, lengthBytes - trailerBytes, 'latin1');
  return value;
}

/** Lengths around 64 KiB for successive numbers: page-aligned, one off, and anything between, up and down by turns. */
export function patternLength(number: number): number {
  const offsets = [0, 1, -1, 4096, -4096, 4095, -12_288, 8192, 777, -3001, 16_383, -16_384];
  return 65_536 + (offsets[number % offsets.length] ?? 0);
}

function word(number: number, index: number): number {
  let x = (Math.imul(number, 0x9e3779b1) + index) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return x ^ (x >>> 16);
}
