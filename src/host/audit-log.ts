/** The audit log of `porthole serve`: one JSON object a line, in the order of the decisions. */
import { closeSync, fchmodSync, fstatSync, openSync, writeSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { AuditRecord } from '../tree/index.ts';

interface AuditLogOptions {
  /** A file to append to (made with mode 0600), '-' for standard output, undefined: records are dropped. */
  readonly target: string | undefined;
  readonly writeStdout: (text: string) => boolean;
  /** Called when the log can't be written any more, and when it can again. */
  readonly onHealth: (writable: boolean, reason: string) => void;
}

/** JSON leaves some control characters as they are, guests choose names, and people read logs on terminals. */
const asLine = (record: AuditRecord): string =>
  JSON.stringify(record).replaceAll(
    /[\u007F-\u009F\u2028-\u202E\u2066-\u2069]/g,
    (character) => String.raw`\u` + character.codePointAt(0)!.toString(16).padStart(4, '0'),
  );

/** Opens the file at once: throws where that fails. A full disk later is told by `onHealth`, and by what `record` answers. */
export class AuditLog implements Disposable {
  readonly #options: AuditLogOptions;
  readonly #fd: number | undefined;
  #writable = true;
  /** What is left of a line that was written in part: the next record goes after it. */
  #rest: Uint8Array = new Uint8Array(0);

  constructor(options: AuditLogOptions) {
    this.#options = options;
    if (options.target === undefined || options.target === '-') return;
    try {
      this.#fd = openSync(options.target, 'a', 0o600);
      // A device or a pipe is everybody's: /dev/null must stay as it is.
      if (fstatSync(this.#fd).isFile()) fchmodSync(this.#fd, 0o600);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      const fix =
        code === 'ENOENT'
          ? `there is no directory "${dirname(resolve(options.target))}"; make it first`
          : `${code}; give a file that you may write`;
      throw new Error(`opening the audit log "${options.target}" failed: ${fix}`, { cause: error });
    }
  }

  get writable(): boolean {
    return this.#writable;
  }

  /** An `AuditSink`: false when the record could not be kept. */
  readonly record = (record: AuditRecord): boolean => this.recordAll([record]);

  /** The same for several, by one write(2): all are kept or, as far as the log can tell, none. */
  recordAll(records: readonly AuditRecord[]): boolean {
    if (this.#options.target === undefined) return true;
    const lines = records.map((record) => `${asLine(record)}\n`).join('');
    if (this.#fd === undefined) return this.#options.writeStdout(lines);
    return this.#append(this.#fd, lines);
  }

  #append(fd: number, lines: string): boolean {
    const bytes = new TextEncoder().encode(lines);
    try {
      while (this.#rest.length > 0) this.#rest = this.#rest.subarray(writeSync(fd, this.#rest));
      let written = 0;
      try {
        while (written < bytes.length) written += writeSync(fd, bytes, written);
      } catch (error) {
        if (written > 0) this.#rest = bytes.subarray(written);
        throw error;
      }
      this.#health(true, '');
      return true;
    } catch (error) {
      this.#health(false, (error as NodeJS.ErrnoException).code ?? String(error));
      return false;
    }
  }

  #health(writable: boolean, reason: string): void {
    if (writable === this.#writable) return;
    this.#writable = writable;
    this.#options.onHealth(writable, reason);
  }

  /** Tries whether a log that could not be written can be again. */
  probe(): void {
    if (this.#writable || this.#fd === undefined) return;
    try {
      while (this.#rest.length > 0) this.#rest = this.#rest.subarray(writeSync(this.#fd, this.#rest));
      writeSync(this.#fd, '\n');
      this.#health(true, '');
    } catch {
      // Still not.
    }
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
  }
}
