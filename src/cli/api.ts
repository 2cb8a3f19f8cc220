/** The API as commands ask it: what the client of `cluster` does, under one signal, and quick to say that nobody is there. */
import { connect as connectSocket } from 'node:net';
import {
  Client,
  ClientError,
  type ClientTarget,
  ConnectionError,
  type Input,
  type LongBody,
  type OperationId,
  type ResultOf,
  type StreamEvent,
} from '../cluster/client/index.ts';
import { unreachable } from './unreachable.ts';
import { UsageError } from './usage-error.ts';
import { type Address, addressText, type Where } from './where.ts';

type Asked<K extends OperationId> = Omit<Input<K>, 'signal'>;
type Answer = Awaited<ReturnType<Client['raw']>>;

interface StreamAsked {
  readonly lastEventId?: string | undefined;
  /** Told when the connection was lost, and when there is one again. */
  readonly onBreak?: ((isBack: boolean) => void) | undefined;
}

export class Api {
  readonly #where: Where;
  readonly #signal: AbortSignal;
  #isThere = false;

  /** @param signal ends every request and stream */
  constructor(where: Where, signal: AbortSignal) {
    this.#where = where;
    this.#signal = signal;
  }

  /** The same API under another signal. */
  under(signal: AbortSignal): Api {
    return new Api(this.#where, signal);
  }

  /** What the operation answers. Throws `ClientError`, `Unreachable`, or the reason of the signal. */
  async call<K extends OperationId>(operation: K, asked: Asked<K> = {}): Promise<ResultOf<K>> {
    const { bytes } = await this.raw(operation, asked);
    return (bytes.length === 0 ? undefined : JSON.parse(bytes.toString())) as ResultOf<K>;
  }

  /** As `call`, the answer as it came. */
  raw<K extends OperationId>(operation: K, asked: Asked<K> = {}): Promise<Answer> {
    return this.#reached(async () => {
      using client = new Client(targetOf(this.#where), { region: this.#where.region });
      return await client.raw(operation, { ...asked, signal: this.#signal } as Input<K>);
    });
  }

  /** An answer of many bytes, as they come. `each` is awaited for every piece; throws when fewer come than were told. */
  download<K extends OperationId>(
    operation: K,
    { each, ...asked }: Asked<K> & { readonly each: (chunk: Uint8Array, sizeBytes: number) => Promise<void> },
  ): Promise<void> {
    return this.#reached(async () => {
      using client = new Client(targetOf(this.#where), { region: this.#where.region });
      const answer = await client.download(operation, { ...asked, signal: this.#signal } as unknown as Input<K>);
      for await (const chunk of answer.chunks) await each(chunk, answer.sizeBytes);
    });
  }

  /** Sends bytes of a file as they are read; they are not sent again. */
  upload(body: LongBody, asked: Asked<'resumeUpload'>): Promise<ResultOf<'resumeUpload'>> {
    return this.#reached(async () => {
      using client = new Client(targetOf(this.#where), { region: this.#where.region });
      const input = { ...asked, signal: this.#signal } as Input<'resumeUpload'>;
      return await client.upload('resumeUpload', body, input);
    });
  }

  /** The pages of a list, one after another. */
  async *pages<K extends OperationId>(
    operation: K,
    query: NonNullable<Input<K>['query']>,
  ): AsyncGenerator<ResultOf<K>, void, undefined> {
    let cursor: string | undefined;
    do {
      const page: unknown = await this.call(operation, { query: { ...query, cursor } } as unknown as Asked<K>);
      yield page as Awaited<ResultOf<K>>;
      cursor = (page as { readonly next?: string }).next;
    } while (cursor !== undefined);
  }

  /**
   * Events, none lost and none twice however long the server is away. Resolves when the stream has begun; throws then, or in
   * the iteration, what the server says of it. Leaving the iteration ends the stream.
   */
  stream<K extends OperationId>(
    operation: K,
    { onBreak, ...asked }: Asked<K> & StreamAsked,
  ): Promise<AsyncIterable<StreamEvent>> {
    return this.#reached(async () => {
      const left = new AbortController();
      const begun = Promise.withResolvers<void>();
      const client = new Client(targetOf(this.#where), {
        region: this.#where.region,
        patienceMs: Number.POSITIVE_INFINITY,
      });
      let isBegun = false;
      const events = client.events(operation, {
        ...asked,
        signal: AbortSignal.any([this.#signal, left.signal]),
        onConnection: (isThere: boolean) => {
          if (isBegun) onBreak?.(isThere);
          else if (isThere) begun.resolve();
          isBegun ||= isThere;
        },
      } as unknown as Input<K>);
      const first = events.next();
      // Whoever leaves before the first event has ended it.
      first.catch(() => {});
      await Promise.race([begun.promise, first]);
      return (async function* () {
        try {
          for (let next = await first; next.done !== true; next = await events.next()) yield next.value;
        } finally {
          left.abort();
          client[Symbol.dispose]();
        }
      })();
    });
  }

  /** One that is not there at all is told at once; one that goes away later is waited for. */
  async #reached<T>(work: () => Promise<T>): Promise<T> {
    const { address } = this.#where;
    if (!this.#isThere) {
      await probe(address, this.#signal);
      this.#isThere = true;
    }
    try {
      return await work();
    } catch (error) {
      throw error instanceof ConnectionError ? unreachable(address, error.cause) : error;
    }
  }
}

/** The same refusal in other words. */
export const reworded = ({ status, problem }: ClientError, detail: string): ClientError =>
  new ClientError(status, problem && { ...problem, detail });

/** Whether it answers connections. Throws `Unreachable`. */
const probe = (address: Address, signal: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const socket =
      address.kind === 'unix' ? connectSocket(address.path) : connectSocket(portOf(address.url), hostOf(address.url));
    const end = (settle: () => void): void => {
      signal.removeEventListener('abort', abort);
      socket.destroy();
      settle();
    };
    const abort = (): void => end(() => reject(signal.reason as Error));
    signal.addEventListener('abort', abort, { once: true });
    socket.once('connect', () => end(resolve));
    socket.on('error', (error) => end(() => reject(unreachable(address, error))));
  });

const portOf = ({ port, protocol }: URL): number => Number(port || (protocol === 'https:' ? 443 : 80));
const hostOf = ({ hostname }: URL): string => hostname.replace(/^\[|\]$/g, '');

const targetOf = ({ address, key, ca }: Where): ClientTarget => {
  if (address.kind === 'unix') return { socketPath: address.path };
  if (key === undefined)
    throw new UsageError(
      `"${addressText(address)}" needs a key: name its file in PORTHOLE_KEY_FILE, or put it into the configuration; "porthole key create" on the host makes one`,
    );
  return { url: address.url.origin, key, ca };
};
