/** Checks what callers ask against the rules of `Store`, the same for every engine, and copies it into plain bytes. */
import { Buffer } from 'node:buffer';
import { StoreError } from './error.ts';
import { keyBytes } from './keys.ts';
import { type Condition, type Key, type KeyRange, limits, type RangeOptions, type Transaction } from './store.ts';

type Bytes = Uint8Array<ArrayBuffer>;

export type CheckedCondition =
  | { readonly key: Bytes; readonly modRevision: number }
  | { readonly key: Bytes; readonly exists: boolean };

export type CheckedOperation =
  | { readonly type: 'put'; readonly key: Bytes; readonly value: Bytes; readonly leaseId: number | undefined }
  | { readonly type: 'delete'; readonly key: Bytes };

export interface CheckedTransaction {
  readonly conditions: readonly CheckedCondition[];
  readonly operations: readonly CheckedOperation[];
}

export interface CheckedRange {
  readonly start: Bytes;
  readonly end: Bytes | undefined;
}

const invalid = (message: string): StoreError => new StoreError('STORE_INVALID', message);

const checkKey = (key: Key): Bytes => {
  if (typeof key === 'string' && !key.isWellFormed()) throw invalid(`the key ${JSON.stringify(key)} is no valid text`);
  const bytes = keyBytes(key);
  if (bytes.length === 0) throw invalid('a key must not be empty');
  if (bytes.length > limits.keyBytes)
    throw invalid(`a key of ${bytes.length} bytes is too long: at most ${limits.keyBytes} are allowed`);
  return bytes;
};

const checkCondition = (condition: Condition): CheckedCondition => {
  const key = checkKey(condition.key);
  if ('exists' in condition) return { key, exists: condition.exists };
  checkWhole(condition.modRevision, 'a modRevision', 1);
  return { key, modRevision: condition.modRevision };
};

/** STORE_INVALID. */
export const checkTransaction = (
  { conditions = [], operations }: Transaction,
  most: { readonly operations: number; readonly transactionBytes: number } = limits,
): CheckedTransaction => {
  const parts = conditions.length + operations.length;
  if (parts > most.operations)
    throw invalid(`a transaction of ${parts} operations and conditions is too long: split it by ${most.operations}`);
  let bytes = 0;
  const checkedConditions = conditions.map((condition) => {
    const checked = checkCondition(condition);
    bytes += checked.key.length;
    return checked;
  });
  const seen = new Set<string>();
  const checkedOperations = operations.map((operation): CheckedOperation => {
    const key = checkKey(operation.key);
    const name = Buffer.from(key).toString('latin1');
    if (seen.has(name)) throw invalid(`the key ${JSON.stringify(name)} occurs twice in one transaction`);
    seen.add(name);
    bytes += key.length;
    if (operation.type === 'delete') return { type: 'delete', key };
    if (!(operation.value instanceof Uint8Array)) throw invalid(`the value of ${JSON.stringify(name)} is not bytes`);
    bytes += operation.value.length;
    if (bytes > most.transactionBytes)
      throw invalid(`a transaction of more than ${most.transactionBytes} bytes is too large: split it`);
    return { type: 'put', key, value: new Uint8Array(operation.value), leaseId: operation.leaseId };
  });
  return { conditions: checkedConditions, operations: checkedOperations };
};

/** The start may be empty: before every key. */
export const checkRange = ({ start, end }: KeyRange): CheckedRange => ({
  start: keyBytes(start),
  end: end === undefined ? undefined : keyBytes(end),
});

/** STORE_INVALID unless it is a whole number ≥ `minimum`. */
export const checkWhole = (value: number, what: string, minimum: number, maximum = Number.MAX_SAFE_INTEGER): void => {
  if (!Number.isSafeInteger(value) || value < minimum || value > maximum)
    throw invalid(`${what} must be a whole number from ${minimum} to ${maximum}, not ${value}`);
};

export const checkRangeOptions = ({ revision, limit = limits.pageEntries }: RangeOptions) => {
  if (revision !== undefined) checkWhole(revision, 'a revision', 0);
  checkWhole(limit, 'a limit', 1, limits.pageEntries);
  return { revision, limit };
};
