/** What is answered, before it is written to anybody. */
import type { Writable } from 'node:stream';

export interface Request {
  readonly method: string;
  readonly names: readonly string[];
  readonly endsInSlash: boolean;
  readonly query: ReadonlyMap<string, string>;
  /** A header by its lower-case name; of one that was sent twice, both with a comma. */
  readonly header: (name: string) => string | undefined;
  /** The body, read to its end. `Rejection`: it is too long, does not come, or too much is held already. */
  readonly body: (maxBytes: number) => Promise<Uint8Array>;
  /** As of `Holding`: before an answer of so many bytes is made. Until its length is known these count. */
  readonly hold: (bytes: number) => void;
  /** The answer comes when something changes: nobody wants it who sends no more. */
  readonly waits: () => void;
  /** Nobody waits for the answer any more. */
  readonly signal: AbortSignal;
}

/** An answer that goes on. */
export interface StreamReply {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: undefined;
  /** Writes, and ends it, or has somebody else do both. */
  readonly stream: (outgoing: Writable) => void;
}

export interface Reply {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array;
}

const text = 'text/plain; charset=utf-8';

export const plain = (body: string | Uint8Array, headers?: Readonly<Record<string, string>>): Reply => ({
  status: 200,
  headers: { 'content-type': text, ...headers },
  body,
});

/** An answer that is no success. 404 never has a body: systemd's client takes one with a body for another failure. */
export const failure = (status: number, words = '', headers?: Readonly<Record<string, string>>): Reply => ({
  status,
  headers: { ...(words !== '' && status !== 404 && { 'content-type': text }), ...headers },
  ...(words !== '' && status !== 404 && { body: `${words}\n` }),
});

export const notFound: Reply = failure(404);

export const notAllowed = (allow: string): Reply => failure(405, `use ${allow}`, { allow });
