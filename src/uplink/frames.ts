/**
 * What goes over a stream of the uplink: frames, each the length of what follows (u32, big endian) and one MessagePack
 * value. It knows no socket.
 */
import { decode, encode } from '@msgpack/msgpack';
import { isWholeMsgpack } from '../wire/index.ts';

export const frameLimits = {
  /** A page of a store's range, or a spec. */
  bytes: 24 * 1024 * 1024,
  /** Of what a host asks: a transaction, and not twice as much. */
  askedBytes: 2 * 1024 * 1024,
  /** Of who has no certificate yet. */
  enrolBytes: 64 * 1024,
  /** Each becomes an object, so that of 24 MiB of the smallest a process would die. */
  values: 1_000_000,
} as const;
const headerBytes = 4;
/** Of what may come: arguments, records of a spec, and what they hold. */
const mostDepth = 16;

/** What came is no frame of this protocol: whoever sent it is broken, or no host or manager. */
export class MalformedFrame extends Error {
  readonly code = 'UPLINK_MALFORMED';

  constructor(what: string) {
    super(`the other side of the uplink sent what is no message: ${what}`);
    this.name = 'MalformedFrame';
  }
}

/** RangeError when it is larger than the other side would take. */
export const encodeFrame = (value: unknown): Uint8Array => {
  const body = encode(value, { ignoreUndefined: true, maxDepth: mostDepth });
  if (body.length > frameLimits.bytes)
    throw new RangeError(
      `a message of ${body.length} bytes is too large for the uplink: ${frameLimits.bytes} are allowed`,
    );
  const frame = new Uint8Array(headerBytes + body.length);
  new DataView(frame.buffer).setUint32(0, body.length);
  frame.set(body, headerBytes);
  return frame;
};

/** Puts frames together again, wherever they were cut. Nothing larger than a frame is ever kept. */
export class FrameReader {
  readonly #mostBytes: number;
  #pieces: Uint8Array[] = [];
  #bytes = 0;

  constructor(mostBytes: number = frameLimits.bytes) {
    this.#mostBytes = mostBytes;
  }

  /** The values that are whole with these bytes. MalformedFrame: then nothing more is to be pushed. */
  *push(chunk: Uint8Array): Generator<unknown, void> {
    this.#pieces.push(chunk);
    this.#bytes += chunk.length;
    for (;;) {
      const length = this.#length();
      if (length === undefined || this.#bytes < headerBytes + length) return;
      const all = this.#joined();
      const body = all.slice(headerBytes, headerBytes + length);
      const rest = all.subarray(headerBytes + length);
      this.#pieces = rest.length === 0 ? [] : [rest];
      this.#bytes = rest.length;
      yield decodeBody(body);
    }
  }

  /** Nothing is left of a frame that did not come whole. */
  get isBetween(): boolean {
    return this.#bytes === 0;
  }

  #length(): number | undefined {
    if (this.#bytes < headerBytes) return undefined;
    const [first] = this.#pieces;
    const head = first!.length >= headerBytes ? first! : this.#joined();
    const length = new DataView(head.buffer, head.byteOffset, headerBytes).getUint32(0);
    if (length > this.#mostBytes) throw new MalformedFrame(`a frame of ${length} bytes`);
    return length;
  }

  #joined(): Uint8Array {
    if (this.#pieces.length === 1) return this.#pieces[0]!;
    const all = new Uint8Array(this.#bytes);
    let at = 0;
    for (const piece of this.#pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    this.#pieces = [all];
    return all;
  }
}

const decodeBody = (body: Uint8Array): unknown => {
  if (!isWholeMsgpack(body, mostDepth, frameLimits.values))
    throw new MalformedFrame('a frame that is no single MessagePack value, or has too many within');
  try {
    // A plain view: of a Buffer, its pieces would be Buffers.
    return decode(new Uint8Array(body.buffer, body.byteOffset, body.byteLength));
  } catch (error) {
    throw new MalformedFrame((error as Error).message);
  }
};
