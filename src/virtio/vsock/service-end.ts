/** A service of this process as the host's end of a connection. */
import { EAGAIN, EPIPE } from '../../wire/index.ts';
import type { Connection } from './connection.ts';
import type { PendingEnd, VsockMux } from './mux.ts';
import type { VsockListener, VsockService, VsockStream } from './service.ts';

/** Bytes that wait for the guest: beyond these `write` says false, and beyond those a service does not listen to it. */
const ENOUGH_BYTES = 256 * 1024;
const MOST_BYTES = 16 * 1024 * 1024;
const FIRST_BYTES = 16 * 1024;

export class ServiceEnd implements PendingEnd, VsockStream {
  readonly sourcePort: number;
  readonly guestCid: number;
  readonly port: number;
  readonly #mux: VsockMux;
  #listener: VsockListener | undefined;
  #connection: Connection | undefined;
  /** Written and not given to the guest, from `#start` to `#end`. */
  #waiting = NOTHING;
  #start = 0;
  #end = 0;
  #isFull = false;
  #isClosing = false;
  #isOver = false;
  #isDeaf = false;

  private constructor(guestCid: number, sourcePort: number, port: number, mux: VsockMux) {
    this.guestCid = guestCid;
    this.sourcePort = sourcePort;
    this.port = port;
    this.#mux = mux;
  }

  /** Undefined where the service refuses. */
  static open(
    service: VsockService,
    guestCid: number,
    sourcePort: number,
    port: number,
    mux: VsockMux,
  ): ServiceEnd | undefined {
    const end = new ServiceEnd(guestCid, sourcePort, port, mux);
    try {
      end.#listener = service(end);
    } catch (error) {
      mux.fault(port, error);
    }
    return end.#listener === undefined ? undefined : end;
  }

  attach(connection: Connection): void {
    this.#connection = connection;
    if (this.#isOver) this.#mux.broken(connection);
    else if (this.#end > this.#start || this.#isClosing) this.#mux.readable(connection);
  }

  // --- for the service ---

  write(bytes: Uint8Array, count = bytes.length): boolean {
    if (this.#isOver || this.#isClosing) return false;
    // Nobody reads it, and a service that only writes is told by the end of the connection.
    if (this.#isDeaf) return true;
    const waiting = this.#end - this.#start;
    if (waiting + count > MOST_BYTES) {
      this.reset();
      return false;
    }
    if (this.#end + count > this.#waiting.length) {
      const room = this.#waiting;
      if (waiting + count > room.length) {
        let size = Math.max(FIRST_BYTES, room.length);
        while (size < waiting + count) size *= 2;
        this.#waiting = new Uint8Array(size);
        this.#waiting.set(room.subarray(this.#start, this.#end));
      } else room.copyWithin(0, this.#start, this.#end);
      this.#start = 0;
      this.#end = waiting;
    }
    this.#waiting.set(count === bytes.length ? bytes : bytes.subarray(0, count), this.#end);
    this.#end += count;
    if (this.#connection !== undefined) this.#mux.readable(this.#connection);
    this.#isFull = this.#end - this.#start > ENOUGH_BYTES;
    return !this.#isFull;
  }

  resume(): void {
    if (this.#connection !== undefined) this.#mux.writable(this.#connection);
  }

  close(): void {
    if (this.#isOver || this.#isClosing) return;
    this.#isClosing = true;
    this.#listener = undefined;
    if (this.#connection !== undefined) this.#mux.readable(this.#connection);
  }

  reset(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#listener = undefined;
    if (this.#connection !== undefined) this.#mux.broken(this.#connection);
  }

  // --- for the connection ---

  take(bytes: Uint8Array, count: number): number {
    const listener = this.#listener;
    if (listener === undefined) return -EPIPE;
    try {
      return listener.receive(bytes.subarray(0, count));
    } catch (error) {
      this.#mux.fault(this.port, error);
      this.#listener = undefined;
      listener.closed('a bug of the service');
      return -EPIPE;
    }
  }

  give(into: Uint8Array, most: number): number {
    const count = Math.min(most, this.#end - this.#start);
    if (count === 0) return this.#isClosing ? 0 : -EAGAIN;
    into.set(this.#waiting.subarray(this.#start, this.#start + count));
    this.#start += count;
    if (this.#start === this.#end) {
      this.#start = this.#end = 0;
      if (this.#waiting.length > ENOUGH_BYTES) this.#waiting = NOTHING;
    }
    if (this.#isFull && this.#end - this.#start <= ENOUGH_BYTES / 2) {
      this.#isFull = false;
      this.#listener?.drained();
    }
    return count;
  }

  isGone(): boolean {
    return this.#isClosing;
  }

  opened(): void {
    // Services do not ask for connections.
  }

  endOfGuest(): void {
    this.#listener?.ended();
  }

  guestIsDeaf(): void {
    this.#isDeaf = true;
    this.#waiting = NOTHING;
    this.#start = this.#end = 0;
  }

  over(reason: string): void {
    this.#connection = undefined;
    this.#isOver = true;
    this.#waiting = NOTHING;
    this.#start = this.#end = 0;
    const listener = this.#listener;
    this.#listener = undefined;
    listener?.closed(reason);
  }
}

const NOTHING = new Uint8Array(0);
