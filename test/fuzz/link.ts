import { LinkError, readerOnHost } from '../../src/device/index.ts';

/** Reads `bytes` as what a device process says, whole and in two pieces: nothing but a LinkError may come out. */
export const fuzzLink = (bytes: Uint8Array): void => {
  const cut = bytes.length === 0 ? 0 : (bytes[0]! * 31 + bytes.length) % bytes.length;
  for (const pieces of [[bytes], [bytes.subarray(0, cut), bytes.subarray(cut)]]) {
    try {
      const reader = readerOnHost();
      for (const piece of pieces) reader.feed(piece);
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
    }
  }
};
