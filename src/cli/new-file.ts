/** A file that is either whole or not there. */
import { chmodSync, existsSync, linkSync, rmSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Writes a new file of mode 0600, on the disk and under its name when it resolves. Until then, and when `fill` throws,
 * there is nothing under that name. What is there already is never replaced.
 */
export const writeNewFile = async (
  file: string,
  fill: (write: (chunk: Uint8Array) => Promise<void>) => Promise<void>,
): Promise<void> => {
  if (existsSync(file)) throw isThere(file);
  const partial = `${file}.partial`;
  let handle: FileHandle;
  try {
    handle = await open(partial, 'wx', 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw inWords(error, file);
    throw new Error(`"${partial}" is there: another backup is being written, or was cut short; remove it then`, {
      cause: error,
    });
  }
  try {
    try {
      // Whatever the umask left of it.
      chmodSync(partial, 0o600);
      await fill(async (chunk) => {
        for (let at = 0; at < chunk.length; ) at += (await handle.write(chunk, at)).bytesWritten;
      });
      await handle.sync();
    } finally {
      await handle.close();
    }
    // Unlike a rename, it replaces nothing that came meanwhile.
    linkSync(partial, file);
  } catch (error) {
    throw inWords(error, file);
  } finally {
    rmSync(partial, { force: true });
  }
  await syncDirectory(dirname(file));
};

const syncDirectory = async (directory: string): Promise<void> => {
  await using handle = await open(directory);
  await handle.sync();
};

const isThere = (file: string): Error =>
  new Error(`"${file}" exists already, and is not overwritten; give another name`);

const inWords = (error: unknown, file: string): unknown => {
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (syscall === undefined) return error;
  switch (code) {
    case 'EEXIST':
      return isThere(file);
    case 'ENOSPC':
    case 'EDQUOT':
      return new Error(`writing "${file}" failed: its disk is full; nothing is left of it`);
    case 'ENOENT':
      return new Error(`there is no directory "${dirname(file)}"; make it first`);
    case 'EACCES':
    case 'EROFS':
    case 'EPERM':
      return new Error(`"${file}" cannot be written here (${code}); give another directory`);
    default:
      return new Error(`writing "${file}" failed: ${code}; nothing is left of it`, { cause: error });
  }
};
