/** A descriptor that Node knows no sort of stream for (a vsock socket, a virtio-serial port), as a stream on the agent's loop. */
import { Duplex } from 'node:stream';
import { close, EPOLLIN, EPOLLOUT, read, write } from '../sys/index.ts';
import type { FdWatcher } from '../virtio/index.ts';
import { EAGAIN, EINTR, errnoName } from '../wire/index.ts';

const CHUNK_BYTES = 64 * 1024;

/** What the loop can do for it. */
export interface StreamLoop extends FdWatcher {
  /** Node has something to do that no descriptor tells of. */
  yieldToNode(): void;
}

/** Takes `fd`, which does not block, over. `isConnecting`: nothing can be written to it before it says so. */
export class FdStream extends Duplex {
  readonly #fd: number;
  readonly #loop: StreamLoop;
  readonly #chunk = new Uint8Array(new ArrayBuffer(CHUNK_BYTES));
  #watched = 0;
  #reads = false;
  #rest: Uint8Array = new Uint8Array(0);
  #written: ((error?: Error) => void) | undefined;

  #isConnecting: boolean;

  constructor(fd: number, loop: StreamLoop, isConnecting = false) {
    super({ allowHalfOpen: false });
    this.#fd = fd;
    this.#loop = loop;
    this.#isConnecting = isConnecting;
    if (isConnecting) this.#watch();
  }

  override _read(): void {
    this.#reads = true;
    this.#watch();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    // In memory of its own: what is handed to a system call must not move.
    const bytes = new Uint8Array(new ArrayBuffer(chunk.length));
    bytes.set(chunk);
    this.#rest = bytes;
    this.#written = done;
    if (!this.#isConnecting) this.#writeRest();
    this.#watch();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    if (this.#watched !== 0) this.#loop.unwatch(this.#fd);
    this.#watched = 0;
    close(this.#fd);
    this.#loop.yieldToNode();
    done(error);
  }

  #watch(): void {
    if (this.destroyed) return;
    const wantsOut = this.#isConnecting || this.#written !== undefined;
    const events = (this.#reads && !this.#isConnecting ? EPOLLIN : 0) | (wantsOut ? EPOLLOUT : 0);
    if (events === this.#watched) return;
    this.#watched = events;
    if (events === 0) this.#loop.unwatch(this.#fd);
    else this.#loop.watch(this.#fd, () => this.#ready(), events);
  }

  #ready(): void {
    this.#loop.yieldToNode();
    this.#isConnecting = false;
    if (this.#written !== undefined) this.#writeRest();
    while (this.#reads && !this.destroyed) {
      const bytes = read(this.#fd, this.#chunk);
      if (bytes === -EAGAIN) break;
      if (bytes === -EINTR) continue;
      if (bytes <= 0) {
        this.#reads = false;
        if (bytes === 0) this.push(null);
        else this.destroy(new Error(`reading failed: ${errnoName(-bytes)}`));
        break;
      }
      this.#reads = this.push(Buffer.from(this.#chunk.subarray(0, bytes)));
    }
    this.#watch();
  }

  #writeRest(): void {
    let bytes = 0;
    while (this.#rest.length > 0) {
      bytes = write(this.#fd, this.#rest);
      if (bytes === -EINTR) continue;
      if (bytes < 0) break;
      this.#rest = this.#rest.slice(bytes);
    }
    if (bytes === -EAGAIN) return;
    const done = this.#written;
    this.#written = undefined;
    done?.(bytes < 0 ? new Error(`writing failed: ${errnoName(-bytes)}`) : undefined);
  }
}
