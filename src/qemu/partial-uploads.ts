/**
 * Files that come in as many pieces as it takes: what is there of one stays when its connection breaks, and over a restart, and
 * its sender goes on at that offset. Who sends names it by an id that nobody can guess.
 */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream, readdirSync, rmSync, statSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { QemuError } from './error.ts';
import { unlessAborted } from './unless-aborted.ts';
import { appendAll, asUploadError, checkRoom, type UploadedFile, type Uploads } from './uploads.ts';

export interface Piece {
  readonly id: string;
  /** Of the whole file. */
  readonly sizeBytes: number;
  /** Where its bytes belong: how many are there. */
  readonly offset: number;
}

export interface PartialUploadOptions {
  readonly directory: string;
  readonly maxFileBytes: number;
  /** Where a file goes when it is whole. */
  readonly uploads: Pick<Uploads, 'keepFile' | 'find'>;
  readonly wallMs?: (() => number) | undefined;
}

export interface PartialFile {
  readonly id: string;
  readonly receivedBytes: number;
  readonly expiresAtMs: number;
}

const prefix = 'partial-';
const idPattern = /^up-[0-9a-f]{32}$/;
/** Files that come at one time. */
const mostFiles = 16;
/** How long one waits for more. */
const keepMs = 24 * 60 * 60_000;

interface Receiving {
  readonly cancel: AbortController;
  readonly end: Promise<unknown>;
}

export class PartialUploads {
  readonly #options: PartialUploadOptions;
  readonly #receiving = new Map<string, Receiving>();

  constructor(options: PartialUploadOptions) {
    this.#options = options;
  }

  /** What is there of it, or that it is whole. IMAGE_MISSING. */
  find(id: string): PartialFile | UploadedFile {
    const whole = this.#options.uploads.find(id);
    if (whole !== undefined) return whole;
    this.#forget();
    const stat = statSync(this.#pathOf(id), { throwIfNoEntry: false });
    if (stat !== undefined) return { id, receivedBytes: stat.size, expiresAtMs: stat.mtimeMs + keepMs };
    throw new QemuError(
      'IMAGE_MISSING',
      'the file was used, waited too long or never came; send it from its beginning',
    );
  }

  /**
   * Takes bytes from the offset on, as many as come: the rest may come later. Whoever sends the same file at the same time ends.
   * UPLOAD_OFFSET when others are there than those before the offset, IMAGE_REFUSED (nothing is kept), DISK_FULL, UPLOADS_MANY,
   * what the iteration throws.
   */
  async receive(
    piece: Piece,
    chunks: AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<PartialFile | UploadedFile> {
    const { id } = piece;
    for (let before = this.#receiving.get(id); before !== undefined; before = this.#receiving.get(id)) {
      before.cancel.abort(new QemuError('UPLOAD_OFFSET', 'the file is sent by another connection now'));
      await before.end;
    }
    const cancel = new AbortController();
    const ended = signal === undefined ? cancel.signal : AbortSignal.any([signal, cancel.signal]);
    const work = this.#receive(piece, chunks, ended);
    this.#receiving.set(id, { cancel, end: work.catch(() => {}) });
    try {
      return await work;
    } finally {
      this.#receiving.delete(id);
    }
  }

  async #receive(
    { id, sizeBytes, offset }: Piece,
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<PartialFile | UploadedFile> {
    const { directory, maxFileBytes, uploads } = this.#options;
    const whole = uploads.find(id);
    if (whole !== undefined && offset === whole.sizeBytes && sizeBytes === offset) return whole;
    this.#forget();
    const file = this.#pathOf(id);
    const there = whole?.sizeBytes ?? statSync(file, { throwIfNoEntry: false })?.size ?? 0;
    if (offset !== there || whole !== undefined)
      throw new QemuError('UPLOAD_OFFSET', `${there} bytes of the file are there; send those from there on`);
    if (there === 0 && this.#files().length >= mostFiles)
      throw new QemuError('UPLOADS_MANY', `${mostFiles} files are on their way; try again later`);
    checkRoom(directory, { sizeBytes, comingBytes: sizeBytes - there, maxFileBytes });
    try {
      await using handle = await open(file, 'a', 0o600);
      const hash = await hashOf(file, signal);
      const received = await write(handle, hash, { from: there, sizeBytes, chunks, signal });
      if (received < sizeBytes) return this.find(id);
      return await uploads.keepFile({ id, sizeBytes, digest: `sha256:${hash.digest('hex')}` }, file);
    } catch (error) {
      if (error instanceof QemuError && error.code === 'IMAGE_REFUSED') rmSync(file, { force: true });
      throw asUploadError(error);
    }
  }

  #files(): string[] {
    return readdirSync(this.#options.directory).filter((name) => name.startsWith(prefix));
  }

  /** Those that nobody went on with. */
  #forget(): void {
    const { directory, wallMs = Date.now } = this.#options;
    for (const name of this.#files()) {
      const stat = statSync(join(directory, name), { throwIfNoEntry: false });
      if (stat !== undefined && stat.mtimeMs + keepMs < wallMs()) rmSync(join(directory, name), { force: true });
    }
  }

  #pathOf(id: string): string {
    if (idPattern.test(id)) return join(this.#options.directory, prefix + id);
    throw new QemuError('IMAGE_MISSING', `"${id}" is no id of an upload, which is "up-" and 32 hex digits`);
  }
}

const hashOf = async (file: string, signal: AbortSignal): Promise<Hash> => {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file, { signal, highWaterMark: 1024 * 1024 }))
    hash.update(chunk as Buffer);
  return hash;
};

const write = async (
  handle: FileHandle,
  hash: Hash,
  {
    from,
    sizeBytes,
    chunks,
    signal,
  }: { from: number; sizeBytes: number; chunks: AsyncIterable<Uint8Array>; signal: AbortSignal },
): Promise<number> => {
  let bytes = from;
  const coming = chunks[Symbol.asyncIterator]();
  try {
    // A connection that is dead is not waited for.
    for (;;) {
      const { done, value: chunk } = await unlessAborted(coming.next(), signal);
      if (done === true) return bytes;
      bytes += chunk.length;
      if (bytes > sizeBytes)
        throw new QemuError('IMAGE_REFUSED', `the file was to have ${sizeBytes} bytes, and more came; send it again`);
      hash.update(chunk);
      await appendAll(handle, chunk);
    }
  } finally {
    coming.return?.().catch(() => {});
  }
};
