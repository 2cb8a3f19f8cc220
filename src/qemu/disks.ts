/** The disks of VMs: qcow2 overlays on images, which live as long as their VM. */
import {
  chownSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { printable } from '../wire/index.ts';
import { messageOf, QemuError } from './error.ts';
import { QCOW2_HEADER_BYTES, type Qcow2Allowed, type Qcow2Header, readQcow2Header } from './qcow2.ts';
import { runSandboxed } from './sandbox.ts';

/** The largest disk: 64 TiB. */
export const MAX_DISK_BYTES = 64 * 1024 ** 4;

export interface DiskOptions {
  readonly path: string;
  /** The image that it stands on; without one the disk is empty, and `sizeBytes` must be given. */
  readonly base?: { readonly path: string; readonly virtualBytes: number } | undefined;
  /** At least this large; the image's size unless given. */
  readonly sizeBytes?: number | undefined;
  /** Who owns the file; QEMU's user. */
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  /** Groups that may read the image. */
  readonly groups?: readonly number[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What qemu-img writes for an empty disk of that size: tables alone, a cluster for each 512 MiB at most. */
const emptyDiskBytes = 64 * 1024 * 1024;
const cpuSeconds = 60;

/** The header of a qcow2 file on this machine, checked. Follows no symbolic link. */
export function readHeader(path: string, allowed: Qcow2Allowed = {}): Qcow2Header & { readonly fileBytes: number } {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new QemuError('IMAGE_REFUSED', `"${path}" is no regular file`);
    const bytes = new Uint8Array(Math.min(QCOW2_HEADER_BYTES, stat.size));
    const count = readSync(fd, bytes, 0, bytes.length, 0);
    const limits = { maxVirtualBytes: MAX_DISK_BYTES };
    return { ...readQcow2Header(bytes.subarray(0, count), stat.size, limits, allowed), fileBytes: stat.size };
  } finally {
    closeSync(fd);
  }
}

/**
 * Makes the disk if it is not there, and grows it to `sizeBytes`; it never shrinks. Returns its size. Errors: DISK_FULL,
 * DISK_INVALID (an impossible size, or a file that is not what we made), IMAGE_MISSING (its image is gone), DISK_FAILED.
 */
export async function ensureDisk(options: DiskOptions): Promise<number> {
  const { path, base, sizeBytes = base?.virtualBytes } = options;
  if (base && !existsSync(base.path))
    throw new QemuError('IMAGE_MISSING', `the image of disk "${path}" is gone: "${base.path}"; add it again`);
  if (sizeBytes === undefined || !Number.isInteger(sizeBytes / 512) || sizeBytes <= 0 || sizeBytes > MAX_DISK_BYTES)
    throw new QemuError(
      'DISK_INVALID',
      `a disk cannot have ${sizeBytes} bytes; give a multiple of 512, at most ${MAX_DISK_BYTES}`,
    );
  if (!existsSync(path)) {
    if (base && sizeBytes < base.virtualBytes)
      throw new QemuError(
        'DISK_INVALID',
        `a disk of ${sizeBytes} bytes cannot hold its image of ${base.virtualBytes}; make it at least as large`,
      );
    await create(options, sizeBytes);
    return sizeBytes;
  }
  const { virtualBytes } = checkDisk(path, base?.path);
  if (sizeBytes < virtualBytes && options.sizeBytes !== undefined)
    throw new QemuError(
      'DISK_INVALID',
      `disk "${path}" has ${virtualBytes} bytes and cannot shrink to ${sizeBytes}; disks only grow`,
    );
  if (sizeBytes <= virtualBytes) return virtualBytes;
  await inSandbox(`growing disk "${path}"`, options, path, ['resize', '-q', '-f', 'qcow2', path, String(sizeBytes)]);
  return sizeBytes;
}

/** Refuses a disk whose header is not what we wrote: QEMU may write the file, and a QEMU may have been taken over. */
function checkDisk(path: string, basePath: string | undefined): Qcow2Header {
  let header: Qcow2Header;
  try {
    header = readHeader(path, { backing: basePath !== undefined });
  } catch (error) {
    if (!(error instanceof QemuError)) throw error;
    const what = error.message.replace(/^the image /, 'it ');
    throw new QemuError('DISK_INVALID', `disk "${path}" cannot be used: ${what}; restore it from a backup`, error);
  }
  if (header.backingFile === basePath && (basePath === undefined || header.backingFormat === 'qcow2')) return header;
  const found = header.backingFile === undefined ? 'none' : `"${printable(header.backingFile)}"`;
  throw new QemuError(
    'DISK_INVALID',
    `disk "${path}" was made on image "${basePath ?? 'none'}" and now names ${found}; restore it from a backup`,
  );
}

async function create(options: DiskOptions, sizeBytes: number): Promise<void> {
  const { path, base, uid, gid = uid } = options;
  const partial = `${path}.new`;
  rmSync(partial, { force: true });
  try {
    closeSync(openSync(partial, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, 0o600));
    if (uid !== undefined) chownSync(partial, uid, gid ?? uid);
    // `-u`: the image is not opened, so nothing of it is needed or believed here.
    const onBase = base ? ['-u', '-F', 'qcow2', '-b', base.path] : [];
    const args = ['create', '-q', '-f', 'qcow2', ...onBase, partial, String(sizeBytes)];
    await inSandbox(`making disk "${path}"`, options, partial, args);
    renameSync(partial, path);
    syncDirectory(dirname(path));
  } catch (error) {
    rmSync(partial, { force: true });
    throw asDiskError(error, path);
  }
}

async function inSandbox(what: string, options: DiskOptions, file: string, args: readonly string[]): Promise<void> {
  const { uid, gid, groups, signal } = options;
  const fileBytes = emptyDiskBytes + fileSizeOf(file);
  try {
    await runSandboxed(what, ['qemu-img', ...args], { uid, gid, groups, signal, fileBytes, cpuSeconds });
    const fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW);
    fsyncSync(fd);
    closeSync(fd);
  } catch (error) {
    throw asDiskError(error, options.path);
  }
}

function fileSizeOf(file: string): number {
  const fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    return fstatSync(fd).size;
  } finally {
    closeSync(fd);
  }
}

function asDiskError(error: unknown, path: string): unknown {
  const { code } = error as { readonly code?: string };
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'DISK_FULL')
    return new QemuError('DISK_FULL', `no room for disk "${path}"; free space on its file system`, error);
  return error instanceof QemuError && error.code === 'IMAGE_FAILED'
    ? new QemuError('DISK_FAILED', messageOf(error), error)
    : error;
}

/** Makes what was renamed there durable. */
export function syncDirectory(directory: string): void {
  const fd = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY);
  fsyncSync(fd);
  closeSync(fd);
}
