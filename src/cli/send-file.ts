/** Sends a file of whoever runs the command to the API, which may be far away. */
import { createHash, randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { ClientError, type ResultOf } from '../cluster/client/index.ts';
import type { Api } from './api.ts';
import { Progress } from './progress.ts';
import type { Terminal } from './terminal.ts';
import { Unreachable } from './unreachable.ts';
import { UsageError } from './usage-error.ts';

const pieceBytes = 256 * 1024;

/** Tries in a row that bring nothing on. */
const mostTries = 30;
const againMs = 1_000;

/**
 * Goes on where the server is when the connection breaks, or it is away.
 *
 * @returns the id of the upload, whose bytes are those of the file
 */
export const sendFile = async (api: Api, terminal: Terminal, path: string): Promise<string> => {
  await using handle = await opened(path);
  const stat = await handle.stat();
  if (!stat.isFile() || stat.size === 0)
    throw new UsageError(`"${path}" is ${stat.isFile() ? 'empty' : 'no regular file'}`);
  const sizeBytes = stat.size;
  const progress = new Progress(terminal, `sending ${basename(path)}`, 'bytes');
  const id = `up-${randomBytes(16).toString('hex')}`;
  const hash = createHash('sha256');
  let hashed = 0;
  const send = async (offset: number): Promise<string | undefined> => {
    const chunks = pieces(handle, { offset, sizeBytes, path }, (piece, done) => {
      // What is sent again was counted.
      if (done > hashed) hash.update(piece.subarray(Math.max(0, piece.length - (done - hashed))));
      hashed = Math.max(hashed, done);
      progress.tell({ step: '', done, total: sizeBytes });
    });
    const body = { sizeBytes: sizeBytes - offset, chunks };
    return (await api.upload(body, { params: { upload: id }, query: { offset, sizeBytes } })).digest;
  };
  try {
    // One that is not there at all is told at once.
    await received(api, id);
    const digest = await sentAll(api, terminal.interrupted, id, send);
    if (digest === `sha256:${hash.digest('hex')}`) return id;
    throw new Error(`"${path}" came there as something else; send it again`);
  } finally {
    progress.end();
  }
};

const sentAll = async (
  api: Api,
  signal: AbortSignal,
  id: string,
  send: (offset: number) => Promise<string | undefined>,
): Promise<string> => {
  let offset = 0;
  for (let tries = 0; ; ) {
    try {
      const digest = await send(offset);
      if (digest !== undefined) return digest;
    } catch (error) {
      if (!isBroken(error) || signal.aborted || tries >= mostTries) throw error;
      await pause(againMs, undefined, { signal }).catch(() => signal.throwIfAborted());
    }
    const there = await received(api, id).catch((error: unknown) => {
      if (!isBroken(error)) throw error;
      return undefined;
    });
    if (there?.digest !== undefined) return there.digest;
    tries = there !== undefined && there.receivedBytes > offset ? 0 : tries + 1;
    offset = there?.receivedBytes ?? offset;
  }
};

const received = async (api: Api, id: string): Promise<Pick<ResultOf<'findUpload'>, 'receivedBytes' | 'digest'>> => {
  try {
    return await api.call('findUpload', { params: { upload: id } });
  } catch (error) {
    if (error instanceof ClientError && error.code === 'NOT_FOUND') return { receivedBytes: 0 };
    throw error;
  }
};

/** The server is away, or was, or the connection to it broke; or it has other bytes than was thought. */
const isBroken = (error: unknown): boolean =>
  error instanceof Unreachable ||
  (error instanceof ClientError && ['UNAVAILABLE', 'WRONG_STATE', 'UNEXPECTED'].includes(error.code));

const opened = async (path: string): Promise<FileHandle> => {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw new UsageError(`reading "${path}" failed: ${(error as NodeJS.ErrnoException).code}`);
  }
};

async function* pieces(
  handle: FileHandle,
  { offset, sizeBytes, path }: { readonly offset: number; readonly sizeBytes: number; readonly path: string },
  each: (piece: Uint8Array, done: number) => void,
): AsyncGenerator<Uint8Array> {
  for (let done = offset; done < sizeBytes; ) {
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
