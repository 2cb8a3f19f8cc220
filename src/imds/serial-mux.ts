/**
 * Many connections over one stream of bytes that nobody closes: a virtio-serial port, which the host has open for as long as
 * the machine runs, whoever opens and closes the guest's end. Frames as in SLIP (RFC 1055), so that whoever begins in the
 * middle finds the next one: END is in no frame. A frame is a type, the number of a connection (u16, big endian) and data.
 *
 * | type | | |
 * |---|---|---|
 * | 0 SYNC | both | 16 bytes that the guest chose; the host ends every connection of before and says them back |
 * | 1 OPEN | guest | a connection, by a number that is free |
 * | 2 DATA | both | |
 * | 3 FIN | both | whoever says it sends no more |
 * | 4 RESET | both | the connection is gone |
 *
 * The guest begins with END and SYNC, and takes nothing for an answer before its own 16 bytes have come back: what lies before
 * them was meant for somebody else. What the host cannot read has it forget all connections until the next SYNC.
 */
import { Duplex } from 'node:stream';

const END = 0xc0;
const ESC = 0xdb;
const ESC_END = 0xdc;
const ESC_ESC = 0xdd;

const SYNC = 0;
const OPEN = 1;
const DATA = 2;
const FIN = 3;
const RESET = 4;

const HEADER_BYTES = 3;
export const SYNC_BYTES = 16;
/** Of one frame. Longer writes are several. */
const DATA_BYTES = 16 * 1024;
const FRAME_BYTES = HEADER_BYTES + DATA_BYTES;
const CONNECTIONS = 256;
const LAST_NUMBER = 0xffff;
/** While so much waits for the guest to take it, the host takes nothing more from it. */
const WAITING_BYTES = 256 * 1024;

export interface SerialMuxOptions {
  /** The host's end is told of each connection that the guest opens. */
  readonly onConnection?: ((stream: Duplex) => void) | undefined;
  /** The guest's end: its SYNC was answered. */
  readonly onSynced?: (() => void) | undefined;
}

/** One end of it. Owns the port: either goes with the other. */
export class SerialMux {
  readonly #port: Duplex;
  readonly #options: SerialMuxOptions;
  readonly #streams = new Map<number, MuxStream>();
  /** Those whose readers want no more for now. */
  readonly #full = new Set<MuxStream>();
  #isClogged = false;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  #isTooLong = false;
  /** The guest's: what it waits to hear again. */
  #nonce: Uint8Array | undefined;
  #isSynced = false;
  #nextNumber = 0;

