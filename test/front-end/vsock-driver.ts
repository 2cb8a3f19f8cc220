/** The guest's half of a vsock device on our vhost-user front end: packets as they are, good or bad. */
import { struct } from '../../src/wire/index.ts';
import type { FrontEnd } from './front-end.ts';
import { DESC_NEXT, DESC_WRITE, type FrontQueue } from './queue.ts';

/** Written down once more, from `linux/virtio_vsock.h`. */
export const PacketHeader = struct({
  srcCid: 'u64',
  dstCid: 'u64',
  srcPort: 'u32',
  dstPort: 'u32',
  len: 'u32',
  type: 'u16',
  op: 'u16',
  flags: 'u32',
  bufAlloc: 'u32',
  fwdCnt: 'u32',
});
export const PACKET_HEADER_BYTES = 44;
export const op = { request: 1, response: 2, rst: 3, shutdown: 4, rw: 5, creditUpdate: 6, creditRequest: 7 } as const;

export type PacketFields = Partial<Record<(typeof PacketHeader.fields)[number], number>>;

export interface Packet {
  readonly fields: Readonly<Record<(typeof PacketHeader.fields)[number], number>>;
  readonly data: Uint8Array;
}

export const GUEST_CID = 3;
export const HOST_CID = 2;

/** A packet as a guest sends it to the host, each field as told. */
export function packetBytes(fields: PacketFields, data: Uint8Array = new Uint8Array()): Uint8Array {
  const bytes = new Uint8Array(PACKET_HEADER_BYTES + data.length);
  const view = new DataView(bytes.buffer);
  const all = {
    srcCid: GUEST_CID,
    dstCid: HOST_CID,
    srcPort: 1000,
    dstPort: 1,
    len: data.length,
    type: 1,
    op: op.rw,
    flags: 0,
    bufAlloc: 262_144,
    fwdCnt: 0,
    ...fields,
  };
  for (const name of PacketHeader.fields) PacketHeader[name].set(view, 0, all[name]);
  bytes.set(data, PACKET_HEADER_BYTES);
  return bytes;
}

export function parsePacket(bytes: Uint8Array): Packet {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fields = Object.fromEntries(PacketHeader.fields.map((name) => [name, PacketHeader[name].get(view, 0)]));
  return { fields: fields as Packet['fields'], data: bytes.slice(PACKET_HEADER_BYTES) };
}

/** Options of `FrontEnd` for such a device. */
export const vsockFrontEnd = {
  queues: 2,
  indirect: false,
  queueSize: 64,
  requestBytes: 66_000,
  replyBytes: 4096,
} as const;

export class VsockDriver {
  readonly front: FrontEnd;
  readonly rx: FrontQueue;
  readonly tx: FrontQueue;
  readonly #freeTx: number[] = [];

  /** `front` is started. Gives the device every buffer that there is to receive in, unless `fills` is false. */
  constructor(front: FrontEnd, fills = true) {
    this.front = front;
    this.rx = front.queues[0]!;
    this.tx = front.queues[1]!;
    for (let slot = 0; slot < this.tx.slots; slot++) this.#freeTx.push(slot);
    if (fills) this.fill(this.rx.slots);
  }

  #setDesc(queue: FrontQueue, slot: number, part: number, offset: number, bytes: number, flags: number): void {
    const { table, at } = queue.chain(slot);
    const word = (at + part) * 4;
    const addr = this.front.memory.guestAddrOf(offset);
    table[word] = addr >>> 0;
    table[word + 1] = Math.floor(addr / 2 ** 32);
    table[word + 2] = bytes;
    table[word + 3] = flags | ((at + part + 1) << 16);
  }

  #bufferOf(queue: FrontQueue, slot: number, isReply: boolean): number {
    const { buffersOffset, requestBytes, replyBytes } = queue.layout;
    return buffersOffset + slot * (requestBytes + replyBytes) + (isReply ? requestBytes : 0);
  }

  /** Gives the device the buffers of the first `count` slots. */
  fill(count: number): void {
    for (let slot = 0; slot < count; slot++) this.give(slot);
    this.rx.publish();
  }

  give(slot: number, bytes: number = this.rx.layout.replyBytes): void {
    this.#setDesc(this.rx, slot, 0, this.#bufferOf(this.rx, slot, true), bytes, DESC_WRITE);
    this.rx.addHead(this.rx.headOf(slot));
  }

  /** Sends bytes that need not be a packet, header and data in descriptors of their own as Linux does. False: all slots are in flight. */
  sendBytes(bytes: Uint8Array, publishes = true): boolean {
    for (let slot = this.tx.next(); slot >= 0; slot = this.tx.next()) this.#freeTx.push(slot);
    const slot = this.#freeTx.pop();
    if (slot === undefined) return false;
    const offset = this.#bufferOf(this.tx, slot, false);
    this.tx.request(slot).set(bytes);
    const head = Math.min(bytes.length, PACKET_HEADER_BYTES);
    const hasData = bytes.length > head;
    this.#setDesc(this.tx, slot, 0, offset, head, hasData ? DESC_NEXT : 0);
    if (hasData) this.#setDesc(this.tx, slot, 1, offset + head, bytes.length - head, 0);
    this.tx.addHead(this.tx.headOf(slot));
    if (publishes) this.tx.publish();
    return true;
  }

  send(fields: PacketFields, data?: Uint8Array): boolean {
    return this.sendBytes(packetBytes(fields, data));
  }

  /** The next packet from the device, whose buffer is given to it again; undefined when there is none. */
  receive(): Packet | undefined {
    const slot = this.rx.next();
    if (slot < 0) return undefined;
    const packet = this.rx.usedBytes === 0 ? undefined : parsePacket(this.rx.reply(slot).slice(0, this.rx.usedBytes));
    this.give(slot);
    this.rx.publish();
    return packet ?? this.receive();
  }
}
