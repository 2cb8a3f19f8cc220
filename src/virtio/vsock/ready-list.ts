/** Connections that have something to send to the guest, in turns. Each stands in it once. */
import type { Connection } from './connection.ts';

export class ReadyList {
  #first: Connection | undefined;
  #last: Connection | undefined;

  get first(): Connection | undefined {
    return this.#first;
  }

  /** Puts it last, unless it stands there already. */
  add(connection: Connection): void {
    if (connection.isReady) return;
    connection.isReady = true;
    connection.nextReady = undefined;
    if (this.#last === undefined) this.#first = connection;
    else this.#last.nextReady = connection;
    this.#last = connection;
  }

  shift(): void {
    const first = this.#first;
    if (first === undefined) return;
    this.#first = first.nextReady;
    if (this.#first === undefined) this.#last = undefined;
    first.nextReady = undefined;
    first.isReady = false;
  }

  remove(connection: Connection): void {
    if (!connection.isReady) return;
    let before: Connection | undefined;
    let at = this.#first;
    while (at !== undefined && at !== connection) {
      before = at;
      at = at.nextReady;
    }
    if (before === undefined) return this.shift();
    before.nextReady = connection.nextReady;
    if (this.#last === connection) this.#last = before;
    connection.nextReady = undefined;
    connection.isReady = false;
  }
}
