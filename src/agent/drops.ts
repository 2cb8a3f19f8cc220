/** Files without a name that nobody here has open any more: what the server is not told of counts against quotas for ever. */
import { EIO } from '../wire/index.ts';
import type { Answer } from './remote.ts';

const AT_ONCE = 4;
/** How long the next one waits when there was no answer. */
const AGAIN_MS = 500;

/** Refuses none, and tells of each until there is an answer. There are no more than files can be open. */
export class Drops {
  readonly #tell: (ino: number) => Promise<Answer>;
  /** By ino, in order. */
  readonly #waiting = new Map<number, (errno: number) => void>();
  #telling = 0;
  #pause: NodeJS.Timeout | undefined;
  #isStopped = false;

  constructor(tell: (ino: number) => Promise<Answer>) {
    this.#tell = tell;
  }

  add(ino: number, settle: (errno: number) => void): void {
    this.#waiting.set(ino, settle);
    this.#next();
  }

  stop(): void {
    this.#isStopped = true;
    clearTimeout(this.#pause);
  }

  #next(): void {
    for (const [ino, settle] of this.#waiting) {
      if (this.#telling === AT_ONCE || this.#pause !== undefined || this.#isStopped) return;
      this.#waiting.delete(ino);
      void this.#tellOf(ino, settle);
    }
  }

  async #tellOf(ino: number, settle: (errno: number) => void): Promise<void> {
    this.#telling++;
    const answer = await this.#tell(ino);
    this.#telling--;
    if (answer === EIO) {
      this.#waiting.set(ino, settle);
      this.#pause ??= setTimeout(() => {
        this.#pause = undefined;
        this.#next();
      }, AGAIN_MS).unref();
    } else settle(typeof answer === 'number' ? answer : 0);
    this.#next();
  }
}
