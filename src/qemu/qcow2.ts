/**
 * Reads the header of a qcow2 file (docs/interop/qcow2.txt of QEMU) that a stranger made, before any program of QEMU sees it:
 * through a backing file or an external data file an image reads files of the machine that opens it. Integers are big-endian.
 */

import { printable } from '../wire/index.ts';
import { QemuError } from './error.ts';

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBytes: number;
  /** Size of the disk that the guest sees. */
  readonly virtualBytes: number;
  /** As the header names it: a path, or anything else that QEMU would open. */
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
}

export interface Qcow2Limits {
  readonly maxVirtualBytes: number;
}

/** Names what may stand in the header beyond a plain disk: the overlays that we made have a backing file. */
export interface Qcow2Allowed {
  readonly backing?: boolean;
}

/** As much of the file as a header may take: it lies in the first cluster, and clusters have at most 2 MiB; ours need less. */
export const QCOW2_HEADER_BYTES = 64 * 1024;

const MAGIC = 0x514649fb;
const V2_BYTES = 72;
const V3_BYTES = 104;
const backingNameBytes = 1023;

/** Bits of incompatible_features. */
const incompatible = { dirty: 1, corrupt: 2, externalDataFile: 4, compressionType: 8, extendedL2: 16 } as const;
const knownIncompatible = 31;

/** Types of header extensions. */
const extensions = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  externalDataFile: 0x44415441,
} as const;

function refuse(what: string, fix: string): never {
  throw new QemuError('IMAGE_REFUSED', `the image ${what}; ${fix}`);
}

const convertIt = 'convert it with "qemu-img convert -O qcow2" where it was made';
const damaged = 'it is damaged, or no qcow2 image';

/** A 64-bit number; refused where no file or disk is that large. */
function u64(view: DataView, at: number, what: string): number {
  const value = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
  if (!Number.isSafeInteger(value)) refuse(`has an absurd ${what}`, damaged);
  return value;
}

/**
 * Checks and reads a header. `bytes` is the beginning of the file, `QCOW2_HEADER_BYTES` long or all of it; `fileBytes` the
 * file's size. Throws IMAGE_REFUSED, and nothing else, whatever the bytes are.
 */
export function readQcow2Header(
  bytes: Uint8Array,
  fileBytes: number,
  { maxVirtualBytes }: Qcow2Limits,
  allowed: Qcow2Allowed = {},
): Qcow2Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < V2_BYTES || view.getUint32(0) !== MAGIC)
    refuse('is no qcow2 image', 'say --format raw if it is a raw disk, else convert it');
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) refuse(`is of qcow2 version ${version}`, convertIt);
  if (version === 3 && bytes.length < V3_BYTES) refuse('ends within its header', damaged);
  const clusterBits = view.getUint32(20);
  if (clusterBits < 9 || clusterBits > 21) refuse(`has clusters of 2^${clusterBits} bytes`, damaged);
  const clusterBytes = 2 ** clusterBits;
  if (view.getUint32(32) !== 0) refuse('is encrypted', 'decrypt it first with "qemu-img convert"');
  const headerBytes = version === 2 ? V2_BYTES : checkFeatures(view);
  if (headerBytes > Math.min(clusterBytes, bytes.length)) refuse(`has a header of ${headerBytes} bytes`, damaged);

  const virtualBytes = u64(view, 24, 'size');
  if (virtualBytes === 0 || virtualBytes % 512 !== 0)
    refuse(`has an impossible size of ${virtualBytes} bytes`, damaged);
  if (virtualBytes > maxVirtualBytes)
    refuse(`has a size of ${virtualBytes} bytes, and ${maxVirtualBytes} are allowed`, 'use a smaller one');
  checkTables(view, { clusterBytes, virtualBytes, fileBytes });
  if (view.getUint32(60) !== 0) refuse('has internal snapshots', convertIt);

  const backingFile = readBacking(view, bytes, allowed, clusterBytes);
  const backingFormat = readExtensions(view, bytes, headerBytes, clusterBytes, allowed);
  return { version, clusterBytes, virtualBytes, backingFile, backingFormat };
}

