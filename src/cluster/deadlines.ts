/** How long a client may take to send a whole request, for each request by itself: `node:http` has one limit for all. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

export class Deadlines {
  readonly #limitMs: number;
  readonly #refuse: (error: NodeJS.ErrnoException, socket: Socket) => void;
  readonly #timers = new WeakMap<IncomingMessage, NodeJS.Timeout>();

  /** @param refuse of a client that is too slow and has no answer yet */
  constructor(limitMs: number, refuse: (error: NodeJS.ErrnoException, socket: Socket) => void) {
    this.#limitMs = limitMs;
    this.#refuse = refuse;
  }

  /** Of a request whose head has come. */
  set(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const { headers, socket } = incoming;
    if (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined) return;
    const late = (): void => {
      if (incoming.complete || socket.destroyed) return;
      if (outgoing.headersSent) socket.destroy();
      else
        this.#refuse(
          Object.assign(new Error('the request came too slowly'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' }),
          socket,
        );
    };
    const timer = setTimeout(late, this.#limitMs).unref();
    this.#timers.set(incoming, timer);
    incoming.once('close', () => clearTimeout(timer));
  }

  /** That one may take as long as it likes, as long as it does not stand still. */
  lift(incoming: IncomingMessage): void {
    clearTimeout(this.#timers.get(incoming));
  }
}
