/**
 * What stands in the blocks of the journal's arena. Records are written whole; some of their fields change in place later, each
 * by one store. What is read is what a device process wrote that may have been taken over by its guest: every length is checked,
 * and a record that makes no sense is no record.
 */
import type { Acl, Caller, Node } from '../tree/index.ts';
import type { Journal } from './journal.ts';

export const NODEID = 1;
export const FILE = 2;
export const DIRECTORY = 3;
export const VERSION = 4;
export const BYTES = 5;
export const MUTATION = 6;
/** Somebody waits in poll(2) for a file. */
export const POLL = 8;
/** Of a vsock device, whose journal has nothing else: the connections that the guest believes to have. */
export const VSOCK = 7;

/** Fields by their offsets in the payload: `f` numbers of 8 bytes, `w` words of 4. */
export const nodeid = {
  nodeid: 0,
  lookups: 8,
  /** 1: versioned; then the way of caching, by its place in `cachings`, times 2. */
  flagsW: 16,
  pinnedModeW: 20,
  node: 24,
} as const;

export const file = {
  fh: 0,
  ino: 8,
  dataRevision: 16,
  /** Of the request that opened it: while that is in flight, nobody knows of the handle. */
  order: 24,
  whereW: 32,
  flagsW: 36,
  uidW: 40,
  gidW: 44,
  pidW: 48,
  /** 1: stream, 2: pinned. */
  bitsW: 52,
  truncatesW: 56,
  staleW: 60,
  /** Block of the value that burning released, or 0. */
  burnt: 64,
  /** Which of the two `told` counts, and they: what a reader of `/.changes` was told, and by which request. */
  toldW: 72,
  told: 80,
  toldBytes: 40,
  /** Behind it, JSON of what else is known of the opener (`OpenerMore`). */
  sizeBytes: 160,
} as const;

export const poll = { fh: 0, loW: 8, hiW: 12, sizeBytes: 16 } as const;

/** In a `told`: the revision, the block of what is left of a line or 0, the request. */
export const told = { revision: 0, rest: 8, order: 16, whereW: 24 } as const;

export const directory = {
  fh: 0,
  ino: 8,
  order: 16,
  whereW: 24,
  uidW: 28,
  gidW: 32,
  pidW: 36,
  /** Two places in a listing: the cookie, the bytes of the name before it, and that name. */
  places: 40,
  placeBytes: 16 + 256,
  /** Behind it, as behind a file's. */
  sizeBytes: 40 + 2 * (16 + 256),
} as const;
export const place = { cookie: 0, nameBytesW: 8, name: 16 } as const;

export const mutation = {
  sequence: 0,
  order: 8,
  ino: 16,
  revision: 24,
  whereW: 32,
  /** Which of the mutations of its request it is. */
  ordinalW: 36,
  /** 1: it was sent, 2: it was answered. */
  stateW: 40,
  errnoW: 44,
  sizeBytes: 48,
} as const;

const nodeFields = {
  ino: 0,
  parentIno: 8,
  sizeBytes: 16,
  dataRevision: 24,
  revision: 32,
  atimeSec: 40,
  mtimeSec: 48,
  ctimeSec: 56,
  bytesLength: 64,
  modeW: 72,
  uidW: 76,
  gidW: 80,
  nlinkW: 84,
  atimeNsecW: 88,
  mtimeNsecW: 92,
  ctimeNsecW: 96,
  /** 1: made by a guest, 2: burned, 4: has bytes. */
  flagsW: 100,
  nameBytesW: 104,
  aclBytesW: 108,
  rest: 112,
} as const;

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const nothing = new Uint8Array(0);

/** A node as it stands in a record: its fields, its name, its ACLs, its bytes where they are asked for. */
export interface EncodedNode {
  readonly node: Node;
  readonly name: Uint8Array;
  readonly acl: Uint8Array;
  readonly bytes: Uint8Array | undefined;
  readonly sizeBytes: number;
}

