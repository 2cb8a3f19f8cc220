/**
 * What a device process and the keeper say to each other: packets of a SOCK_SEQPACKET unix socket, little-endian, each with
 * one descriptor at most. Every request is answered by one packet `done`; LIST by one `entry` for each descriptor before it.
 *
 *   request  op u8, nameBytes u8, extraBytes u16, take u32, number f64, the name, extra bytes
 *   answer   kind u8, nameBytes u8, padding u16, errno i32, number f64, the name
 */

/** Keeps the descriptor that comes with it, in place of one of the same name, with `number`. */
export const PUT = 1;
/** Forgets a name, and closes its descriptor. */
export const DROP = 2;
/** Tells all names, with copies of their descriptors. */
export const LIST = 3;
/**
 * Sends `extra` to the kept socket, takes `take` bytes from it, and keeps `number` with it: once for each number, whoever
 * asks again. A process can't do two system calls and remember them in one step that nothing interrupts; to a device process
 * that is killed, one request to another process is such a step.
 */
export const FINISH = 4;
/**
 * LIST, after which the keeper has nothing of this VM any more and hangs up on its device processes: the asker is the next
 * keeper, which listens in its place already. An older keeper does not know it and hangs up on the asker.
 */
export const HAND_OVER = 5;

export const DONE = 0;
export const ENTRY = 1;

export const HEAD_BYTES = 16;
export const NAME_BYTES = 160;
/** Longest answer to a vhost-user message is far below. */
const EXTRA_BYTES = 512;
const TAKE_BYTES = 4096;
export const PACKET_BYTES = HEAD_BYTES + NAME_BYTES + EXTRA_BYTES;

export interface KeeperRequest {
  readonly op: number;
  readonly name: string;
  readonly number: number;
  readonly take: number;
  readonly extra: Uint8Array;
}

const nothing = new Uint8Array(0);
const isPlain = (name: string): boolean => /^[\x20-\x7e]*$/.test(name);

/** Writes a request into `into`; returns its length. Throws for what no request of ours may be. */
export function writeRequest(
  into: Uint8Array,
  op: number,
  name: string,
  number = 0,
  take = 0,
  extra: Uint8Array = nothing,
): number {
  if (name.length > NAME_BYTES || !isPlain(name)) throw new Error(`"${name}" is no name for the keeper`);
  if (extra.length > EXTRA_BYTES || take > TAKE_BYTES) throw new Error('more than the keeper sends or takes at once');
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  view.setUint8(0, op);
  view.setUint8(1, name.length);
  view.setUint16(2, extra.length, true);
  view.setUint32(4, take, true);
  view.setFloat64(8, number, true);
  for (let i = 0; i < name.length; i++) into[HEAD_BYTES + i] = name.charCodeAt(i);
  into.set(extra, HEAD_BYTES + name.length);
  return HEAD_BYTES + name.length + extra.length;
}

/** A request of `bytes` bytes, checked; undefined for what is none. `extra` is a copy. */
export function readRequest(packet: Uint8Array, bytes: number): KeeperRequest | undefined {
  if (bytes < HEAD_BYTES || bytes > PACKET_BYTES) return undefined;
  const view = new DataView(packet.buffer, packet.byteOffset, bytes);
  const op = view.getUint8(0);
  const nameBytes = view.getUint8(1);
  const extraBytes = view.getUint16(2, true);
  const take = view.getUint32(4, true);
  const number = view.getFloat64(8, true);
  if (op < PUT || op > HAND_OVER || nameBytes > NAME_BYTES || extraBytes > EXTRA_BYTES || take > TAKE_BYTES)
    return undefined;
  if (bytes !== HEAD_BYTES + nameBytes + extraBytes || !Number.isSafeInteger(number) || number < 0) return undefined;
  const name = String.fromCharCode(...packet.subarray(HEAD_BYTES, HEAD_BYTES + nameBytes));
  if (!isPlain(name)) return undefined;
  return { op, name, number, take, extra: packet.slice(HEAD_BYTES + nameBytes, bytes) };
}

export interface KeeperAnswer {
  readonly kind: number;
  readonly errno: number;
  readonly number: number;
  readonly name: string;
}

export function writeAnswer(into: Uint8Array, kind: number, errno: number, name = '', number = 0): number {
  const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
  view.setUint8(0, kind);
  view.setUint8(1, name.length);
  view.setUint16(2, 0, true);
  view.setInt32(4, errno, true);
  view.setFloat64(8, number, true);
  for (let i = 0; i < name.length; i++) into[HEAD_BYTES + i] = name.charCodeAt(i);
  return HEAD_BYTES + name.length;
}

export function readAnswer(packet: Uint8Array, bytes: number): KeeperAnswer | undefined {
  if (bytes < HEAD_BYTES) return undefined;
  const view = new DataView(packet.buffer, packet.byteOffset, bytes);
  const nameBytes = view.getUint8(1);
  if (bytes !== HEAD_BYTES + nameBytes) return undefined;
  const name = String.fromCharCode(...packet.subarray(HEAD_BYTES, HEAD_BYTES + nameBytes));
  return { kind: view.getUint8(0), errno: view.getInt32(4, true), number: view.getFloat64(8, true), name };
}
