/** Who is next: so many at once, no uid more than its share of them, those that wait in turns by uid. */

export interface TurnLimits {
  readonly atOnce: number;
  /** Of one uid. */
  readonly atOnceOfUid: number;
  /** Of one uid, beyond those. */
  readonly waitingOfUid: number;
}

interface Share {
  running: number;
  readonly waiting: ((end: () => void) => void)[];
}

export class Turns {
  readonly #limits: TurnLimits;
  /** Who waits comes first in the order of its last turn. */
  readonly #shares = new Map<number, Share>();
  #running = 0;

  constructor(limits: TurnLimits) {
    this.#limits = limits;
  }

  /** What ends the turn: at once where there is one, else promised; undefined where too many of the uid's wait already. */
  take(uid: number): (() => void) | Promise<() => void> | undefined {
    let share = this.#shares.get(uid);
    if (share === undefined) this.#shares.set(uid, (share = { running: 0, waiting: [] }));
    if (this.#mayStart(share)) return this.#start(uid, share);
    if (share.waiting.length >= this.#limits.waitingOfUid) return undefined;
    const { promise, resolve } = Promise.withResolvers<() => void>();
    share.waiting.push(resolve);
    return promise;
  }

  #mayStart({ running }: Share): boolean {
    return this.#running < this.#limits.atOnce && running < this.#limits.atOnceOfUid;
  }

  #start(uid: number, share: Share): () => void {
    share.running++;
    this.#running++;
    let hasEnded = false;
    return () => {
      if (hasEnded) return;
      hasEnded = true;
      share.running--;
      this.#running--;
      if (share.running === 0 && share.waiting.length === 0) this.#shares.delete(uid);
      this.#next();
    };
  }

  #next(): void {
    for (const [uid, share] of this.#shares) {
      if (share.waiting.length === 0 || !this.#mayStart(share)) continue;
      this.#shares.delete(uid);
      this.#shares.set(uid, share);
      share.waiting.shift()!(this.#start(uid, share));
      return;
    }
  }
}
