/**
 * The link between the host daemon and a device process: a unix stream socket, descriptor 3 of the device process.
 * A frame is a little-endian u32 with the number of bytes that follow, a u8 with the message's code, and a MessagePack map.
 * The codec knows no socket: the host drives it from `node:net`, the device process from its blocking loop.
 */
import { decode, encode } from '@msgpack/msgpack';
import type { Acl, AclEntry, Change, Delta, Node, Time } from '../tree/index.ts';
import { isWholeMsgpack } from '../wire/index.ts';
import { kindByCode, type MessageType, messageKinds, type ToDevice, type ToHost } from './link-messages.ts';

type LinkErrorCode = 'UNKNOWN_MESSAGE' | 'WRONG_DIRECTION' | 'MESSAGE_TOO_LONG' | 'MALFORMED_MESSAGE';

/** The other side of a link says what it must not: the link is of no more use. */
export class LinkError extends Error {
  readonly code: LinkErrorCode;

  constructor(code: LinkErrorCode, message: string) {
    super(message);
    this.name = 'LinkError';
    this.code = code;
  }
}

const headBytes = 5;
/** Maps and lists in each other, at most: delta > put > node > acl > users > entry. */
const maxDepth = 8;

/** The frame of a message. A message of ours that is too long is a bug: LinkError MESSAGE_TOO_LONG. */
export const encodeMessage = (message: ToDevice | ToHost): Uint8Array => {
  const { type, ...body } = message;
  const kind = messageKinds[type];
  const payload = encode(body, { ignoreUndefined: true, maxDepth: maxDepth + 2 });
  if (payload.length > kind.maxBytes) {
    throw new LinkError(
      'MESSAGE_TOO_LONG',
      `message "${type}" has ${payload.length} bytes; ${kind.maxBytes} are allowed`,
    );
  }
  const frame = new Uint8Array(headBytes + payload.length);
  const view = new DataView(frame.buffer);
  view.setUint32(0, payload.length + 1, true);
  frame[4] = kind.code;
  frame.set(payload, headBytes);
  return frame;
};

/** Cuts a byte stream into messages. After it has thrown a LinkError it must not be used any more. */
export class MessageReader<M> {
  readonly #from: 'host' | 'device';
  readonly #decode: (type: MessageType, payload: Uint8Array) => M;
  /** The frame being read: its head, then its payload. */
  readonly #head = new Uint8Array(headBytes);
  readonly #headView = new DataView(this.#head.buffer);
  #headFilled = 0;
  #payload: Uint8Array | undefined;
  #payloadFilled = 0;
  #type: MessageType = 'shutdown';

  constructor(from: 'host' | 'device', decodePayload: (type: MessageType, payload: Uint8Array) => M) {
    this.#from = from;
    this.#decode = decodePayload;
  }

