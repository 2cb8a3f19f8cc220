export type QemuErrorCode =
  /** A value of a machine's description breaks a rule; nothing was started. */
  | 'MACHINE_INVALID'
  /** A process could not be started, or ended before it was ready. */
  | 'START_FAILED'
  /** The lease of this host ran out before it was ready. */
  | 'LEASE_ENDED'
  /** QEMU did not answer on its monitor in time, or closed it. */
  | 'QMP_LOST'
  | 'QMP_TIMEOUT'
  /** What came over the monitor is no QMP. */
  | 'QMP_BROKEN'
  | 'DISK_FULL'
  | 'DISK_INVALID'
  | 'DISK_FAILED'
  | 'IMAGE_MISSING'
  | 'IMAGE_CHANGED'
  | 'IMAGE_REFUSED'
  | 'IMAGE_FAILED'
  /** More files at once than are taken. */
  | 'UPLOADS_MANY';

/** Messages say what was tried, quote the value, and say what to do. */
export class QemuError extends Error {
  readonly code: QemuErrorCode;

  constructor(code: QemuErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'QemuError';
    this.code = code;
  }
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