export function encodeNode(node: Node, withBytes: boolean): EncodedNode {
  const name = encoder.encode(node.name);
  const { acl, defaultAcl } = node;
  const acls =
    acl === undefined && defaultAcl === undefined ? nothing : encoder.encode(JSON.stringify({ acl, defaultAcl }));
  const bytes = withBytes ? node.bytes : undefined;
  const sizeBytes = nodeFields.rest + name.length + acls.length + (bytes?.length ?? 0);
  return { node, name, acl: acls, bytes, sizeBytes };
}

export function writeNode({ memory }: Journal, at: number, { node, name, acl, bytes }: EncodedNode): void {
  const { f64, u32, u8 } = memory;
  const f = at / 8;
  const w = at / 4;
  f64[f] = node.ino;
  f64[f + 1] = node.parentIno;
  f64[f + 2] = node.sizeBytes;
  f64[f + 3] = node.dataRevision;
  f64[f + 4] = node.revision;
  f64[f + 5] = node.atime.sec;
  f64[f + 6] = node.mtime.sec;
  f64[f + 7] = node.ctime.sec;
  f64[f + 8] = bytes?.length ?? 0;
  u32[w + nodeFields.modeW / 4] = node.mode;
  u32[w + nodeFields.uidW / 4] = node.uid;
  u32[w + nodeFields.gidW / 4] = node.gid;
  u32[w + nodeFields.nlinkW / 4] = node.nlink;
  u32[w + nodeFields.atimeNsecW / 4] = node.atime.nsec;
  u32[w + nodeFields.mtimeNsecW / 4] = node.mtime.nsec;
  u32[w + nodeFields.ctimeNsecW / 4] = node.ctime.nsec;
  u32[w + nodeFields.flagsW / 4] =
    (node.madeBy === 'guest' ? 1 : 0) | (node.burned ? 2 : 0) | (bytes === undefined ? 0 : 4);
  u32[w + nodeFields.nameBytesW / 4] = name.length;
  u32[w + nodeFields.aclBytesW / 4] = acl.length;
  u8.set(name, at + nodeFields.rest);
  u8.set(acl, at + nodeFields.rest + name.length);
  if (bytes !== undefined) u8.set(bytes, at + nodeFields.rest + name.length + acl.length);
}

const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;

/** The node in a payload of `room` bytes from `at` on. */
export function readNode({ memory }: Journal, at: number, room: number): Node | undefined {
  if (room < nodeFields.rest) return undefined;
  const { f64, u32, u8 } = memory;
  const number = (field: number): number => f64[(at + field) / 8]!;
  const word = (field: number): number => u32[(at + field) / 4]!;
  const nameBytes = word(nodeFields.nameBytesW);
  const aclBytes = word(nodeFields.aclBytesW);
  const bytesLength = number(nodeFields.bytesLength);
  const counts = [
    nodeFields.ino,
    nodeFields.parentIno,
    nodeFields.sizeBytes,
    nodeFields.dataRevision,
    nodeFields.revision,
  ];
  if (!counts.every((field) => isCount(number(field))) || !isCount(bytesLength)) return undefined;
  const times = [nodeFields.atimeSec, nodeFields.mtimeSec, nodeFields.ctimeSec];
  if (!times.every((field) => Number.isSafeInteger(number(field)))) return undefined;
  if (nodeFields.rest + nameBytes + aclBytes + bytesLength > room) return undefined;
  const nameAt = at + nodeFields.rest;
  const aclAt = nameAt + nameBytes;
  const acls = aclBytes === 0 ? {} : readAcls(u8.slice(aclAt, aclAt + aclBytes));
  if (acls === undefined) return undefined;
  const flags = word(nodeFields.flagsW);
  const bytesAt = aclAt + aclBytes;
  return {
    ino: number(nodeFields.ino),
    parentIno: number(nodeFields.parentIno),
    name: decoder.decode(u8.slice(nameAt, aclAt)),
    madeBy: (flags & 1) !== 0 ? 'guest' : 'outside',
    mode: word(nodeFields.modeW),
    uid: word(nodeFields.uidW),
    gid: word(nodeFields.gidW),
    acl: acls.acl,
    defaultAcl: acls.defaultAcl,
    nlink: word(nodeFields.nlinkW),
    sizeBytes: number(nodeFields.sizeBytes),
    bytes: (flags & 4) === 0 ? undefined : u8.slice(bytesAt, bytesAt + bytesLength),
    burned: (flags & 2) !== 0,
    dataRevision: number(nodeFields.dataRevision),
    revision: number(nodeFields.revision),
    atime: { sec: number(nodeFields.atimeSec), nsec: word(nodeFields.atimeNsecW) },
    mtime: { sec: number(nodeFields.mtimeSec), nsec: word(nodeFields.mtimeNsecW) },
    ctime: { sec: number(nodeFields.ctimeSec), nsec: word(nodeFields.ctimeNsecW) },
  };
}