  constructor(port: Duplex, options: SerialMuxOptions) {
    this.#port = port;
    this.#options = options;
    port.on('data', (chunk: Uint8Array) => this.#feed(chunk));
    port.on('error', () => {});
    port.once('end', () => port.destroy());
    port.once('close', () => this.#forget());
  }

  get connections(): number {
    return this.#streams.size;
  }

  /** The guest's end: begins, also anew. `nonce`: 16 random bytes. */
  sync(nonce: Uint8Array): void {
    this.#forget();
    this.#nonce = nonce;
    this.#port.write(Uint8Array.of(END));
    this.#send(SYNC, 0, nonce);
  }

  /** The guest's end, once it is synced: a connection to the host. Throws when it is not, or there are too many. */
  open(): Duplex {
    if (!this.#isSynced) throw new Error('connecting over the port failed: the host has not answered on it');
    if (this.#streams.size >= CONNECTIONS) throw new Error('connecting over the port failed: too many connections');
    do this.#nextNumber = (this.#nextNumber % LAST_NUMBER) + 1;
    while (this.#streams.has(this.#nextNumber));
    this.#send(OPEN, this.#nextNumber);
    return this.#stream(this.#nextNumber);
  }

  destroy(): void {
    this.#port.destroy();
  }

  #stream(number: number): MuxStream {
    const stream = new MuxStream({
      data: (bytes, done) => this.#sendData(number, bytes, done),
      fin: (done) => this.#send(FIN, number, undefined, done),
      resume: () => {
        if (this.#full.delete(stream)) this.#flow();
      },
      gone: (isOver) => {
        if (this.#full.delete(stream)) this.#flow();
        // Another may have its number by now.
        if (this.#streams.get(number) !== stream) return;
        this.#streams.delete(number);
        if (!isOver) this.#send(RESET, number);
      },
    });
    this.#streams.set(number, stream);
    return stream;
  }

  /** Every connection is gone, and what comes is for nobody until there is a SYNC. */
  #forget(): void {
    this.#isSynced = false;
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    this.#full.clear();
    this.#flow();
    for (const stream of streams) stream.destroy();
  }

  #feed(chunk: Uint8Array): void {
    let at = 0;
    for (let end = chunk.indexOf(END); end >= 0; end = chunk.indexOf(END, at)) {
      this.#hold(chunk.subarray(at, end));
      at = end + 1;
      this.#frame();
    }
    this.#hold(chunk.subarray(at));
  }

  #hold(bytes: Uint8Array): void {
    this.#pendingBytes += bytes.length;
    // Each byte may have been escaped.
    if (this.#pendingBytes > 2 * FRAME_BYTES) {
      this.#isTooLong = true;
      this.#pending = [];
    } else if (bytes.length > 0) this.#pending.push(bytes);
  }

  #frame(): void {
    const frame = this.#isTooLong ? undefined : unescaped(Buffer.concat(this.#pending));
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#isTooLong = false;
    // Two ENDs in a row have nothing between them.
    if (frame?.length === 0) return;
    if (frame === undefined || frame.length < HEADER_BYTES || !this.#take(frame)) this.#forget();
  }

  /** False: it makes no sense. */
  #take(frame: Buffer): boolean {
    const type = frame[0]!;
    const number = frame.readUInt16BE(1);
    const data = frame.subarray(HEADER_BYTES);
    if (type === SYNC) return this.#synced(data);
    // Meant for whoever was here before.
    if (!this.#isSynced) return true;
    const stream = this.#streams.get(number);
    switch (type) {
      case OPEN: {
        const { onConnection } = this.#options;
        if (onConnection === undefined || stream !== undefined || data.length > 0) return false;
        if (this.#streams.size >= CONNECTIONS) this.#send(RESET, number);
        else onConnection(this.#stream(number));
        return true;
      }
      case DATA:
        if (data.length > DATA_BYTES) return false;
        // It may be on its way while we say that its connection is gone.
        if (stream !== undefined && !stream.deliver(data)) {
          this.#full.add(stream);
          this.#flow();
        }
        return true;
      case FIN:
        stream?.deliver(null);
        return true;
      case RESET:
        this.#streams.delete(number);
        stream?.cut();
        return true;
      default:
        return false;
    }
  }

  #synced(nonce: Buffer): boolean {
    if (nonce.length !== SYNC_BYTES) return false;
    const { onConnection, onSynced } = this.#options;
    if (onConnection !== undefined) {
      this.#forget();
      this.#isSynced = true;
      this.#send(SYNC, 0, nonce);
      return true;
    }
    // Another's, of before.
    if (this.#isSynced || this.#nonce === undefined || !nonce.equals(this.#nonce)) return true;
    this.#isSynced = true;
    onSynced?.();
    return true;
  }

  #sendData(number: number, bytes: Buffer, done: () => void): void {
    for (let at = 0; at < bytes.length; at += DATA_BYTES) {
      const isLast = at + DATA_BYTES >= bytes.length;
      this.#send(DATA, number, bytes.subarray(at, at + DATA_BYTES), isLast ? done : undefined);
    }
    if (bytes.length === 0) done();
  }

  #send(type: number, number: number, data?: Uint8Array, done?: () => void): void {
    if (!this.#port.writable) return done?.();
    const frame = Buffer.alloc(HEADER_BYTES + (data?.length ?? 0));
    frame[0] = type;
    frame.writeUInt16BE(number, 1);
    if (data !== undefined) frame.set(data, HEADER_BYTES);
    this.#port.write(escaped(frame), () => done?.());
    // Were the guest's end to stop as well, each could wait for the other.
    const isHost = this.#options.onConnection !== undefined;
    if (!isHost || this.#isClogged || this.#port.writableLength < WAITING_BYTES) return;
    this.#isClogged = true;
    this.#port.once('drain', () => {
      this.#isClogged = false;
      this.#flow();
    });
    this.#flow();
  }

  #flow(): void {
    if (this.#isClogged || this.#full.size > 0) this.#port.pause();
    else this.#port.resume();
  }
}

interface Ways {
  readonly data: (bytes: Buffer, done: () => void) => void;
  readonly fin: (done: () => void) => void;
  readonly resume: () => void;
  /** `isOver`: both sides have said that they send no more. */
  readonly gone: (isOver: boolean) => void;
}

/** A connection. */
class MuxStream extends Duplex {
  readonly #ways: Ways;
  #hasFin = false;
  #isCut = false;

  constructor(ways: Ways) {
    super({ allowHalfOpen: true });
    this.#ways = ways;
  }

  /** False: no more for now. */
  deliver(data: Buffer | null): boolean {
    if (this.#hasFin || this.destroyed) return true;
    if (data === null) this.#hasFin = true;
    return this.push(data) || data === null;
  }

  /** The other side is gone. What it had sent to its end is still read. */
  cut(): void {
    this.#isCut = true;
    if (this.#hasFin && !this.readableEnded) this.once('end', () => this.destroy());
    else this.destroy();
  }

  override _read(): void {
    this.#ways.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    if (this.#isCut) done();
    else this.#ways.data(chunk, () => done());
  }

  override _final(done: (error?: Error) => void): void {
    if (this.#isCut) done();
    else this.#ways.fin(() => done());
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#ways.gone(this.#hasFin && this.writableFinished);
    done(error);
  }
}

/** With END behind it. */
const escaped = (frame: Uint8Array): Buffer => {
  let extra = 1;
  for (const byte of frame) if (byte === END || byte === ESC) extra++;
  const bytes = Buffer.allocUnsafe(frame.length + extra);
  let at = 0;
  for (const byte of frame) {
    const isSpecial = byte === END || byte === ESC;
    if (isSpecial) bytes[at++] = ESC;
    bytes[at++] = isSpecial ? (byte === END ? ESC_END : ESC_ESC) : byte;
  }
  bytes[at] = END;
  return bytes;
};

/** Undefined: it has an escape that there is not. */
const unescaped = (bytes: Buffer): Buffer | undefined => {
  if (!bytes.includes(ESC)) return bytes;
  let length = 0;
  for (let at = 0; at < bytes.length; at++) {
    let byte = bytes[at]!;
    if (byte === ESC) {
      const next = bytes[++at];
      if (next !== ESC_END && next !== ESC_ESC) return undefined;
      byte = next === ESC_END ? END : ESC;
    }
    bytes[length++] = byte;
  }
  return bytes.subarray(0, length);
};
