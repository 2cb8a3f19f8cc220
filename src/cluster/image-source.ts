/** Images of another region, as its managers give them. */
import type { IncomingMessage } from 'node:http';
import { json } from 'node:stream/consumers';
import { z } from 'zod';
import type { BlobBytes, HostErrorCode, ImageBytes, ImageDigest, ImageRef } from '../records/index.ts';
import type { Identity } from './identity.ts';
import type { Peers } from './peers.ts';
import { ApiError, type ProblemCode, toApiError } from './problem.ts';

/** A problem, as far as it is told on. */
const Said = z.object({ code: z.string(), detail: z.string() });

/** It may be there again in a moment. */
class AwayForNow extends Error {
  readonly code: HostErrorCode = 'HOST_UNAVAILABLE';
}

export class ImageSource implements ImageBytes {
  readonly #peers: Pick<Peers, 'fetch'>;
  readonly #region: string;
  readonly #identity: Identity;

  constructor(peers: Pick<Peers, 'fetch'>, region: string, account: string) {
    this.#peers = peers;
    this.#region = region;
    this.#identity = { account, role: 'admin', vms: undefined, key: undefined, uid: undefined, ended: undefined };
  }

  async blob(
    image: ImageDigest,
    digest: string,
    { offset, signal }: { readonly offset: number; readonly signal?: AbortSignal | undefined },
  ): Promise<BlobBytes> {
    const path = `${pathOf(image)}/blobs/${digest}?offset=${offset}`;
    try {
      const answer = await this.#ask('GET', path, signal);
      return { sizeBytes: offset + Number(answer.headers['content-length']), bytes: unbroken(answer) };
    } catch (error) {
      signal?.throwIfAborted();
      if (toApiError(error).code === 'UNAVAILABLE')
        throw new AwayForNow('the region does not answer', { cause: error });
      throw error;
    }
  }

  /** What that region says against it. */
  async remove(image: ImageRef, signal: AbortSignal): Promise<void> {
    try {
      (await this.#ask('DELETE', pathOf(image), signal)).resume();
    } catch (error) {
      // An earlier try got as far as that.
      if (toApiError(error).code !== 'NOT_FOUND') throw error;
    }
  }

  async #ask(method: string, path: string, signal = new AbortController().signal): Promise<IncomingMessage> {
    const answer = await this.#peers.fetch(this.#region, this.#identity, { method, path }, signal);
    if (answer.statusCode! < 300) return answer;
    const said = Said.safeParse(await json(answer).catch(() => undefined));
    if (said.success) throw new ApiError(said.data.code as ProblemCode, said.data.detail);
    // Of a proxy before it, or cut off: the region has said nothing.
    throw new ApiError('UNAVAILABLE', `no manager of the region "${this.#region}" answers: ${answer.statusCode}`);
  }
}

const pathOf = ({ name, version }: ImageRef): string => `/v1/images/${name}/${version}`;

async function* unbroken(answer: IncomingMessage): AsyncGenerator<Uint8Array, void> {
  try {
    yield* answer as AsyncIterable<Uint8Array>;
  } catch (error) {
    throw new AwayForNow('the connection to the region ended', { cause: error });
  }
}
