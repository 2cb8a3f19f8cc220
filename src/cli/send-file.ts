/** Sends a file of whoever runs the command to the API, which may be far away. */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Api } from './api.ts';
import { Progress } from './progress.ts';
import type { Terminal } from './terminal.ts';
import { UsageError } from './usage-error.ts';

const pieceBytes = 256 * 1024;

/** @returns the id of the upload, whose bytes are those of the file */
export const sendFile = async (api: Api, terminal: Terminal, path: string): Promise<string> => {
  await using handle = await opened(path);
  const stat = await handle.stat();
  if (!stat.isFile() || stat.size === 0)
    throw new UsageError(`"${path}" is ${stat.isFile() ? 'empty' : 'no regular file'}`);
  const progress = new Progress(terminal, `sending ${basename(path)}`, 'bytes');
  const hash = createHash('sha256');
  const chunks = pieces(handle, stat.size, path, (piece, done) => {
    hash.update(piece);
    progress.tell({ step: '', done, total: stat.size });
  });
  try {
    const { id, digest } = await api.upload({ sizeBytes: stat.size, chunks });
    if (digest === `sha256:${hash.digest('hex')}`) return id;
    throw new Error(`"${path}" came there as something else; send it again`);
  } finally {
    progress.end();
  }
};

const opened = async (path: string): Promise<FileHandle> => {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw new UsageError(`reading "${path}" failed: ${(error as NodeJS.ErrnoException).code}`);
  }
};

async function* pieces(
  handle: FileHandle,
  sizeBytes: number,
  path: string,
  each: (piece: Uint8Array, done: number) => void,
): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < sizeBytes; ) {
    const { bytesRead, buffer } = await handle.read(
      new Uint8Array(pieceBytes),
      0,
      Math.min(pieceBytes, sizeBytes - done),
      done,
    );
    if (bytesRead === 0) throw new Error(`"${path}" became shorter while it was sent`);
    const piece = buffer.subarray(0, bytesRead);
    done += bytesRead;
    each(piece, done);
    yield piece;
  }
}
