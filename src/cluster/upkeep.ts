/** What a manager does with the stores as a whole: a backup, other data keys, another key file. */
import { rmSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { OperationRecord } from '../records/index.ts';
import { type CallOptions, createKeyFile, StoreError, type StoreErrorCode } from '../store/index.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { type Kit, pause, put, remove } from './kit.ts';
import type { Operations } from './operations.ts';
import { ApiError, toApiError } from './problem.ts';

/** Stores that are kept on this machine. `Stores` is one; a store that others run has its own ways. */
export interface KeptStores {
  backup(file: string): Promise<void>;
  rotateDataKey(options: CallOptions & { readonly onProgress: (done: number, total: number) => void }): Promise<number>;
  changeKeyFile(keyFile: string): Promise<void>;
}

export interface UpkeepOptions {
  readonly stores: KeptStores;
  /** A path on the stores' disk, for a backup on its way out. Nobody else's. */
  readonly outgoingFile: string;
}

/** A backup, sealed as the stores are. Whoever takes it reads it to its end, or closes it. */
export interface OutgoingBackup extends AsyncDisposable {
  readonly sizeBytes: number;
  /** The next piece; undefined at the end. */
  read(): Promise<Uint8Array<ArrayBuffer> | undefined>;
}

/** Who rotates: one at a time. */
const rotationKey = 'rotation';
/** Between two writes of an operation's progress. */
const progressMs = 500;
const pieceBytes = 256 * 1024;
/** Between tries to keep the end of a rotation. */
const retryMs = 1_000;

const wrongKeyFile: ReadonlySet<StoreErrorCode> = new Set([
  'STORE_EXISTS',
  'STORE_FAILED',
  'STORE_KEY_MISSING',
  'STORE_KEY_EXPOSED',
  'STORE_KEY_INVALID',
]);

export class Upkeep {
  readonly #kit: Kit;
  readonly #operations: Operations;
  readonly #options: UpkeepOptions | undefined;
  /** Of this start of the manager. */
  readonly #runner: string;
  readonly #closing = new AbortController();
  #isBackingUp = false;
  #rotation: { readonly id: string; readonly cancel: AbortController; readonly end: Promise<void> } | undefined;

  constructor(kit: Kit, operations: Operations, options: UpkeepOptions | undefined) {
    this.#kit = kit;
    this.#operations = operations;
    this.#options = options;
    this.#runner = kit.randomBytes(8).toString('hex');
  }

  /** One at a time, until it is closed, so that backups cannot fill the disk. CONFLICT, FULL, UNSUPPORTED. */
  async backup(): Promise<OutgoingBackup> {
    const { stores, outgoingFile } = this.#kept();
    if (this.#isBackingUp)
      throw new ApiError('CONFLICT', 'another backup is on its way out; wait for its end, then ask again');
    this.#isBackingUp = true;
    let handle: FileHandle | undefined;
    try {
      rmSync(outgoingFile, { force: true });
      await stores.backup(outgoingFile);
      handle = await open(outgoingFile);
      // From here on it is gone whenever it is closed, however this process ends.
      rmSync(outgoingFile);
      const { size } = await handle.stat();
      return this.#outgoing(handle, size);
    } catch (error) {
      await handle?.close();
      this.#isBackingUp = false;
      throw error;
    }
  }

  #outgoing(handle: FileHandle, sizeBytes: number): OutgoingBackup {
    let closing: Promise<void> | undefined;
    const close = (): Promise<void> =>
      (closing ??= handle.close().finally(() => {
        this.#isBackingUp = false;
      }));
    return {
      sizeBytes,
      read: async () => {
        const { bytesRead, buffer } = await handle.read(new Uint8Array(pieceBytes));
        return bytesRead === 0 ? undefined : buffer.subarray(0, bytesRead);
      },
      [Symbol.asyncDispose]: close,
    };
  }

  /**
   * Begins to seal all anew by another data key; with a key file, the data keys are wrapped by that key first, which is made
   * where there is none. Resolves when the operation is in the store. CONFLICT, UNSUPPORTED.
   */
  async rotate(
    account: string,
    keyFile: string | undefined,
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const kept = this.#kept();
    const { operation, operations } = this.#operations.begin({
      account,
      kind: 'key.rotate',
      target: { name: keyFile === undefined ? 'data key' : 'key file and data key' },
      runner: this.#runner,
    });
    const done = await commit(
      {
        conditions: [{ key: rotationKey, exists: false }],
        operations: [...operations, put(rotationKey, { operation: operation.id })],
      },
      answer(operation),
    );
    if (!done) throw new ApiError('CONFLICT', 'the keys are being rotated already; wait for the end of that');
    const cancel = new AbortController();
    const end = this.#rotate(kept, operation, keyFile, cancel.signal).catch((error: unknown) => {
      this.#kit.log.error({ err: error, operation: operation.id }, 'rotating the keys failed to tell its end');
    });
    this.#rotation = { id: operation.id, cancel, end };
    return answer(operation);
  }

  async #rotate(
    { stores }: UpkeepOptions,
    operation: OperationRecord,
    keyFile: string | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    let told = 0;
    let telling: Promise<unknown> = Promise.resolve();
    let outcome: Partial<OperationRecord>;
    try {
      if (keyFile !== undefined) await this.#changeKeyFile(stores, keyFile);
      let rows = 0;
      const onProgress = (done: number, total: number): void => {
        rows = total;
        const now = this.#kit.wallMs();
        if (total === 0 || (now - told < progressMs && now >= told)) return;
        told = now;
        telling = this.#tell(telling, operation, { step: 'sealing anew', done, total });
        // A progress that could not be written is made up for by the end, whose failure is told.
        telling.catch(() => {});
      };
      const sealed = await stores.rotateDataKey({ signal, onProgress });
      outcome = {
        state: 'succeeded',
        step: `${sealed} values sealed anew`,
        done: rows,
        ...(rows > 0 && { total: rows }),
      };
    } catch (error) {
      const { code, message } = toApiError(error);
      if (code === 'INTERNAL' && !signal.aborted) this.#kit.log.error({ err: error }, 'rotating the keys failed');
      outcome = signal.aborted
        ? {
            state: 'cancelled',
            error: { code: 'CANCELLED', detail: 'it was cancelled; the next rotation does the rest' },
          }
        : { state: 'failed', error: { code, detail: message } };
    }
    await telling.catch(() => {});
    await this.#end(operation, outcome);
    this.#rotation = undefined;
  }

  /** Until it is kept, for nobody could rotate again before the next start; or until `close`, and `recover` tells it then. */
  async #end(operation: OperationRecord, outcome: Partial<OperationRecord>): Promise<void> {
    for (let told = false; ; told = true) {
      try {
        const { operations } = await this.#operations.change(operation, outcome);
        await this.#kit.region.commit({ operations: [...operations, remove(rotationKey)] });
        return;
      } catch (error) {
        if (this.#closing.signal.aborted) throw error;
        const words = 'the end of rotating the keys could not be kept; trying again';
        if (!told) this.#kit.log.error({ err: error, operation: operation.id }, words);
        await pause(retryMs, this.#closing.signal);
      }
    }
  }

  async #changeKeyFile(stores: KeptStores, keyFile: string): Promise<void> {
    try {
      try {
        await stores.changeKeyFile(keyFile);
      } catch (error) {
        if (!(error instanceof StoreError && error.code === 'STORE_KEY_MISSING')) throw error;
        createKeyFile(keyFile);
        await stores.changeKeyFile(keyFile);
      }
    } catch (error) {
      if (error instanceof StoreError && wrongKeyFile.has(error.code))
        throw new ApiError('BAD_REQUEST', error.message, {}, error);
      throw error;
    }
  }

  async #tell(before: Promise<unknown>, operation: OperationRecord, change: Partial<OperationRecord>): Promise<void> {
    await before;
    const { operations } = await this.#operations.change(operation, change);
    await this.#kit.region.commit({ operations });
  }

  /** Here, and still. */
  runs(operationId: string): boolean {
    return this.#rotation?.id === operationId;
  }

  cancel(operationId: string): void {
    if (this.runs(operationId)) this.#rotation?.cancel.abort();
  }

  /** After a start: tells the end of what the last one, or a backup, left half done. */
  async recover(): Promise<void> {
    if (this.#options !== undefined)
      for (const suffix of ['', '.partial']) rmSync(this.#options.outgoingFile + suffix, { force: true });
    const entry = await this.#kit.region.get(rotationKey);
    if (entry === undefined) return;
    const { operation: id } = JSON.parse(new TextDecoder().decode(entry.value)) as { readonly operation: string };
    const found = await this.#operations.find(id);
    const error = { code: 'UNAVAILABLE', detail: 'the manager stopped meanwhile; rotate again, which does the rest' };
    const change =
      found?.record.state === 'running'
        ? await this.#operations.change(found.record, { state: 'failed', error })
        : undefined;
    await this.#kit.region.commit({ operations: [...(change?.operations ?? []), remove(rotationKey)] });
  }

  /** Cancels what runs and waits for its end. */
  async close(): Promise<void> {
    this.#closing.abort();
    this.#rotation?.cancel.abort();
    await this.#rotation?.end;
  }

  #kept(): UpkeepOptions {
    if (this.#options === undefined)
      throw new ApiError(
        'UNSUPPORTED',
        'the stores are not kept on this machine: etcd backs up its own, with "etcdctl snapshot save", and "porthole store rotate" seals them anew',
      );
    return this.#options;
  }
}
