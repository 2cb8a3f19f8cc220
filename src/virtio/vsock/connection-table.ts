/** The connections of one guest by their two ports. The guest chooses the ports, so no chain is longer than the table is full. */
import type { Connection } from './connection.ts';

const BUCKET_BITS = 10;

const bucketOf = (guestPort: number, hostPort: number): number =>
  ((Math.imul(guestPort, 0x9e3779b1) ^ Math.imul(hostPort, 0x85ebca6b)) >>> 0) >>> (32 - BUCKET_BITS);

export class ConnectionTable {
  readonly #buckets: (Connection | undefined)[] = Array.from({ length: 1 << BUCKET_BITS }, () => undefined);
  #size = 0;

  get size(): number {
    return this.#size;
  }

  find(guestPort: number, hostPort: number): Connection | undefined {
    let at = this.#buckets[bucketOf(guestPort, hostPort)];
    while (at !== undefined && (at.guestPort !== guestPort || at.hostPort !== hostPort)) at = at.nextInBucket;
    return at;
  }

  /** Its ports must be free. */
  add(connection: Connection): void {
    const bucket = bucketOf(connection.guestPort, connection.hostPort);
    connection.nextInBucket = this.#buckets[bucket];
    this.#buckets[bucket] = connection;
    this.#size++;
  }

  /** It must be there. */
  remove(connection: Connection): void {
    const bucket = bucketOf(connection.guestPort, connection.hostPort);
    let before: Connection | undefined;
    let at = this.#buckets[bucket];
    while (at !== undefined && at !== connection) {
      before = at;
      at = at.nextInBucket;
    }
    if (at === undefined) return;
    if (before === undefined) this.#buckets[bucket] = at.nextInBucket;
    else before.nextInBucket = at.nextInBucket;
    at.nextInBucket = undefined;
    this.#size--;
  }

  /** All of them, as of now. */
  list(): Connection[] {
    const found: Connection[] = [];
    for (const first of this.#buckets) for (let at = first; at !== undefined; at = at.nextInBucket) found.push(at);
    return found;
  }
}
