/** The smallest session: answers every request with its own body, FORGET with nothing, and holds what it is told to. */
import type { Exchange, HeldExchange, RequestHandler } from '../../src/fuse/index.ts';
import { FUSE_FORGET, InHeader, OutHeader } from './fuse-requests.ts';

/** An opcode of no FUSE: the request is held until the test answers it. */
export const OPCODE_HOLD = 0x7001;
/** The handler throws. */
export const OPCODE_THROW = 0x7002;
/** The handler forgets to answer. */
export const OPCODE_FORGET_TO_ANSWER = 0x7003;
/** The handler answers with more than fits. */
export const OPCODE_TOO_MUCH = 0x7004;

interface Held {
  exchange: HeldExchange;
  unique: number;
}

export class EchoHandler implements RequestHandler {
  handled = 0;
  resets = 0;
  flushes = 0;
  held: Held[] = [];
  /** Answered by `flushWaiters` with an empty reply when set. */
  answersOnFlush = false;
  readonly head = new Uint8Array(new ArrayBuffer(OutHeader.sizeBytes));
  readonly view = new DataView(this.head.buffer);

  handle(exchange: Exchange): void {
    this.handled++;
    const { view, requestBytes } = exchange;
    const opcode = InHeader.opcode.get(view, 0);
    const unique = InHeader.unique.get(view, 0);
    switch (opcode) {
      case FUSE_FORGET:
        exchange.noReply();
        return;
      case OPCODE_HOLD:
        this.held.push({ exchange: exchange.hold(), unique });
        return;
      case OPCODE_THROW:
        throw new Error('thrown on purpose');
      case OPCODE_FORGET_TO_ANSWER:
        return;
      default: {
        const most = opcode === OPCODE_TOO_MUCH ? requestBytes : exchange.replyCapacity - OutHeader.sizeBytes;
        const bodyBytes = Math.max(0, Math.min(requestBytes - InHeader.sizeBytes, most));
        this.#head(unique, bodyBytes);
        if (bodyBytes === 0) exchange.reply(this.head, OutHeader.sizeBytes);
        else {
          const body = exchange.request.subarray(InHeader.sizeBytes, InHeader.sizeBytes + bodyBytes);
          exchange.reply(this.head, OutHeader.sizeBytes, body);
        }
      }
    }
  }

  #head(unique: number, bodyBytes: number): void {
    OutHeader.len.set(this.view, 0, OutHeader.sizeBytes + bodyBytes);
    OutHeader.error.set(this.view, 0, 0);
    OutHeader.unique.set(this.view, 0, unique);
  }

  /** Answers a held request with an empty reply. */
  answer(held: Held): void {
    this.#head(held.unique, 0);
    held.exchange.reply(this.head, OutHeader.sizeBytes);
  }

  reset(): void {
    this.resets++;
  }

  flushWaiters(): void {
    this.flushes++;
    if (this.answersOnFlush) for (const held of this.held.splice(0)) this.answer(held);
  }

  tick(): void {
    // Nothing here is ever due.
  }

  nextDeadlineMs(): number {
    return Number.POSITIVE_INFINITY;
  }
}