interface Acls {
  readonly acl?: Acl | undefined;
  readonly defaultAcl?: Acl | undefined;
}

const isAcl = (value: unknown): boolean => {
  if (value === undefined) return true;
  if (typeof value !== 'object' || value === null) return false;
  const { userObj, groupObj, other, mask, users, groups } = value as Record<string, unknown>;
  if (![userObj, groupObj, other, mask].every((bits) => Number.isInteger(bits))) return false;
  return [users, groups].every(
    (entries) =>
      Array.isArray(entries) &&
      entries.every((entry) => Number.isInteger(entry?.id) && Number.isInteger(entry?.permissions)),
  );
};

function readAcls(bytes: Uint8Array): Acls | undefined {
  try {
    const acls = JSON.parse(decoder.decode(bytes)) as Acls | null;
    return typeof acls === 'object' && acls !== null && isAcl(acls.acl) && isAcl(acls.defaultAcl) ? acls : undefined;
  } catch {
    return undefined;
  }
}

/** What is known of who opened, beyond the ids. */
export type OpenerMore = Pick<Caller, 'groups' | 'program' | 'unit'>;

const isMore = (value: unknown): value is OpenerMore => {
  if (typeof value !== 'object' || value === null) return false;
  const { groups, program, unit } = value as Record<string, unknown>;
  return (
    (groups === undefined || (Array.isArray(groups) && groups.every((gid) => Number.isSafeInteger(gid)))) &&
    (program === undefined || typeof program === 'string') &&
    (unit === undefined || typeof unit === 'string')
  );
};

/** To stand behind a record; empty where only the ids are known. */
export function encodeMore({ groups, program, unit }: Caller): Uint8Array {
  if (groups === undefined && program === undefined && unit === undefined) return nothing;
  return encoder.encode(JSON.stringify({ groups, program, unit }));
}

export function writeMore({ memory }: Journal, at: number, more: Uint8Array): void {
  memory.u8.set(more, at);
}

/** What stands behind a record's `sizeBytes`. */
export function readMore(journal: Journal, payload: number, sizeBytes: number): OpenerMore {
  const end = payload + journal.payloadBytes(payload);
  if (end === payload + sizeBytes) return {};
  try {
    const more: unknown = JSON.parse(decoder.decode(journal.memory.u8.slice(payload + sizeBytes, end)));
    return isMore(more) ? more : {};
  } catch {
    return {};
  }
}

/** Bytes in a block of their own; 0 when there is no room. */
export function writeBytes(journal: Journal, bytes: Uint8Array): number {
  const payload = journal.allocate(bytes.length);
  if (payload === 0) return 0;
  journal.memory.u8.set(bytes, payload);
  journal.commit(payload, BYTES);
  return payload;
}

export const readBytes = (journal: Journal, payload: number): Uint8Array =>
  journal.memory.u8.slice(payload, payload + journal.payloadBytes(payload));

/** Queue and head of a request in one word. */
export const whereOf = (queueIndex: number, headIndex: number): number => (queueIndex << 16) | headIndex;
