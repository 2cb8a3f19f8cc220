/** A few FUSE requests, written into a slot's request buffer (linux/fuse.h). Each returns the length of the request. */
import { struct } from '../../src/wire/index.ts';

export const InHeader = struct({
  len: 'u32',
  opcode: 'u32',
  unique: 'u64',
  nodeid: 'u64',
  uid: 'u32',
  gid: 'u32',
  pid: 'u32',
  totalExtlen: 'u16',
  padding: 'u16',
});
export const OutHeader = struct({ len: 'u32', error: 'i32', unique: 'u64' });

export const FUSE_LOOKUP = 1;
export const FUSE_FORGET = 2;
export const FUSE_GETATTR = 3;
export const FUSE_OPEN = 14;
export const FUSE_READ = 15;
export const FUSE_RELEASE = 18;
export const FUSE_INIT = 26;

/** Room for the out header and the body of each reply. */
export const GETATTR_REPLY_BYTES = 16 + 104;
export const ENTRY_REPLY_BYTES = 16 + 128;
export const OPEN_REPLY_BYTES = 16 + 16;
export const INIT_REPLY_BYTES = 16 + 64;

export interface RequestSpec {
  opcode: number;
  unique: number;
  nodeid?: number;
  uid?: number;
  gid?: number;
  pid?: number;
}

const views = new WeakMap<Uint8Array, DataView>();
/** The DataView over a slot's buffer, made once. */
export function viewOf(buffer: Uint8Array): DataView {
  let view = views.get(buffer);
  if (view === undefined) {
    view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    views.set(buffer, view);
  }
  return view;
}

/** Writes the header of a request whose body is `bodyBytes` long. */
export function writeRequest(buffer: Uint8Array, spec: RequestSpec, bodyBytes: number): number {
  const view = viewOf(buffer);
  const len = InHeader.sizeBytes + bodyBytes;
  InHeader.len.set(view, 0, len);
  InHeader.opcode.set(view, 0, spec.opcode);
  InHeader.unique.set(view, 0, spec.unique);
  InHeader.nodeid.set(view, 0, spec.nodeid ?? 1);
  InHeader.uid.set(view, 0, spec.uid ?? 0);
  InHeader.gid.set(view, 0, spec.gid ?? 0);
  InHeader.pid.set(view, 0, spec.pid ?? 1);
  InHeader.totalExtlen.set(view, 0, 0);
  InHeader.padding.set(view, 0, 0);
  return len;
}

const BODY = InHeader.sizeBytes;

/** INIT as kernel 6.1 sends it: 7.38, flags and flags2. */
export function writeInit(buffer: Uint8Array, unique: number, flags = 0xbfffffb | (1 << 30), flags2 = 0): number {
  const view = viewOf(buffer);
  new Uint8Array(buffer.buffer, buffer.byteOffset + BODY, 64).fill(0);
  view.setUint32(BODY, 7, true);
  view.setUint32(BODY + 4, 38, true);
  view.setUint32(BODY + 8, 131072, true);
  view.setUint32(BODY + 12, flags, true);
  view.setUint32(BODY + 16, flags2, true);
  return writeRequest(buffer, { opcode: FUSE_INIT, unique, nodeid: 0, pid: 0 }, 64);
}

export function writeGetattr(buffer: Uint8Array, unique: number, nodeid: number): number {
  const view = viewOf(buffer);
  for (let i = 0; i < 16; i += 4) view.setUint32(BODY + i, 0, true);
  return writeRequest(buffer, { opcode: FUSE_GETATTR, unique, nodeid }, 16);
}

export function writeLookup(buffer: Uint8Array, unique: number, parent: number, name: Uint8Array): number {
  buffer.set(name, BODY);
  buffer[BODY + name.length] = 0;
  return writeRequest(buffer, { opcode: FUSE_LOOKUP, unique, nodeid: parent }, name.length + 1);
}

export function writeOpen(buffer: Uint8Array, unique: number, nodeid: number, flags = 0): number {
  const view = viewOf(buffer);
  view.setUint32(BODY, flags, true);
  view.setUint32(BODY + 4, 0, true);
  return writeRequest(buffer, { opcode: FUSE_OPEN, unique, nodeid }, 8);
}

/** `fhLo` and `fhHi` are the halves of the handle in OPEN's reply. */
export function writeRead(
  buffer: Uint8Array,
  unique: number,
  nodeid: number,
  fhLo: number,
  fhHi: number,
  offset: number,
  size: number,
): number {
  const view = viewOf(buffer);
  for (let i = 0; i < 40; i += 4) view.setUint32(BODY + i, 0, true);
  view.setUint32(BODY, fhLo, true);
  view.setUint32(BODY + 4, fhHi, true);
  view.setUint32(BODY + 8, offset, true);
  view.setUint32(BODY + 16, size, true);
  return writeRequest(buffer, { opcode: FUSE_READ, unique, nodeid }, 40);
}

export function writeRelease(buffer: Uint8Array, unique: number, nodeid: number, fhLo: number, fhHi: number): number {
  const view = viewOf(buffer);
  for (let i = 0; i < 24; i += 4) view.setUint32(BODY + i, 0, true);
  view.setUint32(BODY, fhLo, true);
  view.setUint32(BODY + 4, fhHi, true);
  return writeRequest(buffer, { opcode: FUSE_RELEASE, unique, nodeid }, 24);
}
