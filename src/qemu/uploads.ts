/** Files that images are to be made from, while they come and until they are used. */
import { createHash, randomBytes } from 'node:crypto';
import { statfsSync } from 'node:fs';
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { QemuError } from './error.ts';

export interface UploadOptions {
  /** Where images are made, so that a file need not be copied. */
  readonly directory: string;
  readonly maxFileBytes: number;
  /** How long a file waits for its use; 10 minutes unless given. */
  readonly keepMs?: number | undefined;
}

export interface UploadedFile {
  readonly id: string;
  readonly sizeBytes: number;
  /** `sha256:` and 64 hex digits. */
  readonly digest: string;
  readonly expiresAtMs: number;
}

/** Names of files that a process which was killed may have left. */
export const uploadPrefix = 'upload-';

/** Files that come or wait at one time, of all and of one owner: so that nobody takes the place of all others. */
const mostFiles = 256;
const mostOfOne = 16;
/** What is left to everybody else on the disk. */
const spareBytes = 256 * 1024 * 1024;
const defaultKeepMs = 10 * 60_000;

export class Uploads {
  readonly #options: UploadOptions;
  /** Files on their way, with the bytes that they are still to have. */
  readonly #coming = new Map<string, { readonly owner: string; readonly bytes: number }>();
  readonly #waiting = new Map<string, { readonly timer: NodeJS.Timeout; readonly file: UploadedFile; owner: string }>();

  constructor(options: UploadOptions) {
    this.#options = options;
  }

  /** Makes room for a file of that size. IMAGE_REFUSED (too large), DISK_FULL, UPLOADS_MANY. */
  open(owner: string, sizeBytes: number): IncomingFile {
    this.checkCount(owner);
    const id = `up-${randomBytes(16).toString('hex')}`;
    const { received, ended } = this.expect(owner, id, { sizeBytes, comingBytes: sizeBytes });
    return new IncomingFile(this.#pathOf(id), sizeBytes, {
      received: (bytes) => received(sizeBytes - bytes),
      ended,
      kept: (digest) => this.#keep(owner, { id, sizeBytes, digest }),
    });
  }

  /** UPLOADS_MANY. `others`: that are neither on their way just now nor whole, of all and of that owner. */
  checkCount(owner: string, others: { readonly all: number; readonly own: number } = { all: 0, own: 0 }): void {
    const here = [...this.#coming.values(), ...this.#waiting.values()];
    const own = here.filter((one) => one.owner === owner).length + others.own;
    const words = 'files are on their way or wait for their use; use them, or try again later';
    if (own >= mostOfOne) throw new QemuError('UPLOADS_MANY', `${own} of your ${words}`);
    const all = here.length + others.all;
    if (all >= mostFiles) throw new QemuError('UPLOADS_MANY', `${all} ${words}`);
  }

  /** Keeps room for bytes that come from now on, until they have `ended`. IMAGE_REFUSED (too large), DISK_FULL. */
  expect(
    owner: string,
    id: string,
    { sizeBytes, comingBytes }: { readonly sizeBytes: number; readonly comingBytes: number },
  ): { readonly received: (leftBytes: number) => void; readonly ended: () => void } {
    const { directory, maxFileBytes } = this.#options;
    const promised = this.#coming.values().reduce((sum, { bytes }) => sum + bytes, 0);
    checkRoom(directory, { sizeBytes, comingBytes: promised + comingBytes, maxFileBytes });
    this.#coming.set(id, { owner, bytes: comingBytes });
    return {
      received: (bytes) => void this.#coming.set(id, { owner, bytes }),
      ended: () => void this.#coming.delete(id),
    };
  }

  isComing(id: string): boolean {
    return this.#coming.has(id);
  }

  /** The path of a file, which is the caller's from then on. IMAGE_MISSING when it was used, waited too long or never came. */
  take(id: string): string {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined)
      throw new QemuError('IMAGE_MISSING', 'the file was used, waited too long or never came; send it again');
    clearTimeout(waiting.timer);
    this.#waiting.delete(id);
    return this.#pathOf(id);
  }

  /** Forgets what waits. */
  async close(): Promise<void> {
    const ids = [...this.#waiting.keys()];
    await Promise.all(ids.map((id) => rm(this.take(id), { force: true })));
  }

  /** One that waits for its use. */
  find(owner: string, id: string): UploadedFile | undefined {
    const waiting = this.#waiting.get(id);
    return waiting?.owner === owner ? waiting.file : undefined;
  }

  /** Takes a file that is whole, from its path, until it is used. */
  async keepFile(owner: string, file: Omit<UploadedFile, 'expiresAtMs'>, path: string): Promise<UploadedFile> {
    await rename(path, this.#pathOf(file.id));
    return this.#keep(owner, file);
  }

  #keep(owner: string, file: Omit<UploadedFile, 'expiresAtMs'>): UploadedFile {
    const { keepMs = defaultKeepMs } = this.#options;
    const forget = (): void => {
      // One that cannot be removed goes when the store is opened next.
      rm(this.take(file.id), { force: true }).catch(() => {});
    };
    const kept = { ...file, expiresAtMs: Date.now() + keepMs };
    this.#waiting.set(file.id, { timer: setTimeout(forget, keepMs).unref(), file: kept, owner });
    return kept;
  }

  #pathOf(id: string): string {
    return join(this.#options.directory, `${uploadPrefix}${id}`);
  }
}

