export type StoreErrorCode =
  | 'STORE_LOCKED'
  | 'STORE_DAMAGED'
  | 'STORE_FOREIGN'
  | 'STORE_TOO_NEW'
  | 'STORE_MISSING'
  | 'STORE_EXISTS'
  | 'STORE_EXPOSED'
  | 'STORE_FULL'
  | 'STORE_CLOSED'
  /** The engine gave no answer, or none that says what became of a change: read back. Later it may answer again. */
  | 'STORE_UNAVAILABLE'
  /** The engine said no, and so nothing happened; who runs it can mend that, as the message says. */
  | 'STORE_REFUSED'
  /** A request that breaks a rule of `Store`; it had no effect and never will have one. */
  | 'STORE_INVALID'
  /** It concerns what whoever asks has nothing to do with; it had no effect. */
  | 'STORE_DENIED'
  /** No manager through which the store is asked can be reached at present; a change had no effect and never will have one. */
  | 'STORE_CUT_OFF'
  /** `oldestRevision` says from where on there still is history. */
  | 'STORE_COMPACTED'
  | 'STORE_LEASE_GONE'
  | 'STORE_KEY_MISSING'
  | 'STORE_KEY_EXPOSED'
  | 'STORE_KEY_INVALID'
  | 'STORE_KEY_WRONG'
  | 'STORE_FAILED';

/** Messages say what was tried, on which file, and what to do. */
export class StoreError extends Error {
  readonly code: StoreErrorCode;
  /** With STORE_COMPACTED: the oldest revision that can still be asked for. */
  readonly oldestRevision: number | undefined;

  constructor(code: StoreErrorCode, message: string, cause?: unknown, oldestRevision?: number) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StoreError';
    this.code = code;
    this.oldestRevision = oldestRevision;
  }
}

/** Primary result codes: https://sqlite.org/rescode.html */
export const sqliteCodes = {
  busy: 5,
  locked: 6,
  ioError: 10,
  corrupt: 11,
  full: 13,
  cantOpen: 14,
  notADatabase: 26,
} as const;

/** SQLITE_IOERR_SHMSIZE: no room for the index of the write-ahead log, so a full disk and not a broken one. */
const ioErrorShmSize = 4874;

/** The primary code of an error of SQLite; −1 for any other. */
export const sqliteCode = (error: unknown): number => {
  const code = (error as { readonly errcode?: unknown } | undefined)?.errcode;
  if (code === ioErrorShmSize) return sqliteCodes.full;
  return typeof code === 'number' ? code & 0xff : -1;
};

export const damaged = (file: string, cause?: unknown): StoreError =>
  new StoreError(
    'STORE_DAMAGED',
    `"${file}" is damaged; restore it from a backup, or move it away to start anew`,
    cause,
  );

/** @param action what was being done, as "opening" */
export const toStoreError = (error: unknown, action: string, file: string): StoreError => {
  if (error instanceof StoreError) return error;
  switch (sqliteCode(error)) {
    case sqliteCodes.busy:
    case sqliteCodes.locked:
      return new StoreError(
        'STORE_LOCKED',
        `another process uses "${file}"; stop it, or give another directory`,
        error,
      );
    case sqliteCodes.corrupt:
    case sqliteCodes.notADatabase:
      return damaged(file, error);
    case sqliteCodes.full:
      return new StoreError('STORE_FULL', `${action} "${file}" failed: the disk is full`, error);
    default:
  }
  if (codeOf(error) === 'ENOSPC')
    return new StoreError('STORE_FULL', `${action} "${file}" failed: the disk is full`, error);
  if (codeOf(error) === 'ENOENT')
    return new StoreError('STORE_MISSING', `there is no state in "${file}"; is the directory right?`, error);
  return new StoreError(
    'STORE_FAILED',
    `${action} "${file}" failed: ${error instanceof Error ? error.message : String(error)}`,
    error,
  );
};

/** The `code` of a system error; its text for any other. */
export const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error);
