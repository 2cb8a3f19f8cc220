/** Who is next: so many at once, no uid more than its share of them and of memory, those that wait in turns by uid. */

export interface TurnLimits {
  readonly atOnce: number;
  /** Of one uid. */
  readonly atOnceOfUid: number;
  /** Of one uid, beyond those. */
  readonly waitingOfUid: number;
  /** Of all turns that are taken or waited for. */
  readonly bytes: number;
  readonly bytesOfUid: number;
}

interface Share {
  running: number;
  bytes: number;
  readonly waiting: { readonly bytes: number; readonly start: (end: () => void) => void }[];
}

export class Turns {
  readonly #limits: TurnLimits;
  /** Who waits comes first in the order of its last turn. */
  readonly #shares = new Map<number, Share>();
  #running = 0;
  #bytes = 0;

  constructor(limits: TurnLimits) {
    this.#limits = limits;
  }

  /**
   * What ends the turn: at once where there is one, else promised; undefined where too many of the uid's wait already, or `bytes`
   * more are too many.
   */
  take(uid: number, bytes = 0): (() => void) | Promise<() => void> | undefined {
    const { waitingOfUid, bytesOfUid } = this.#limits;
    const share = this.#shares.get(uid) ?? { running: 0, bytes: 0, waiting: [] };
    if (share.bytes + bytes > bytesOfUid || this.#bytes + bytes > this.#limits.bytes) return undefined;
    const mayStart = this.#mayStart(share);
    if (!mayStart && share.waiting.length >= waitingOfUid) return undefined;
    this.#shares.set(uid, share);
    share.bytes += bytes;
    this.#bytes += bytes;
    if (mayStart) return this.#start(uid, share, bytes);
    const { promise, resolve } = Promise.withResolvers<() => void>();
    share.waiting.push({ bytes, start: resolve });
    return promise;
  }

  #mayStart({ running }: Share): boolean {
    return this.#running < this.#limits.atOnce && running < this.#limits.atOnceOfUid;
  }

  #start(uid: number, share: Share, bytes: number): () => void {
    share.running++;
    this.#running++;
    let hasEnded = false;
    return () => {
      if (hasEnded) return;
      hasEnded = true;
      share.running--;
      this.#running--;
      share.bytes -= bytes;
      this.#bytes -= bytes;
      if (share.running === 0 && share.waiting.length === 0) this.#shares.delete(uid);
      this.#next();
    };
  }

  #next(): void {
    for (const [uid, share] of this.#shares) {
      if (share.waiting.length === 0 || !this.#mayStart(share)) continue;
      this.#shares.delete(uid);
      this.#shares.set(uid, share);
      const { bytes, start } = share.waiting.shift()!;
      start(this.#start(uid, share, bytes));
      return;
    }
  }
}