interface Told {
  readonly received: (bytes: number) => void;
  readonly ended: () => void;
  readonly kept: (digest: string) => UploadedFile;
}

/** One file on its way. Whoever opened it receives or disposes of it. */
export class IncomingFile implements AsyncDisposable {
  readonly #path: string;
  readonly #sizeBytes: number;
  readonly #told: Told;
  #state: 'open' | 'kept' | 'gone' = 'open';

  constructor(path: string, sizeBytes: number, told: Told) {
    this.#path = path;
    this.#sizeBytes = sizeBytes;
    this.#told = told;
  }

  /**
   * Takes its bytes. IMAGE_REFUSED when they are not as many as was said, DISK_FULL, or what the iteration throws; nothing of
   * it is kept then.
   */
  async receive(chunks: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<UploadedFile> {
    try {
      const handle = await open(this.#path, 'wx', 0o600);
      let digest: string;
      try {
        digest = await this.#write(handle, chunks, signal);
      } finally {
        await handle.close();
      }
      this.#state = 'kept';
      this.#told.ended();
      return this.#told.kept(digest);
    } catch (error) {
      await this[Symbol.asyncDispose]();
      throw asUploadError(error);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state !== 'open') return;
    this.#state = 'gone';
    await rm(this.#path, { force: true });
    this.#told.ended();
  }

  async #write(handle: FileHandle, chunks: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<string> {
    const hash = createHash('sha256');
    let bytes = 0;
    const counted = (): QemuError =>
      new QemuError('IMAGE_REFUSED', `the file was to have ${this.#sizeBytes} bytes, and others came; send it again`);
    for await (const chunk of chunks) {
      signal?.throwIfAborted();
      bytes += chunk.length;
      if (bytes > this.#sizeBytes) throw counted();
      hash.update(chunk);
      await appendAll(handle, chunk);
      this.#told.received(bytes);
    }
    signal?.throwIfAborted();
    if (bytes < this.#sizeBytes) throw counted();
    return `sha256:${hash.digest('hex')}`;
  }
}

/** IMAGE_REFUSED (too large), DISK_FULL. `comingBytes`: those that are still to come, of all files. */
export const checkRoom = (
  directory: string,
  {
    sizeBytes,
    comingBytes,
    maxFileBytes = sizeBytes,
  }: { readonly sizeBytes: number; readonly comingBytes: number; readonly maxFileBytes?: number },
): void => {
  if (sizeBytes > maxFileBytes)
    throw new QemuError('IMAGE_REFUSED', `the file has ${sizeBytes} bytes, and ${maxFileBytes} are allowed`);
  const disk = statfsSync(directory);
  const room = disk.bavail * disk.bsize - spareBytes;
  if (comingBytes > room)
    throw new QemuError(
      'DISK_FULL',
      `no room for a file of ${sizeBytes} bytes in "${directory}", where ${Math.max(0, room - comingBytes + sizeBytes)} can be used; free space there`,
    );
};

/** A disk that becomes full takes a part first. */
export const appendAll = async (handle: FileHandle, chunk: Uint8Array): Promise<void> => {
  for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at)).bytesWritten;
};

export const asUploadError = (error: unknown): unknown => {
  const { code } = error as { readonly code?: string };
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new QemuError('DISK_FULL', 'no room for the file on the disk of images; free space there', error);
  return error;
};
