import { Buffer } from 'node:buffer';
import { writeSync } from 'node:fs';

const still = new Int32Array(new SharedArrayBuffer(4));

/** One line on standard output, written before it returns: also where that is a socket that does not block and is full. */
export const tell = (line: string): void => {
  for (let rest: Uint8Array = Buffer.from(`${line}\n`); rest.length > 0; ) {
    try {
      rest = rest.subarray(writeSync(1, rest));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      Atomics.wait(still, 0, 0, 1);
    }
  }
};