/** Version 3 only; returns the header's length. */
function checkFeatures(view: DataView): number {
  const high = view.getUint32(72);
  const low = view.getUint32(76);
  if (low & incompatible.externalDataFile)
    refuse('keeps its data in another file', 'an image must be one file; convert it with "qemu-img convert"');
  if (high !== 0 || (low & ~knownIncompatible) !== 0)
    refuse(`needs features that are not known here (0x${high.toString(16)}, 0x${low.toString(16)})`, convertIt);
  if (low & incompatible.corrupt) refuse('is marked corrupt', 'repair it with "qemu-img check -r all"');
  if (low & incompatible.dirty) refuse('was not closed in order', 'repair it with "qemu-img check -r all"');
  if (view.getUint32(96) > 6) refuse('has impossible reference counts', damaged);
  const headerBytes = view.getUint32(100);
  if (headerBytes < V3_BYTES || headerBytes % 8 !== 0 || headerBytes > 4096)
    refuse(`has a header of ${headerBytes} bytes`, damaged);
  return headerBytes;
}

interface Sizes {
  readonly clusterBytes: number;
  readonly virtualBytes: number;
  readonly fileBytes: number;
}

/** The two tables that the rest hangs on lie whole in the file, and the first is as long as the disk needs, not more. */
function checkTables(view: DataView, { clusterBytes, virtualBytes, fileBytes }: Sizes): void {
  const l1Entries = view.getUint32(36);
  // One entry of the first table stands for a cluster of 8-byte entries, or 16-byte ones with extended L2.
  const needed = Math.ceil(virtualBytes / (clusterBytes * (clusterBytes / 16)));
  if (l1Entries * 8 > 32 * 1024 * 1024 || l1Entries > needed + 64 * 1024)
    refuse('has an absurd first-level table', damaged);
  const within = (what: string, offset: number, length: number): void => {
    if (offset % clusterBytes !== 0 || offset === 0 || offset + length > fileBytes)
      refuse(`has its ${what} outside the file`, damaged);
  };
  const l1Offset = u64(view, 40, 'table offset');
  if (l1Entries > 0) within('first-level table', l1Offset, l1Entries * 8);
  const refcountClusters = view.getUint32(56);
  if (refcountClusters === 0 || refcountClusters * clusterBytes > 8 * 1024 * 1024 + clusterBytes)
    refuse('has an absurd reference table', damaged);
  within('reference table', u64(view, 48, 'table offset'), refcountClusters * clusterBytes);
}

function readBacking(
  view: DataView,
  bytes: Uint8Array,
  allowed: Qcow2Allowed,
  clusterBytes: number,
): string | undefined {
  const offset = u64(view, 8, 'backing file offset');
  const length = view.getUint32(16);
  if (offset === 0 && length === 0) return undefined;
  const isInside =
    offset >= V2_BYTES && length <= backingNameBytes && offset + length <= Math.min(bytes.length, clusterBytes);
  const name = isInside ? new TextDecoder().decode(bytes.subarray(offset, offset + length)) : undefined;
  if (!allowed.backing)
    refuse(
      `stands on another file${name === undefined || name === '' ? '' : `, "${printable(name)}"`}`,
      'through it an image could read files of this machine; flatten it with "qemu-img convert"',
    );
  if (name === undefined || name === '') refuse('has an impossible backing file name', damaged);
  return name;
}

/** Returns the format of the backing file, where it is allowed to have one. */
function readExtensions(
  view: DataView,
  bytes: Uint8Array,
  start: number,
  clusterBytes: number,
  allowed: Qcow2Allowed,
): string | undefined {
  let format: string | undefined;
  const end = Math.min(bytes.length, clusterBytes);
  for (let at = start; at + 8 <= end; ) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    if (type === extensions.end) return format;
    if (length > end - at - 8) refuse('has a header extension that does not end', damaged);
    switch (type) {
      case extensions.backingFormat:
        if (!allowed.backing) refuse('names the format of another file', 'flatten it with "qemu-img convert"');
        format = new TextDecoder().decode(bytes.subarray(at + 8, at + 8 + length));
        break;
      case extensions.featureNames:
      case extensions.bitmaps:
        break;
      case extensions.encryption:
        return refuse('is encrypted', 'decrypt it first with "qemu-img convert"');
      case extensions.externalDataFile:
        return refuse(
          'names another file for its data',
          'an image must be one file; convert it with "qemu-img convert"',
        );
      default:
        return refuse(`has a header extension that is not known here (0x${type.toString(16)})`, convertIt);
    }
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return format;
}
