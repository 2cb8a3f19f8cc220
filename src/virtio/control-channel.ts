/** One vhost-user control socket: whole messages in, with their descriptors; replies out. */
import { close, MAX_FDS, receiveWithFds, send } from '../sys/index.ts';
import { EAGAIN, EINTR, EPROTO } from '../wire/index.ts';
import { FLAG_REPLY, MAX_PAYLOAD_BYTES, MessageHeader, VERSION, VERSION_MASK } from './messages.ts';

const HEADER_BYTES = MessageHeader.sizeBytes;

export const NO_MESSAGE = 0;
export const MESSAGE = 1;

export class ControlChannel {
  readonly fd: number;
  /** Of the message that `receive` completed last. */
  request = 0;
  flags = 0;
  payloadBytes = 0;
  /** Over the payload of that message, from 0 to `payloadBytes`. */
  readonly payload: DataView;
  /** Descriptors that came with it. Whoever takes one puts -1 in its place; `closeFds` closes the others. */
  readonly fds: number[] = [];
  /** Room for the payload of a reply. */
  readonly replyPayload: DataView;
  readonly #in = new Uint8Array(new ArrayBuffer(HEADER_BYTES + MAX_PAYLOAD_BYTES));
  readonly #header = new DataView(this.#in.buffer);
  readonly #payloadPart = this.#in.subarray(HEADER_BYTES);
  readonly #rest = new Uint8Array(new ArrayBuffer(MAX_PAYLOAD_BYTES));
  readonly #out = new Uint8Array(new ArrayBuffer(HEADER_BYTES + 64));
  readonly #outHeader = new DataView(this.#out.buffer);
  #have = 0;

  constructor(fd: number) {
    this.fd = fd;
    this.payload = new DataView(this.#in.buffer, HEADER_BYTES);
    this.replyPayload = new DataView(this.#out.buffer, HEADER_BYTES);
  }

  /**
   * Reads on. MESSAGE when a message is whole, NO_MESSAGE when more must come first, else the negative errno: -EPROTO for
   * what is no vhost-user message, -ECONNRESET and the like from the socket, and -EPROTO at its end within a message;
   * `isEnd` tells an orderly end.
   */
  receive(): number {
    if (this.#have === 0) this.closeFds();
    for (;;) {
      const inHeader = this.#have < HEADER_BYTES;
      const want = (inHeader ? HEADER_BYTES : HEADER_BYTES + this.payloadBytes) - this.#have;
      const received = this.#receiveSome(inHeader, want);
      if (received === -EAGAIN || received === -EINTR) return NO_MESSAGE;
      if (received < 0) return received;
      if (this.fds.length > MAX_FDS) return -EPROTO;
      if (received === 0) {
        this.isEnd = this.#have === 0;
        return -EPROTO;
      }
      this.#have += received;
      if (received < want) continue;
      if (inHeader) {
        this.request = MessageHeader.request.get(this.#header, 0);
        this.flags = MessageHeader.flags.get(this.#header, 0);
        this.payloadBytes = MessageHeader.size.get(this.#header, 0);
        if ((this.flags & VERSION_MASK) !== VERSION || (this.flags & FLAG_REPLY) !== 0) return -EPROTO;
        if (this.payloadBytes > MAX_PAYLOAD_BYTES) return -EPROTO;
        if (this.payloadBytes > 0) continue;
      }
      this.#have = 0;
      return MESSAGE;
    }
  }

  /** Whether the peer closed the connection between two messages. */
  isEnd = false;

  #receiveSome(inHeader: boolean, want: number): number {
    if (inHeader && this.#have === 0) return receiveWithFds(this.fd, this.#in, want, this.fds);
    const received = receiveWithFds(this.fd, this.#rest, want, this.fds);
    if (received > 0) {
      if (inHeader) this.#in.set(this.#rest.subarray(0, received), this.#have);
      else this.#payloadPart.set(this.#rest.subarray(0, received), this.#have - HEADER_BYTES);
    }
    return received;
  }

  /** Takes descriptor `index` of the message over, or -1 where there is none. */
  takeFd(index: number): number {
    const fd = this.fds[index] ?? -1;
    if (fd >= 0) this.fds[index] = -1;
    return fd;
  }

  /** Closes the descriptors that nobody took. */
  closeFds(): void {
    for (const fd of this.fds) if (fd >= 0) close(fd);
    this.fds.length = 0;
  }

  /** Answers the message with the first `bytes` bytes of `replyPayload`. False when the peer does not take it. */
  reply(bytes: number): boolean {
    MessageHeader.request.set(this.#outHeader, 0, this.request);
    MessageHeader.flags.set(this.#outHeader, 0, VERSION | FLAG_REPLY);
    MessageHeader.size.set(this.#outHeader, 0, bytes);
    return send(this.fd, this.#out, HEADER_BYTES + bytes) === HEADER_BYTES + bytes;
  }

  close(): void {
    this.closeFds();
    close(this.fd);
  }
}
