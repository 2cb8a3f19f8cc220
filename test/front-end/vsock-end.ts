/** A host's end of a vsock connection that does what a test says. */
import type { Connection } from '../../src/virtio/vsock/connection.ts';
import type { PendingEnd } from '../../src/virtio/vsock/mux.ts';
import { EAGAIN } from '../../src/wire/index.ts';

export class ToyEnd implements PendingEnd {
  connection: Connection | undefined;
  /** How many more bytes it takes; what it took. */
  room = Number.POSITIVE_INFINITY;
  readonly taken: number[] = [];
  /** What it has for the guest; whether that is all. */
  readonly toGive: number[] = [];
  hasEnded = false;
  gone = false;
  /** Answers instead of taking or giving. */
  takesErrno = 0;
  givesErrno = 0;
  openedAt: number | undefined;
  guestEnded = false;
  overBy: string | undefined;

  /** Called whenever it is, as a service may act then. */
  during: () => void = () => undefined;

  #checkLives(): void {
    if (this.overBy !== undefined) throw new Error(`asked after it was over (${this.overBy})`);
  }

  attach(connection: Connection): void {
    this.connection = connection;
  }

  take(bytes: Uint8Array, count: number): number {
    this.#checkLives();
    if (this.takesErrno !== 0) return -this.takesErrno;
    const taken = Math.min(count, this.room);
    this.room -= taken;
    for (let i = 0; i < taken; i++) this.taken.push(bytes[i]!);
    this.during();
    return taken;
  }

  give(into: Uint8Array, most: number): number {
    this.#checkLives();
    if (this.givesErrno !== 0) return -this.givesErrno;
    const part = this.toGive.splice(0, most);
    into.set(part);
    this.during();
    if (part.length > 0) return part.length;
    return this.hasEnded ? 0 : -EAGAIN;
  }

  isGone(): boolean {
    return this.gone;
  }

  opened(hostPort: number): void {
    this.#checkLives();
    this.openedAt = hostPort;
  }

  endOfGuest(): void {
    this.#checkLives();
    this.guestEnded = true;
    this.during();
  }

  guestIsDeaf(): void {
    this.#checkLives();
    this.during();
  }

  over(reason: string): void {
    this.#checkLives();
    this.overBy = reason;
  }
}
