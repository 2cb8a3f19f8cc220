/** A driver with a FUSE session over our own vhost-user front end: the same for every back end under measurement. */
import { errnoName } from '../src/wire/index.ts';
import { FrontEnd, type FrontQueue, fuse } from '../test/front-end/index.ts';
import { VALUE_BYTES } from './ours.ts';

const ANSWER_LIMIT_MS = 5_000;
const ROOT_NODEID = 1;
const READ_BYTES = 4096;

/** A mounted device: one request after the other, or many in flight, by a driver that polls. */
export class VirtiofsClient {
  readonly #front: FrontEnd;
  readonly #queue: FrontQueue;
  #unique = 2;

  constructor(socket: string) {
    this.#front = FrontEnd.connect(socket);
    this.#front.handshake();
    this.#front.start();
    this.#queue = this.#front.queues[1]!;
    this.#roundTrip(fuse.writeInit(this.#request, this.#next()), fuse.INIT_REPLY_BYTES);
  }

  close(): void {
    this.#front.close();
  }

  get #request(): Uint8Array {
    return this.#queue.request(0);
  }

  get #reply(): DataView {
    return fuse.viewOf(this.#queue.reply(0));
  }

  #next(): number {
    this.#unique += 2;
    return this.#unique;
  }

  /** The next slot that is answered. Never sleeps: what is measured is the back end's time, not this process's wake-up. */
  #poll(): number {
    const deadline = performance.now() + ANSWER_LIMIT_MS;
    for (let turn = 1; ; turn++) {
      const slot = this.#queue.next();
      if (slot >= 0) {
        const error = fuse.OutHeader.error.get(fuse.viewOf(this.#queue.reply(slot)), 0);
        if (error !== 0) throw new Error(`the back end answered ${errnoName(-error)}`);
        return slot;
      }
      if (turn % 4096 === 0 && performance.now() > deadline) throw new Error('the back end did not answer within 5 s');
    }
  }

  #roundTrip(requestBytes: number, replyBytes: number): void {
    this.#queue.add(0, requestBytes, replyBytes);
    this.#queue.suppressInterrupts();
    this.#queue.publish();
    this.#poll();
  }

  /** The nodeid of a name in a directory. */
  lookup(name: Uint8Array, parent = ROOT_NODEID): number {
    this.#roundTrip(fuse.writeLookup(this.#request, this.#next(), parent, name), fuse.ENTRY_REPLY_BYTES);
    const view = this.#reply;
    return view.getUint32(16, true) + view.getUint32(20, true) * 2 ** 32;
  }

  getattr(nodeid: number): void {
    this.#roundTrip(fuse.writeGetattr(this.#request, this.#next(), nodeid), fuse.GETATTR_REPLY_BYTES);
  }

  openReadRelease(nodeid: number): void {
    this.#roundTrip(fuse.writeOpen(this.#request, this.#next(), nodeid), fuse.OPEN_REPLY_BYTES);
    const lo = this.#reply.getUint32(16, true);
    const hi = this.#reply.getUint32(20, true);
    this.#roundTrip(fuse.writeRead(this.#request, this.#next(), nodeid, lo, hi, 0, READ_BYTES), 16 + READ_BYTES);
    if (this.#queue.usedBytes !== 16 + VALUE_BYTES) throw new Error(`READ gave ${this.#queue.usedBytes - 16} bytes`);
    this.#roundTrip(fuse.writeRelease(this.#request, this.#next(), nodeid, lo, hi), 16);
  }

  /** `n` GETATTR with `inFlight` under way all the time; operations a second. */
  flood(nodeid: number, n: number, inFlight: number): number {
    const queue = this.#queue;
    const started = performance.now();
    let sent = 0;
    // Only what differs is written anew: the driver must not be what limits the rate.
    const views: DataView[] = [];
    let requestBytes = 0;
    for (let slot = 0; slot < inFlight; slot++) {
      requestBytes = fuse.writeGetattr(queue.request(slot), 0, nodeid);
      views.push(fuse.viewOf(queue.request(slot)));
    }
    const send = (slot: number): void => {
      fuse.InHeader.unique.set(views[slot]!, 0, this.#next());
      queue.add(slot, requestBytes, fuse.GETATTR_REPLY_BYTES);
      sent++;
    };
    for (let slot = 0; slot < inFlight; slot++) send(slot);
    queue.suppressInterrupts();
    queue.publish();
    for (let done = 0; done < n; ) {
      let slot = this.#poll();
      for (; slot >= 0; slot = queue.next()) {
        done++;
        if (sent < n) send(slot);
      }
      queue.suppressInterrupts();
      queue.publish();
    }
    return (n * 1000) / (performance.now() - started);
  }
}
