/** What the requests of one machine hold of this process's memory: bodies that come, and answers until they are taken. */
import { Rejection } from './limits.ts';

export class HeldBytes {
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  /** Of one request, which may be refused once `mostBytes` are held by all. */
  begin(mostBytes: number): Holding {
    let own = 0;
    const holdNow = (bytes: number): void => {
      this.#bytes += bytes - own;
      own = bytes;
    };
    return {
      take: (bytes) => {
        if (this.#bytes >= mostBytes)
          throw new Rejection(503, 'unsent', 'too many bytes wait to be taken; take the answers, then try again');
        holdNow(own + bytes);
      },
      settle: holdNow,
    };
  }
}

export interface Holding {
  /** So many more, before they are there. Rejection 503: there are too many; nothing may be done of what was asked. */
  readonly take: (bytes: number) => void;
  /** So many it is in fact; 0 when its answer is out. */
  readonly settle: (bytes: number) => void;
}
