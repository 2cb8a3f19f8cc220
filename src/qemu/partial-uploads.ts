/**
 * Files that come in as many pieces as it takes: what is there of one stays when its connection breaks, and over a restart, and
 * its sender goes on at that offset. Who sends names it by an id that nobody can guess, and until it is whole it is theirs:
 * that id of another owner is another file.
 */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream, readdirSync, rmSync, statSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { QemuError } from './error.ts';
import { unlessAborted } from './unless-aborted.ts';
import { appendAll, asUploadError, type UploadedFile, type Uploads } from './uploads.ts';

export interface Piece {
  readonly id: string;
  /** Of the whole file. */
  readonly sizeBytes: number;
  /** Where its bytes belong: how many are there. */
  readonly offset: number;
}

export interface PartialUploadOptions {
  readonly directory: string;
  /** Where a file goes when it is whole, and what knows how much may come. */
  readonly uploads: Pick<Uploads, 'keepFile' | 'find' | 'checkCount' | 'expect' | 'isComing'>;
  readonly wallMs?: (() => number) | undefined;
}

export interface PartialFile {
  readonly id: string;
  readonly receivedBytes: number;
  readonly expiresAtMs: number;
}

const prefix = 'partial-';
const idPattern = /^up-[0-9a-f]{32}$/;
/** How long one waits for more. */
const keepMs = 24 * 60 * 60_000;

/** SHA-256 of as many bytes of a file. */
interface Hashed {
  readonly hash: Hash;
  bytes: number;
}

interface Receiving {
  readonly cancel: AbortController;
  readonly end: Promise<unknown>;
}

export class PartialUploads {
  readonly #options: PartialUploadOptions;
  readonly #receiving = new Map<string, Receiving>();
  /** Of files that came since the start, by name, so that a piece of a long one does not cost all before it again. */
  readonly #hashed = new Map<string, Hashed>();

  constructor(options: PartialUploadOptions) {
    this.#options = options;
  }

  /** What is there of it, or that it is whole. IMAGE_MISSING. */
  find(owner: string, id: string): PartialFile | UploadedFile {
    const whole = this.#options.uploads.find(owner, id);
    if (whole !== undefined) return whole;
    this.#forget();
    const stat = statSync(join(this.#options.directory, nameOf(owner, id)), { throwIfNoEntry: false });
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
    owner: string,
    piece: Piece,
    chunks: AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<PartialFile | UploadedFile> {
    const name = nameOf(owner, piece.id);
    for (let before = this.#receiving.get(name); before !== undefined; before = this.#receiving.get(name)) {
      before.cancel.abort(new QemuError('UPLOAD_OFFSET', 'the file is sent by another connection now'));
      await before.end;
    }
    const cancel = new AbortController();
    const ended = signal === undefined ? cancel.signal : AbortSignal.any([signal, cancel.signal]);
    const work = this.#receive(owner, piece, chunks, ended);
    this.#receiving.set(name, { cancel, end: work.catch(() => {}) });
    try {
      return await work;
    } finally {
      this.#receiving.delete(name);
    }
  }

  async #receive(
    owner: string,
    { id, sizeBytes, offset }: Piece,
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<PartialFile | UploadedFile> {
    const { directory, uploads } = this.#options;
    const whole = uploads.find(owner, id);
    if (whole !== undefined && offset === whole.sizeBytes && sizeBytes === offset) return whole;
    this.#forget();
    const name = nameOf(owner, id);
    const file = join(directory, name);
    const there = whole?.sizeBytes ?? statSync(file, { throwIfNoEntry: false })?.size ?? 0;
    if (offset !== there || whole !== undefined)
      throw new QemuError('UPLOAD_OFFSET', `${there} bytes of the file are there; send those from there on`);
    if (there === 0) {
      const others = this.#files().filter((other) => !uploads.isComing(other));
      const own = others.filter((other) => other.startsWith(prefixOf(owner))).length;
      uploads.checkCount(owner, { all: others.length, own });
    }
    const room = uploads.expect(owner, name, { sizeBytes, comingBytes: sizeBytes - there });
    try {
      await using handle = await open(file, 'a', 0o600);
      const known = this.#hashed.get(name);
      const hashed = known?.bytes === there ? known : await hashOf(file, signal);
      this.#hashed.set(name, hashed);
      await write(handle, hashed, {
        sizeBytes,
        chunks,
        signal,
        received: () => room.received(sizeBytes - hashed.bytes),
      });
      if (hashed.bytes < sizeBytes) return this.find(owner, id);
      this.#hashed.delete(name);
      return await uploads.keepFile(owner, { id, sizeBytes, digest: `sha256:${hashed.hash.digest('hex')}` }, file);
    } catch (error) {
      if (error instanceof QemuError && error.code === 'IMAGE_REFUSED') rmSync(file, { force: true });
      throw asUploadError(error);
    } finally {
      room.ended();
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
    const there = new Set(this.#files());
    for (const name of this.#hashed.keys()) if (!there.has(name)) this.#hashed.delete(name);
  }
}

const prefixOf = (owner: string): string =>
  `${prefix}${createHash('sha256').update(owner).digest('hex').slice(0, 32)}-`;

/** IMAGE_MISSING. */
const nameOf = (owner: string, id: string): string => {
  if (idPattern.test(id)) return prefixOf(owner) + id;
  throw new QemuError('IMAGE_MISSING', `"${id}" is no id of an upload, which is "up-" and 32 hex digits`);
};

const hashOf = async (file: string, signal: AbortSignal): Promise<Hashed> => {
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const chunk of createReadStream(file, { signal, highWaterMark: 1024 * 1024 })) {
    hash.update(chunk as Buffer);
    bytes += (chunk as Buffer).length;
  }
  return { hash, bytes };
};

/** What is counted and hashed is what is in the file. */
const write = async (
  handle: FileHandle,
  hashed: Hashed,
  {
    sizeBytes,
    chunks,
    signal,
    received,
  }: { sizeBytes: number; chunks: AsyncIterable<Uint8Array>; signal: AbortSignal; received: () => void },
): Promise<void> => {
  const coming = chunks[Symbol.asyncIterator]();
  try {
    // A connection that is dead is not waited for.
    for (;;) {
      const { done, value: chunk } = await unlessAborted(coming.next(), signal);
      if (done === true) return;
      if (hashed.bytes + chunk.length > sizeBytes)
        throw new QemuError('IMAGE_REFUSED', `the file was to have ${sizeBytes} bytes, and more came; send it again`);
      await appendAll(handle, chunk);
      hashed.hash.update(chunk);
      hashed.bytes += chunk.length;
      received();
    }
  } finally {
    coming.return?.().catch(() => {});
  }
};
