/**
 * Uploads that came with an `Idempotency-Key`. What a repeat is told is kept as long as the file is, in memory: neither outlives
 * the daemon. The bytes of a repeat are not asked for.
 */
import type { Answer, OnceRequest } from './idempotency.ts';
import { busy, mismatch, replayed } from './idempotency.ts';

interface Received {
  readonly answer: Answer;
  /** When the file goes. */
  readonly expiresAtMs: number;
}

export class KeyedUploads {
  readonly #wallMs: () => number;
  /** `received` undefined: it is coming. */
  readonly #known = new Map<string, { readonly sizeBytes: number; received: Received | undefined }>();

  constructor(wallMs: () => number) {
    this.#wallMs = wallMs;
  }

  /** IDEMPOTENCY_BUSY, IDEMPOTENCY_MISMATCH, and what `receive` throws: then it may be sent again. */
  async run(
    { account, key }: Pick<OnceRequest, 'account' | 'key'>,
    sizeBytes: number,
    receive: () => Promise<Received>,
  ): Promise<Answer> {
    if (key === undefined) return (await receive()).answer;
    this.#forget();
    const id = JSON.stringify([account, key]);
    const known = this.#known.get(id);
    if (known !== undefined) {
      if (known.sizeBytes !== sizeBytes) throw mismatch();
      if (known.received === undefined) throw busy();
      return replayed(known.received.answer);
    }
    const coming = { sizeBytes, received: undefined as Received | undefined };
    this.#known.set(id, coming);
    try {
      coming.received = await receive();
      return coming.received.answer;
    } finally {
      if (coming.received === undefined) this.#known.delete(id);
    }
  }

  #forget(): void {
    const now = this.#wallMs();
    for (const [id, { received }] of this.#known)
      if (received !== undefined && received.expiresAtMs <= now) this.#known.delete(id);
  }
}
