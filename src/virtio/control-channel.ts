/** One vhost-user control socket: whole messages in, with their descriptors; replies out. */
import { close, MAX_FDS, receiveWithFds, send } from '../sys/index.ts';
import { EAGAIN, EINTR, EPROTO } from '../wire/index.ts';
import { FLAG_REPLY, MAX_PAYLOAD_BYTES, MessageHeader, VERSION, VERSION_MASK } from './messages.ts';

const HEADER_BYTES = MessageHeader.sizeBytes;

export const NO_MESSAGE = 0;
export const MESSAGE = 1;
const PARTIAL = 2;

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
  readonly #peeks: boolean;
  /** Bytes of the message that still stand in the socket, for `finish` to take: all of them, or none. */
  peekedBytes = 0;

  /** `peeks`: messages are left in the socket, for a successor to find, until whoever has answered them takes them out. */
  constructor(fd: number, peeks = false) {
    this.fd = fd;
    this.#peeks = peeks;
    this.payload = new DataView(this.#in.buffer, HEADER_BYTES);
    this.replyPayload = new DataView(this.#out.buffer, HEADER_BYTES);
  }

  /**
   * Reads on. MESSAGE when a message is whole, NO_MESSAGE when more must come first, else the negative errno: -EPROTO for
   * what is no vhost-user message, -ECONNRESET and the like from the socket, and -EPROTO at its end within a message;
   * `isEnd` tells an orderly end.
   */
  receive(): number {
    if (this.#have === 0) {
      this.closeFds();
      this.peekedBytes = 0;
      const peeked = this.#peeks ? this.#peek() : PARTIAL;
      if (peeked !== PARTIAL) return peeked;
    }
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
        if (this.#takeHeader() < 0) return -EPROTO;
        if (this.payloadBytes > 0) continue;
      }
      this.#have = 0;
      return MESSAGE;
    }
  }

  /**
   * Looks at the next message. PARTIAL for one that does not stand there whole, as every front end sends it, header and
   * payload at once: what was sent in pieces is taken in pieces.
   */
  #peek(): number {
    const head = receiveWithFds(this.fd, this.#in, HEADER_BYTES, this.fds, MAX_FDS, 'peek');
    if (head === -EAGAIN || head === -EINTR) return NO_MESSAGE;
    if (head < 0) return head;
    if (head === 0) {
      this.isEnd = true;
      return -EPROTO;
    }
    const error = head < HEADER_BYTES ? PARTIAL : this.#takeHeader();
    const whole = HEADER_BYTES + this.payloadBytes;
    if (error === 0 && this.payloadBytes > 0) {
      this.closeFds();
      const got = receiveWithFds(this.fd, this.#in, whole, this.fds, MAX_FDS, 'peek');
      if (got !== whole) {
        this.closeFds();
        return PARTIAL;
      }
    }
    if (error === 0) this.peekedBytes = whole;
    else this.closeFds();
    return error === 0 ? MESSAGE : error;
  }

  /** 0, or -EPROTO for what is no header of vhost-user. */
  #takeHeader(): number {
    this.request = MessageHeader.request.get(this.#header, 0);
    this.flags = MessageHeader.flags.get(this.#header, 0);
    this.payloadBytes = MessageHeader.size.get(this.#header, 0);
    if ((this.flags & VERSION_MASK) !== VERSION || (this.flags & FLAG_REPLY) !== 0) return -EPROTO;
    return this.payloadBytes > MAX_PAYLOAD_BYTES ? -EPROTO : 0;
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

  /**
   * Of a message that brings none: Linux shows whoever peeks the descriptors of the message after it (af_unix.c,
   * `unix_stream_read_generic`, goes on to the next buffer whatever was asked for).
   */
  closeStrangers(): void {
    if (this.peekedBytes > 0) this.closeFds();
  }

  /** Answers the message with the first `bytes` bytes of `replyPayload`. False when the peer does not take it. */
  reply(bytes: number): boolean {
    const frame = this.replyFrame(bytes);
    return send(this.fd, frame) === frame.byteLength;
  }

  /** That answer, for somebody else to send. Written over by the next one. */
  replyFrame(bytes: number): Uint8Array {
    MessageHeader.request.set(this.#outHeader, 0, this.request);
    MessageHeader.flags.set(this.#outHeader, 0, VERSION | FLAG_REPLY);
    MessageHeader.size.set(this.#outHeader, 0, bytes);
    return this.#out.subarray(0, HEADER_BYTES + bytes);
  }

  close(): void {
    this.closeFds();
    close(this.fd);
  }
}
