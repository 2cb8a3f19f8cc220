/** A blob from elsewhere to a file: gone on with where it broke off, and verified before it is used. */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import type { BlobBytes } from '../records/index.ts';
import { ImageRefusal } from './error.ts';
import { type Descriptor, digestOf, mostDocumentBytes } from './manifest.ts';

/** The bytes from `offset` on. What it throws ends the fetch, except HOST_UNAVAILABLE: then it is asked again. */
export type ReadFrom = (digest: string, offset: number) => Promise<BlobBytes>;

export interface FetchOptions {
  readonly read: ReadFrom;
  readonly signal: AbortSignal;
  /** How many bytes of the blob are there. */
  readonly onBytes?: ((done: number) => void) | undefined;
}

const firstPauseMs = 200;
const longestPauseMs = 5_000;

/**
 * Goes on where the file ends, again and again until it is whole. HOST_INVALID when the bytes have another digest (the file is
 * emptied), HOST_FULL, the signal's reason, what `read` throws.
 */
export const fetchBlob = async (
  { digest, size }: Descriptor,
  file: string,
  { read, signal, onBytes }: FetchOptions,
): Promise<void> => {
  await using handle = await open(file, 'a+', 0o600);
  const hash = createHash('sha256');
  let done = 0;
  if ((await handle.stat()).size > size) await handle.truncate(0);
  for await (const chunk of createReadStream(file, { signal })) {
    hash.update(chunk as Buffer);
    done += (chunk as Buffer).length;
  }
  onBytes?.(done);
  for (let waitMs = firstPauseMs; done < size; ) {
    const before = done;
    try {
      const { sizeBytes, bytes } = await read(digest, done);
      if (sizeBytes !== size) throw otherBytes(digest);
      for await (const chunk of bytes) {
        signal.throwIfAborted();
        if (done + chunk.length > size) throw otherBytes(digest);
        await append(handle, chunk, hash);
        done += chunk.length;
        onBytes?.(done);
      }
    } catch (error) {
      signal.throwIfAborted();
      if (!isBroken(error)) throw error;
    }
    if (done === size) break;
    if (done > before) waitMs = firstPauseMs;
    await pause(waitMs, undefined, { signal });
    waitMs = Math.min(longestPauseMs, waitMs * 2);
  }
  if (`sha256:${hash.digest('hex')}` !== digest) {
    await handle.truncate(0);
    throw otherBytes(digest);
  }
  await handle.sync();
};

/** A small blob. As `fetchBlob`. */
export const fetchDocument = async (
  digest: string,
  { read, signal }: Pick<FetchOptions, 'read' | 'signal'>,
): Promise<Uint8Array> => {
  for (let waitMs = firstPauseMs; ; waitMs = Math.min(longestPauseMs, waitMs * 2)) {
    try {
      const { sizeBytes, bytes } = await read(digest, 0);
      if (sizeBytes > mostDocumentBytes) throw otherBytes(digest);
      const chunks: Uint8Array[] = [];
      let done = 0;
      for await (const chunk of bytes) {
        done += chunk.length;
        if (done > sizeBytes) throw otherBytes(digest);
        chunks.push(chunk);
      }
      const document = Buffer.concat(chunks);
      if (done === sizeBytes) {
        if (digestOf(document) !== digest) throw otherBytes(digest);
        return document;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (!isBroken(error)) throw error;
    }
    await pause(waitMs, undefined, { signal });
  }
};

const append = async (handle: FileHandle, chunk: Uint8Array, hash: Hash): Promise<void> => {
  hash.update(chunk);
  try {
    // A disk that becomes full takes a part first.
    for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at)).bytesWritten;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT')
      throw new ImageRefusal('HOST_FULL', 'no room for the image on the disk; free space there', error);
    throw error;
  }
};

const isBroken = (error: unknown): boolean => (error as { readonly code?: unknown }).code === 'HOST_UNAVAILABLE';

const otherBytes = (digest: string): ImageRefusal =>
  new ImageRefusal('HOST_INVALID', `what came as "${digest}" is something else; try again, or add the image anew`);
