import { QemuError, readQcow2Header } from '../../src/qemu/index.ts';

/** Reads `bytes` as the beginning of a stranger's image, short and long: nothing but a refusal may come out. */
export const fuzzQcow2 = (bytes: Uint8Array): void => {
  for (const fileBytes of [bytes.length, 2 ** 30]) {
    for (const backing of [false, true]) {
      try {
        readQcow2Header(bytes, fileBytes, { maxVirtualBytes: 2 ** 46 }, { backing });
      } catch (error) {
        if (!(error instanceof QemuError && error.code === 'IMAGE_REFUSED')) throw error;
      }
    }
  }
};
