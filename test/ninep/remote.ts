/** A 9P client of a server in another process, by a unix socket; it blocks this thread until it is answered. */
import assert from 'node:assert/strict';
import { close, connectUnix, POLLIN, POLLOUT, pollOne, read, send, setNonBlocking } from '../../src/sys/index.ts';
import { EAGAIN } from '../../src/wire/index.ts';
import { AnyClient, type Fields, type Reply, type Server } from './client.ts';

const PATIENCE_MS = 20_000;
const ROOM_BYTES = 1024 * 1024;

/** The stream, cut into frames. */
class Line implements Server {
  readonly fd: number;
  readonly #onFrame: (frame: Uint8Array) => void;
  readonly #onEnd: () => void;
  readonly #room = new Uint8Array(new ArrayBuffer(ROOM_BYTES));
  #held = 0;
  ended = false;

  constructor(socket: string, onFrame: (frame: Uint8Array) => void, onEnd: () => void) {
    this.fd = connectUnix(socket);
    assert.ok(this.fd >= 0, `connecting to "${socket}" failed with errno ${-this.fd}`);
    setNonBlocking(this.fd, true);
    this.#onFrame = onFrame;
    this.#onEnd = onEnd;
  }

  /** Sends all of it; reads answers meanwhile, so that neither side waits for the other. */
  receive(bytes: Uint8Array): number {
    for (let sent = 0; sent < bytes.length && !this.ended; ) {
      const wrote = send(this.fd, bytes.subarray(sent));
      if (wrote > 0) sent += wrote;
      else if (wrote !== -EAGAIN) this.#end();
      else if ((pollOne(this.fd, POLLIN | POLLOUT, PATIENCE_MS) & POLLIN) !== 0) this.take();
    }
    return bytes.length;
  }

  /** Takes what is there, and waits for it if `waitMs` says so; false when nothing came. */
  take(waitMs = 0): boolean {
    if (this.ended || pollOne(this.fd, POLLIN, waitMs) <= 0) return false;
    const got = read(this.fd, this.#room.subarray(this.#held));
    if (got === -EAGAIN) return false;
    if (got <= 0) {
      this.#end();
      return true;
    }
    this.#held += got;
    const view = new DataView(this.#room.buffer);
    let at = 0;
    while (this.#held - at >= 4 && this.#held - at >= view.getUint32(at, true)) {
      const bytes = view.getUint32(at, true);
      this.#onFrame(this.#room.subarray(at, at + bytes));
      at += bytes;
    }
    this.#room.copyWithin(0, at, this.#held);
    this.#held -= at;
    return true;
  }

  #end(): void {
    if (this.ended) return;
    this.ended = true;
    this.#onEnd();
  }
}

export class RemoteClient extends AnyClient<Line> implements Disposable {
  constructor(socket: string) {
    super(
      (client) =>
        new Line(
          socket,
          (frame) => client.send(frame, frame.length),
          () => client.close('the server hung up'),
        ),
    );
  }

  /** Whether the server has hung up. */
  get isOver(): boolean {
    return this.session.ended;
  }

  override call(name: string, fields?: Fields, tag?: number): Reply {
    const reply = this.start(name, fields, tag);
    this.waitFor(() => reply.body !== undefined);
    return reply;
  }

  /** Until `done` says so, or the server has hung up. */
  waitFor(done: () => boolean): void {
    const end = performance.now() + PATIENCE_MS;
    while (!done() && !this.isOver) {
      this.session.take(100);
      assert.ok(performance.now() < end, `${this.unanswered} requests are not answered`);
    }
  }

  /** Leaves in the middle of whatever it was. */
  hangUp(): void {
    this.session.ended = true;
  }

  [Symbol.dispose](): void {
    close(this.session.fd);
  }
}
