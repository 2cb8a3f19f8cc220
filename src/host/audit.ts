/** Where the audit records of one VM go: its log, and the ring by which its device process hands records over. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { AuditRecord } from '../tree/index.ts';
import { AuditLog } from './audit-log.ts';
import { AuditRingReader } from './audit-ring-reader.ts';

interface AuditOptions {
  readonly vm: string;
  /** A file, '-' for standard output, undefined: no records are kept, and there is no ring. */
  readonly target: string | undefined;
  readonly writeStdout: (text: string) => boolean;
  /** What people should know. */
  readonly onTrouble: (what: string) => void;
  /** The device process wrote into the ring what it must not. */
  readonly onLie: (reason: string) => void;
}

const PROBE_MS = 1_000;

/** Opens the log at once, and throws where that fails. */
export class Audit implements Disposable {
  readonly #options: AuditOptions;
  readonly #log: AuditLog;
  #ring: AuditRingReader | undefined;
  #ringPath: string | undefined;
  /** Of the ring, where it need not outlive this process. */
  #privateDirectory: string | undefined;
  readonly #probe: NodeJS.Timeout;

  constructor(options: AuditOptions) {
    this.#options = options;
    this.#log = new AuditLog({
      target: options.target,
      writeStdout: options.writeStdout,
      onHealth: (writable, reason) => this.#tellHealth(writable, reason),
    });
    this.#probe = setInterval(() => this.#tryAgain(), PROBE_MS);
  }

  /**
   * Opens or makes the ring in a directory, and takes what is in it; in a private directory where there is none. Throws
   * where that fails. The caller made sure that nobody else uses the directory.
   */
  openRing(directory: string | undefined): void {
    const { target, vm, onTrouble, onLie } = this.#options;
    if (target === undefined) return;
    if (directory === undefined) this.#privateDirectory = mkdtempSync(join(tmpdir(), 'porthole-audit-ring-'));
    this.#ringPath = resolve(directory ?? this.#privateDirectory!, 'audit.ring');
    this.#ring = new AuditRingReader({ path: this.#ringPath, vm, log: this.#log, onTrouble, onLie });
    this.#ring.drain();
  }

  /** For the device process; undefined: it need not record anything. */
  get ringPath(): string | undefined {
    return this.#ringPath;
  }

  /** An `AuditSink` for what is decided here. What a device process recorded before goes first. */
  readonly record = (record: AuditRecord): boolean => (this.#ring?.drain() ?? true) && this.#log.record(record);

  /** The device process says that there are records. */
  doorbell(): void {
    this.#ring?.doorbell();
  }

  /** Takes what a device process left that ended. */
  drain(): void {
    this.#ring?.drain();
  }

  /** Makes the ring ready for the next device process. */
  renew(): void {
    this.#ring?.renew();
  }

  /** Opens the log by its name again, where it was moved away. The old one stays in use where that fails. */
  reopen(): void {
    this.#ring?.drain();
    try {
      this.#log.reopen();
    } catch (error) {
      this.#options.onTrouble(`${(error as Error).message}; records go where they went before`);
      return;
    }
    this.#ring?.logReopened();
    this.#tryAgain();
  }

  #tellHealth(writable: boolean, reason: string): void {
    this.#ring?.setUnwritable(!writable);
    this.#options.onTrouble(
      writable
        ? 'the audit log can be written again'
        : `the audit log cannot be written (${reason}): what must be recorded is refused until it can`,
    );
  }

  #tryAgain(): void {
    if (this.#ring !== undefined && this.#ring.waitingBytes > 0) this.#ring.drain();
    else this.#log.probe();
  }

  /** When the last device process has ended. */
  [Symbol.dispose](): void {
    clearInterval(this.#probe);
    const ring = this.#ring;
    if (ring !== undefined && !ring.drain()) {
      const fate =
        this.#privateDirectory === undefined
          ? `stay in "${this.#ringPath}" for the next start`
          : 'are lost, because there is no --state to keep them in';
      this.#options.onTrouble(`records that the audit log does not take ${fate}`);
    }
    ring?.[Symbol.dispose]();
    this.#log[Symbol.dispose]();
    if (this.#privateDirectory !== undefined) rmSync(this.#privateDirectory, { recursive: true, force: true });
  }
}
