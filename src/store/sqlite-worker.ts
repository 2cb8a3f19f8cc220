/**
 * The thread that owns the SQLite file. What arrives while it waits for the disk becomes the next group: one transaction
 * of SQLite, one sync. Watches and reads of that group then see it whole.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { StoreError, type StoreErrorCode } from './error.ts';
import {
  type Answers,
  type Opened,
  type Other,
  type Result,
  SqliteFile,
  type SqliteFileOptions,
  type StoreChanged,
  type Write,
} from './sqlite-file.ts';

export type Request = (Write | Other | { readonly kind: 'close' }) & { readonly id: number };

export interface PlainError {
  readonly code: StoreErrorCode;
  readonly message: string;
  readonly oldestRevision: number | undefined;
}

export type Reply =
  | { readonly id: number; readonly value: Answers[keyof Answers] }
  | { readonly id: number; readonly error: PlainError };

/** First `opened` or `failed`, then any number of `replies`; changes come before the replies that acknowledge them. */
export type Message =
  | { readonly kind: 'opened'; readonly opened: Opened }
  | { readonly kind: 'failed'; readonly error: PlainError }
  | { readonly kind: 'replies'; readonly changes: readonly StoreChanged[]; readonly replies: readonly Reply[] };

/** Bounds how long the first of a group waits for the last. */
const groupSize = 256;

const plain = ({ code, message, oldestRevision }: StoreError): PlainError => ({ code, message, oldestRevision });
const reply = (id: number, result: Result): Reply =>
  'error' in result ? { id, error: plain(result.error) } : { id, value: result.value };

const isWrite = (request: Request): request is Write & { readonly id: number } =>
  request.kind === 'commit' || request.kind === 'grant' || request.kind === 'revoke';

const serve = (port: MessagePort, file: SqliteFile): void => {
  const handle = (requests: readonly Request[]): void => {
    const writes = requests.filter(isWrite);
    if (writes.length > 0) {
      const { results, changes } = file.writeGroup(writes);
      const replies = results.map((result, index) => reply(writes[index]!.id, result));
      port.postMessage({ kind: 'replies', changes, replies } satisfies Message);
    }
    for (const request of requests) {
      if (isWrite(request)) continue;
      if (request.kind === 'close') {
        file.close();
        port.postMessage({
          kind: 'replies',
          changes: [],
          replies: [{ id: request.id, value: undefined }],
        } satisfies Message);
        port.close();
        return;
      }
      const replies = [reply(request.id, file.answer(request))];
      port.postMessage({ kind: 'replies', changes: [], replies } satisfies Message);
    }
  };
  port.on('message', (first: Request) => {
    const group = [first];
    for (;;) {
      const received = group.length < groupSize ? receiveMessageOnPort(port) : undefined;
      if (received === undefined) break;
      group.push(received.message as Request);
    }
    handle(group);
  });
};

const port = parentPort!;
try {
  const file = new SqliteFile(workerData as SqliteFileOptions);
  port.postMessage({ kind: 'opened', opened: file.opened() } satisfies Message);
  serve(port, file);
} catch (error) {
  if (!(error instanceof StoreError)) throw error;
  port.postMessage({ kind: 'failed', error: plain(error) } satisfies Message);
}
