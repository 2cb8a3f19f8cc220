/** The near end of the store's worker: requests and their answers, and what changed, in order. */
import type { Worker } from 'node:worker_threads';
import { startThread } from '../parts/index.ts';
import { StoreError } from './error.ts';
import type { Answers, Opened, Other, SqliteFileOptions, StoreChanged, Write } from './sqlite-file.ts';
import type { Message, PlainError, Request } from './sqlite-worker.ts';

interface Waiting {
  readonly resolve: (value: Answers[keyof Answers]) => void;
  readonly reject: (error: unknown) => void;
}

const fromPlain = ({ code, message, oldestRevision }: PlainError): StoreError =>
  new StoreError(code, message, undefined, oldestRevision);

type AnswerTo<R extends Write | Other> = Answers[R['kind']];

export class WorkerLink {
  readonly #port: Worker;
  readonly #onChange: (changed: StoreChanged) => void;
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 1;
  /** Why nothing can be asked any more. */
  #ended: StoreError | undefined;

  private constructor(port: Worker, onChange: (changed: StoreChanged) => void) {
    this.#port = port;
    this.#onChange = onChange;
  }

  /** StoreError as `SqliteFile`. `onChange` is called before the promise of what changed it resolves. */
  static async open(
    options: SqliteFileOptions,
    onChange: (changed: StoreChanged) => void,
    onEnd: (error: StoreError) => void,
  ): Promise<{ readonly link: WorkerLink; readonly opened: Opened }> {
    const worker = startThread('sqlite-worker', { workerData: options });
    const link = new WorkerLink(worker, onChange);
    const { promise, resolve, reject } = Promise.withResolvers<Opened>();
    const end = (error: StoreError): void => {
      reject(error);
      if (link.#end(error)) onEnd(error);
    };
    worker.on('message', (message: Message) => {
      if (message.kind === 'opened') resolve(message.opened);
      else if (message.kind === 'failed') end(fromPlain(message.error));
      else link.#receive(message);
    });
    worker.on('error', (error) => {
      const text = `the store's thread failed; start again, and read back what was not acknowledged: ${String(error)}`;
      end(new StoreError('STORE_FAILED', text, error));
    });
    worker.on('exit', () => end(new StoreError('STORE_CLOSED', 'the store is closed')));
    return { link, opened: await promise };
  }

  #receive({ changes, replies }: Message & { readonly kind: 'replies' }): void {
    for (const changed of changes) this.#onChange(changed);
    for (const reply of replies) {
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if ('error' in reply) waiting?.reject(fromPlain(reply.error));
      else waiting?.resolve(reply.value);
    }
  }

  /** @returns whether it had not ended before */
  #end(error: StoreError): boolean {
    if (this.#ended) return false;
    this.#ended = error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    return true;
  }

  /** The reason of an aborted signal; the request is not taken back. STORE_CLOSED. */
  async ask<R extends Write | Other>(request: R, signal?: AbortSignal): Promise<AnswerTo<R>> {
    signal?.throwIfAborted();
    const answer = this.#send(request);
    if (signal === undefined) return (await answer) as AnswerTo<R>;
    const aborted = Promise.withResolvers<never>();
    const abort = (): void => aborted.reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    try {
      return (await Promise.race([answer, aborted.promise])) as AnswerTo<R>;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  #send(request: Write | Other | { readonly kind: 'close' }): Promise<Answers[keyof Answers]> {
    if (this.#ended) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<Answers[keyof Answers]>();
    this.#waiting.set(id, { resolve, reject });
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a worker, not a window
    this.#port.postMessage({ ...request, id } satisfies Request);
    return promise;
  }

  /** What was asked before is answered first. */
  async close(): Promise<void> {
    if (this.#ended) return;
    // A worker that exits may deliver its last answer and its end in the same turn.
    const exited = new Promise((resolve) => this.#port.once('exit', resolve));
    await this.#send({ kind: 'close' });
    this.#end(new StoreError('STORE_CLOSED', 'the store is closed'));
    await exited;
  }
}
