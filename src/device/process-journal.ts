/**
 * What a device process as a whole hands on: who it is to the host daemon, and the number of its last mutation. 4 KiB that the
 * keeper holds.
 */
import { randomUUID } from 'node:crypto';
import { close, fileSize, Mapping, memfd } from '../sys/index.ts';

const MAGIC = 0x706f_7274_7072;
const VERSION = 1;
const BYTES = 4096;
const HOLDER_AT = 64;
const HOLDER_BYTES = 36;

export class ProcessJournal {
  readonly fd: number;
  /** Names this line of device processes: the host daemon remembers what it did for it. */
  readonly holder: string;
  /** There was none before. */
  readonly isFresh: boolean;
  readonly #f64: Float64Array;

  private constructor(fd: number, buffer: ArrayBuffer) {
    this.fd = fd;
    this.#f64 = new Float64Array(buffer);
    const bytes = new Uint8Array(buffer, HOLDER_AT, HOLDER_BYTES);
    this.isFresh = this.#f64[0] !== MAGIC;
    if (this.isFresh) {
      bytes.set(Buffer.from(randomUUID()));
      this.#f64[1] = VERSION;
      this.#f64[2] = 0;
      this.#f64[0] = MAGIC;
    }
    this.holder = Buffer.from(bytes).toString();
  }

  /** What a predecessor left at `fd`, which is taken over, or where that is none, a new one. */
  static open(fd: number | undefined): ProcessJournal {
    if (fd !== undefined && fileSize(fd) === BYTES) {
      const mapping = Mapping.map(fd, 0, BYTES);
      if (typeof mapping !== 'number') {
        const [magic, version, last] = new Float64Array(mapping.buffer);
        const holder = Buffer.from(mapping.buffer.slice(HOLDER_AT, HOLDER_AT + HOLDER_BYTES)).toString();
        const isSane = Number.isSafeInteger(last) && last! >= 0 && /^[0-9a-f-]{36}$/.test(holder);
        const isKnown = magic === MAGIC && version === VERSION && isSane;
        if (isKnown) return new ProcessJournal(fd, mapping.buffer);
        mapping.unmap();
      }
    }
    if (fd !== undefined) close(fd);
    const fresh = memfd('porthole-process', BYTES);
    const mapping = fresh < 0 ? fresh : Mapping.map(fresh, 0, BYTES);
    if (typeof mapping === 'number') throw new Error(`making the process journal failed with errno ${-mapping}`);
    return new ProcessJournal(fresh, mapping.buffer);
  }

  /** Noted before it is used. */
  readonly nextSequence = (): number => {
    const next = this.#f64[2]! + 1;
    this.#f64[2] = next;
    return next;
  };
}