  /** Messages that are whole now, in order. `bytes` may be reused after the call. */
  feed(bytes: Uint8Array): M[] {
    const messages: M[] = [];
    let at = 0;
    for (;;) {
      if (this.#payload === undefined) {
        while (this.#headFilled < headBytes && at < bytes.length) this.#head[this.#headFilled++] = bytes[at++]!;
        if (this.#headFilled < headBytes) return messages;
        this.#startPayload();
      }
      const payload: Uint8Array = this.#payload!;
      const chunk = bytes.subarray(at, at + payload.length - this.#payloadFilled);
      payload.set(chunk, this.#payloadFilled);
      at += chunk.length;
      this.#payloadFilled += chunk.length;
      if (this.#payloadFilled < payload.length) return messages;
      this.#payload = undefined;
      this.#headFilled = 0;
      messages.push(this.#decode(this.#type, payload));
    }
  }

  #startPayload(): void {
    const code = this.#head[4]!;
    const type = kindByCode.get(code);
    if (type === undefined) throw new LinkError('UNKNOWN_MESSAGE', `message code ${code} is not known`);
    const kind = messageKinds[type];
    if (kind.from !== this.#from) throw new LinkError('WRONG_DIRECTION', `message "${type}" came from the wrong side`);
    const length = this.#headView.getUint32(0, true) - 1;
    if (length < 0 || length > kind.maxBytes) {
      throw new LinkError(
        'MESSAGE_TOO_LONG',
        `message "${type}" claims ${length} bytes; 0 to ${kind.maxBytes} are allowed`,
      );
    }
    this.#type = type;
    this.#payload = new Uint8Array(length);
    this.#payloadFilled = 0;
  }
}

/** The device process's reader. The host daemon is trusted; the shapes of nodes are made uniform. */
export const readerOnDevice = (): MessageReader<ToDevice> =>
  new MessageReader('host', (type, payload) => {
    const body = decodeBody(type, payload) as Record<string, never>;
    if (type === 'delta') return { type, delta: toDelta(body['delta'] as unknown as Delta) };
    return { ...(body as object), type } as ToDevice;
  });

/** The map of a payload; LinkError MALFORMED_MESSAGE when it is none. */
export const decodeBody = (type: MessageType, payload: Uint8Array): object => {
  if (!isWholeMsgpack(payload, maxDepth)) throw malformed(type);
  try {
    const body = decode(payload, { maxExtLength: 0 });
    if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body;
  } catch {
    throw malformed(type);
  }
  throw malformed(type);
};

const malformed = (type: MessageType): LinkError =>
  new LinkError('MALFORMED_MESSAGE', `message "${type}" is no MessagePack map`);

/** Every node with the same keys in the same order, values in memory of their own: the frame can go. */
const toDelta = (raw: Delta): Delta => {
  const { revision, full, put, remove, policy, changes, usage } = raw;
  return {
    revision,
    full,
    put: put.map(toNode),
    remove,
    changes: changes.map(({ ino, path, what }): Change => ({ ino, path, what })),
    ...(policy !== undefined && { policy }),
    usage: { bytes: usage.bytes, nodes: usage.nodes },
  };
};

const toNode = (raw: Node): Node => ({
  ino: raw.ino,
  parentIno: raw.parentIno,
  name: raw.name,
  ...(raw.lastPath === undefined ? {} : { lastPath: raw.lastPath }),
  madeBy: raw.madeBy,
  mode: raw.mode,
  uid: raw.uid,
  gid: raw.gid,
  acl: toAcl(raw.acl),
  defaultAcl: toAcl(raw.defaultAcl),
  nlink: raw.nlink,
  sizeBytes: raw.sizeBytes,
  bytes: raw.bytes === undefined ? undefined : raw.bytes.slice(),
  burned: raw.burned,
  dataRevision: raw.dataRevision,
  revision: raw.revision,
  atime: toTime(raw.atime),
  mtime: toTime(raw.mtime),
  ctime: toTime(raw.ctime),
});

const toTime = ({ sec, nsec }: Time): Time => ({ sec, nsec });

const toAcl = (raw: Acl | undefined): Acl | undefined =>
  raw === undefined
    ? undefined
    : {
        userObj: raw.userObj,
        groupObj: raw.groupObj,
        other: raw.other,
        mask: raw.mask,
        users: raw.users.map(toAclEntry),
        groups: raw.groups.map(toAclEntry),
      };

const toAclEntry = ({ id, permissions }: AclEntry): AclEntry => ({ id, permissions });

/**
 * Frames waiting to be written to a non-blocking descriptor: the device process's side. Bounded, so that a host daemon
 * that does not read cannot fill the memory of a device process.
 */
export class LinkQueue {
  readonly #maxBytes: number;
  readonly #frames: Uint8Array[] = [];
  /** Bytes of the first frame that are written already. */
  #written = 0;
  #pendingBytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** False when there is no room: the message is not queued. */
  push(message: ToHost): boolean {
    return this.pushFrame(encodeMessage(message));
  }

  /** The same for a message that is encoded. */
  pushFrame(frame: Uint8Array): boolean {
    if (this.#pendingBytes + frame.length > this.#maxBytes) return false;
    this.#frames.push(frame);
    this.#pendingBytes += frame.length;
    return true;
  }

  /** What to write next, or undefined when nothing waits. */
  next(): Uint8Array | undefined {
    const frame = this.#frames[0];
    return frame === undefined || this.#written === 0 ? frame : frame.subarray(this.#written);
  }

  /** `bytes` of what `next` gave are written. */
  wrote(bytes: number): void {
    this.#written += bytes;
    this.#pendingBytes -= bytes;
    while (this.#frames.length > 0 && this.#written >= this.#frames[0]!.length) {
      this.#written -= this.#frames.shift()!.length;
    }
  }
}
