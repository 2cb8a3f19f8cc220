/** The audit log of `porthole serve`: one JSON object a line. */
import { closeSync, constants, fchmodSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { AuditRecord } from '../tree/index.ts';
import { auditLine } from './audit-line.ts';

interface AuditLogOptions {
  /** A file to append to (made with mode 0600), '-' for standard output, undefined: records are dropped. */
  readonly target: string | undefined;
  readonly writeStdout: (text: string) => boolean;
  /** Called when the log can't be written any more, and when it can again. */
  readonly onHealth: (writable: boolean, reason: string) => void;
}

/** Where the next line begins. */
export interface LogPlace {
  readonly device: number;
  readonly inode: number;
  readonly offset: number;
}

const LINE_FEED = 0x0a;
/** Never waits: a pipe that nobody reads would stop the whole daemon, its signals too. */
const OPEN_FLAGS = constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NONBLOCK;

/** Opens the file at once: throws where that fails. A full disk later is told by `onHealth`, and by what the writing answers. */
export class AuditLog implements Disposable {
  readonly #options: AuditLogOptions;
  #fd: number | undefined;
  /** A pipe, a terminal or a device has no places. */
  #isFile = false;
  #writable = true;
  /** The file ends within a line. */
  #isWithinLine = false;
  /** What is left of a record's line that was written in part: all else goes after it. */
  #rest: Uint8Array = new Uint8Array(0);

  constructor(options: AuditLogOptions) {
    this.#options = options;
    if (options.target !== undefined && options.target !== '-') this.#open(options.target);
  }

  get writable(): boolean {
    return this.#writable;
  }

  /** Opens the file of that name anew, and goes on with the old one where that fails: then it throws. */
  reopen(): void {
    const { target } = this.#options;
    if (target === undefined || target === '-') return;
    const old = this.#fd!;
    this.#open(target);
    closeSync(old);
  }

  #open(target: string): void {
    let fd: number | undefined;
    try {
      fd = openSync(target, OPEN_FLAGS, 0o600);
      const stat = fstatSync(fd);
      // A device or a pipe is everybody's: /dev/null must stay as it is.
      if (stat.isFile()) fchmodSync(fd, 0o600);
      this.#isFile = stat.isFile();
      const last = stat.isFile() && stat.size > 0 ? readAgain(fd, stat.size - 1, 1)[0] : undefined;
      this.#isWithinLine = last !== undefined && last !== LINE_FEED;
      this.#rest = new Uint8Array(0);
      this.#fd = fd;
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      const { code } = error as NodeJS.ErrnoException;
      const fix =
        code === 'ENOENT'
          ? `there is no directory "${dirname(resolve(target))}"; make it first`
          : code === 'ENXIO'
            ? 'nobody reads this pipe; start its reader first'
            : `${code}; give a file that you may write`;
      throw new Error(`opening the audit log "${target}" failed: ${fix}`, { cause: error });
    }
  }

  /** An `AuditSink`: false when the record could not be kept. */
  readonly record = (record: AuditRecord): boolean => {
    const line = new TextEncoder().encode(auditLine(record));
    const written = this.write(line);
    if (written > 0) this.#rest = line.subarray(written);
    return written === line.length;
  };

  /**
   * Appends lines; how many of the bytes are in the log now. Where that is fewer than all, the log is unwritable.
   * `isRest`: they begin with the rest of the line of which the last call wrote a part.
   */
  write(lines: Uint8Array, isRest = false): number {
    if (lines.length === 0 || this.#options.target === undefined) return lines.length;
    if (this.#fd === undefined) {
      const taken = this.#options.writeStdout(new TextDecoder().decode(lines));
      return taken ? lines.length : 0;
    }
    let written = 0;
    try {
      while (this.#rest.length > 0) this.#rest = this.#rest.subarray(writeSync(this.#fd, this.#rest));
      // Half a line of somebody who was killed.
      if (this.#isWithinLine && !isRest) writeSync(this.#fd, '\n');
      this.#isWithinLine = false;
      while (written < lines.length) written += writeSync(this.#fd, lines, written);
    } catch (error) {
      this.#health(false, (error as NodeJS.ErrnoException).code ?? String(error));
      return written;
    }
    this.#health(true, '');
    return written;
  }

  /** Where the next byte goes; undefined when the log is no file. */
  place(): LogPlace | undefined {
    if (this.#fd === undefined || !this.#isFile) return undefined;
    const { dev, ino, size } = fstatSync(this.#fd);
    return { device: dev, inode: ino, offset: size };
  }

  /** What the log has from a place on, at most `bytes`; nothing when that place is in another file. */
  readFrom(place: LogPlace, bytes: number): Uint8Array {
    const here = this.place();
    if (here === undefined || here.device !== place.device || here.inode !== place.inode) return new Uint8Array(0);
    return readAgain(this.#fd!, place.offset, Math.max(0, Math.min(bytes, here.offset - place.offset)));
  }

  #health(writable: boolean, reason: string): void {
    if (writable === this.#writable) return;
    this.#writable = writable;
    this.#options.onHealth(writable, reason);
  }

  /** Tries whether a log that could not be written can be again; leaves an empty line in it where it can. */
  probe(): void {
    if (!this.#writable) this.write(Uint8Array.of(LINE_FEED));
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** What a file that is open for writing has at a place; less, or nothing, where it can't be read. */
const readAgain = (fd: number, offset: number, bytes: number): Uint8Array => {
  const found = new Uint8Array(bytes);
  let filled = 0;
  try {
    const again = openSync(`/proc/self/fd/${fd}`, 'r');
    try {
      while (filled < bytes) {
        const got = readSync(again, found, filled, bytes - filled, offset + filled);
        if (got === 0) break;
        filled += got;
      }
    } finally {
      closeSync(again);
    }
  } catch {
    // Then it is not known what is there.
  }
  return found.subarray(0, filled);
};
