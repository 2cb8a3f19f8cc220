/** The other half of vhost-user: plays the virtual machine monitor and the guest's driver against any back end. */
import { close, connectUnix, POLLIN, pollOne, receiveWithFds, sendWithFds } from '../../src/sys/index.ts';
import * as vu from '../../src/virtio/messages.ts';
import { FrontMemory, type FrontRegion, type RegionSpec } from './memory.ts';
import { FrontQueue } from './queue.ts';

const TWO_32 = 2 ** 32;
const PAGE = 4096;
const MAX_MESSAGE_BYTES = 4096;
/** How long a back end that works may take on a machine that is busy with other things. */
const PATIENCE_MS = 60_000;

export interface FrontEndOptions {
  /** Whose message sequence to play. */
  flavour?: 'qemu' | 'cloud-hypervisor';
  /** Queues in all, the hiprio queue included. */
  queues?: number;
  queueSize?: number;
  /** One descriptor that points to a table per request, as Linux does it; or four plain ones. */
  indirect?: boolean;
  eventIdx?: boolean;
  /** Room per slot. */
  requestBytes?: number;
  replyBytes?: number;
  /** Guest addresses of the two regions: rings and tables in the first, request and reply buffers in the second. */
  ringsAt?: number;
  buffersAt?: number;
  seals?: number;
  /** Called while the front end waits: runs a back end that lives in the same thread. */
  pump?: () => void;
}

const roundUp = (n: number, to: number): number => Math.ceil(n / to) * to;

export class FrontEnd {
  readonly fd: number;
  readonly memory: FrontMemory;
  readonly queues: readonly FrontQueue[];
  /** The features that both ends have, after `handshake`: bits 0 to 31, and 32 to 63. */
  featuresLo = 0;
  featuresHi = 0;
  protocolFeatures = 0;
  readonly #flavour: 'qemu' | 'cloud-hypervisor';
  readonly #wantsEventIdx: boolean;
  readonly #pump: (() => void) | undefined;
  readonly #out = new Uint8Array(new ArrayBuffer(MAX_MESSAGE_BYTES));
  readonly #outView = new DataView(this.#out.buffer);
  readonly #in = new Uint8Array(new ArrayBuffer(MAX_MESSAGE_BYTES));
  readonly #inView = new DataView(this.#in.buffer);

  constructor(fd: number, options: FrontEndOptions = {}) {
    const { queues = 2, queueSize = 128, indirect = true, requestBytes = 4096, replyBytes = 8192 } = options;
    this.fd = fd;
    this.#flavour = options.flavour ?? 'qemu';
    this.#wantsEventIdx = options.eventIdx ?? true;
    this.#pump = options.pump;
    const descBytes = roundUp(queueSize * 16, PAGE);
    const availBytes = roundUp(6 + queueSize * 2, PAGE);
    const usedBytes = roundUp(6 + queueSize * 8, PAGE);
    const tablesBytes = roundUp(queueSize * 64, PAGE);
    const ringBytes = descBytes + availBytes + usedBytes + tablesBytes;
    const slots = indirect ? queueSize : Math.floor(queueSize / 4);
    const buffersBytes = roundUp(slots * (requestBytes + replyBytes), PAGE);
    const regions: RegionSpec[] = [
      { guestAddr: options.ringsAt ?? 0x10_0000, sizeBytes: ringBytes * queues },
      { guestAddr: options.buffersAt ?? 5 * TWO_32, sizeBytes: buffersBytes * queues },
    ];
    this.memory = new FrontMemory(regions, options.seals);
    this.queues = Array.from({ length: queues }, (_, i) => {
      const ring = i * ringBytes;
      return new FrontQueue(this.memory, i, queueSize, indirect, {
        descOffset: ring,
        availOffset: ring + descBytes,
        usedOffset: ring + descBytes + availBytes,
        tablesOffset: ring + descBytes + availBytes + usedBytes,
        buffersOffset: ringBytes * queues + i * buffersBytes,
        requestBytes,
        replyBytes,
      });
    });
  }

  /** Connects to a back end that listens on a unix socket. */
  static connect(path: string, options: FrontEndOptions = {}): FrontEnd {
    const fd = connectUnix(path);
    if (fd < 0) throw new Error(`connecting to "${path}" failed with errno ${-fd}`);
    return new FrontEnd(fd, options);
  }

  // --- messages ---

  /** Sends one message as it is: for tests that send nonsense. */
  sendRaw(request: number, flags: number, size: number, payload: Uint8Array, fds: readonly number[] = []): number {
    vu.MessageHeader.request.set(this.#outView, 0, request);
    vu.MessageHeader.flags.set(this.#outView, 0, flags);
    vu.MessageHeader.size.set(this.#outView, 0, size);
    this.#out.set(payload, vu.MessageHeader.sizeBytes);
    return sendWithFds(this.fd, this.#out, vu.MessageHeader.sizeBytes + payload.byteLength, fds);
  }

  /** Sends bytes that need not be a message. */
  sendBytes(bytes: Uint8Array, fds: readonly number[] = []): number {
    return sendWithFds(this.fd, bytes, bytes.byteLength, fds);
  }

  #send(request: number, payload: Uint8Array, fds: readonly number[] = [], needsReply = false): void {
    const flags = vu.VERSION | (needsReply ? vu.FLAG_NEED_REPLY : 0);
    const sent = this.sendRaw(request, flags, payload.byteLength, payload, fds);
    if (sent < 0) throw new Error(`sending vhost-user request ${request} failed with errno ${-sent}`);
  }

  /** Waits for one whole reply and returns its payload, which the next one overwrites. Throws when the peer hangs up. */
  receive(timeoutMs = PATIENCE_MS): DataView {
    let have = 0;
    let want: number = vu.MessageHeader.sizeBytes;
    const deadline = performance.now() + timeoutMs;
    while (have < want) {
      this.#pump?.();
      const left = deadline - performance.now();
      if (left <= 0) throw new Error('the back end did not answer in time');
      if ((pollOne(this.fd, POLLIN, this.#pump ? 0 : left) & POLLIN) === 0 && this.#pump) continue;
      const part = this.#in.subarray(have);
      const got = receiveWithFds(this.fd, part, want - have, []);
      if (got === 0) throw new Error('the back end hung up');
      if (got < 0) throw new Error(`receiving a vhost-user reply failed with errno ${-got}`);
      have += got;
      if (have === vu.MessageHeader.sizeBytes) want += vu.MessageHeader.size.get(this.#inView, 0);
    }
    if ((vu.MessageHeader.flags.get(this.#inView, 0) & vu.FLAG_REPLY) === 0)
      throw new Error('the back end sent what is not a reply');
    return new DataView(this.#in.buffer, vu.MessageHeader.sizeBytes, want - vu.MessageHeader.sizeBytes);
  }

  #payload(fields: readonly number[]): Uint8Array {
    const view = new DataView(new ArrayBuffer(fields.length * 8));
    for (const [i, field] of fields.entries()) vu.U64.value.set(view, i * 8, field);
    return new Uint8Array(view.buffer);
  }

  #state(index: number, num: number): Uint8Array {
    return new Uint8Array(Uint32Array.of(index, num).buffer);
  }

  /** A message without an answer, or with an acknowledgement where both ends can do that and it is asked for. */
  #tell(request: number, payload: Uint8Array, fds: readonly number[] = [], wantsAck = false): void {
    const ack = wantsAck && (this.protocolFeatures & vu.PROTOCOL_F_REPLY_ACK) !== 0;
    this.#send(request, payload, fds, ack);
    if (!ack) return;
    const error = vu.U64.value.get(this.receive(), 0);
    if (error !== 0) throw new Error(`the back end refused vhost-user request ${request}`);
  }

  #ask(request: number, payload: Uint8Array = new Uint8Array()): DataView {
    this.#send(request, payload);
    return this.receive();
  }

  // --- lives ---

  #getFeatures(): void {
    const offered = this.#ask(vu.GET_FEATURES);
    const wanted =
      (1 << vu.VIRTIO_RING_F_INDIRECT_DESC) |
      (this.#wantsEventIdx ? 1 << vu.VIRTIO_RING_F_EVENT_IDX : 0) |
      (1 << vu.VHOST_USER_F_PROTOCOL_FEATURES);
    this.featuresLo = (vu.U64.value.lo(offered, 0) & wanted) >>> 0;
    this.featuresHi = (vu.U64.value.hi(offered, 0) & (1 << (vu.VIRTIO_F_VERSION_1 - 32))) >>> 0;
  }

  /** What the monitor says when it connects, before the guest runs. */
  handshake(): void {
    if (this.#flavour === 'cloud-hypervisor') {
      this.#send(vu.SET_OWNER, new Uint8Array());
      this.#getFeatures();
      const offered = vu.U64.value.get(this.#ask(vu.GET_PROTOCOL_FEATURES), 0);
      this.protocolFeatures =
        offered & (vu.PROTOCOL_F_MQ | vu.PROTOCOL_F_REPLY_ACK | vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS);
      this.#send(vu.SET_PROTOCOL_FEATURES, this.#payload([this.protocolFeatures]));
      if ((this.protocolFeatures & vu.PROTOCOL_F_MQ) !== 0) this.#ask(vu.GET_QUEUE_NUM);
      return;
    }
    this.#getFeatures();
    const offered = vu.U64.value.get(this.#ask(vu.GET_PROTOCOL_FEATURES), 0);
    this.protocolFeatures = offered & (vu.PROTOCOL_F_MQ | vu.PROTOCOL_F_REPLY_ACK | vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS);
    this.#send(vu.SET_PROTOCOL_FEATURES, this.#payload([this.protocolFeatures]));
    if ((this.protocolFeatures & vu.PROTOCOL_F_MQ) !== 0) this.#ask(vu.GET_QUEUE_NUM);
    if ((this.protocolFeatures & vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS) !== 0) this.#ask(vu.GET_MAX_MEM_SLOTS);
    this.#send(vu.SET_OWNER, new Uint8Array());
    this.#getFeatures();
    for (const queue of this.queues) {
      this.#tell(vu.SET_VRING_CALL, this.#payload([queue.index]), [queue.callFd]);
      this.#tell(vu.SET_VRING_ERR, this.#payload([queue.index]), [queue.errFd]);
    }
    for (const queue of this.queues) this.#tell(vu.SET_VRING_CALL, this.#payload([queue.index]), [queue.callFd]);
  }

  #setFeatures(): void {
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, this.featuresLo, true);
    view.setUint32(4, this.featuresHi, true);
    this.#tell(vu.SET_FEATURES, new Uint8Array(view.buffer));
    const eventIdx = (this.featuresLo & (1 << vu.VIRTIO_RING_F_EVENT_IDX)) !== 0;
    for (const queue of this.queues) queue.hasEventIdx = eventIdx;
  }

  /** Tells all regions: by SET_MEM_TABLE, or one by one where the back end can do that and `bySlots` is set. */
  setMemory(bySlots = false, regions: readonly FrontRegion[] = this.memory.regions): void {
    const { fd } = this.memory;
    const rows = regions.map((r) => [r.guestAddr, r.sizeBytes, r.frontendAddr, r.fileOffset]);
    if (bySlots) {
      for (const row of rows) this.#tell(vu.ADD_MEM_REG, this.#payload([0, ...row]), [fd], true);
      return;
    }
    const payload = this.#payload([rows.length, ...rows.flat()]);
    this.#tell(
      vu.SET_MEM_TABLE,
      payload,
      Array.from({ length: rows.length }, () => fd),
      true,
    );
  }

  /** Takes regions away again, one by one. */
  removeMemory(regions: readonly FrontRegion[] = this.memory.regions): void {
    for (const r of regions)
      this.#tell(vu.REM_MEM_REG, this.#payload([0, r.guestAddr, r.sizeBytes, r.frontendAddr, r.fileOffset]), [], true);
  }

  #startQueue(queue: FrontQueue, base: number): void {
    const { layout } = queue;
    this.#tell(vu.SET_VRING_NUM, this.#state(queue.index, queue.size));
    this.#tell(vu.SET_VRING_BASE, this.#state(queue.index, base));
    const at = (offset: number): number => this.memory.frontendAddrOf(offset);
    const addresses = [at(layout.descOffset), at(layout.usedOffset), at(layout.availOffset), 0];
    this.#tell(vu.SET_VRING_ADDR, this.#payload([queue.index, ...addresses]));
  }

  /** What the monitor says when the guest's driver starts, or when a stopped guest goes on from `bases`. */
  start(bases: readonly number[] = this.queues.map(() => 0)): void {
    this.#setFeatures();
    if (this.#flavour === 'cloud-hypervisor') {
      this.setMemory((this.protocolFeatures & vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS) !== 0);
      for (const queue of this.queues) {
        this.#startQueue(queue, bases[queue.index]!);
        this.#tell(vu.SET_VRING_CALL, this.#payload([queue.index]), [queue.callFd]);
        this.#tell(vu.SET_VRING_KICK, this.#payload([queue.index]), [queue.kickFd]);
      }
      for (const queue of this.queues) this.#tell(vu.SET_VRING_ENABLE, this.#state(queue.index, 1), [], true);
      this.#pump?.();
      return;
    }
    this.setMemory();
    for (const queue of this.queues) {
      this.#startQueue(queue, bases[queue.index]!);
      this.#tell(vu.SET_VRING_KICK, this.#payload([queue.index]), [queue.kickFd]);
    }
    for (const queue of this.queues) this.#tell(vu.SET_VRING_ENABLE, this.#state(queue.index, 1));
    for (const queue of this.queues) this.#tell(vu.SET_VRING_CALL, this.#payload([queue.index]), [queue.callFd]);
    this.#pump?.();
  }

  /** Stops all rings, as for QMP `stop` and for a reset; returns the base of each. */
  stop(): number[] {
    for (const queue of this.queues) this.#tell(vu.SET_VRING_ENABLE, this.#state(queue.index, 0));
    return this.queues.map((queue) => {
      const state = this.#ask(vu.GET_VRING_BASE, this.#state(queue.index, 0));
      return vu.VringState.num.get(state, 0);
    });
  }

  /** A message that makes sure that the back end has taken all the ones before it. */
  settle(): void {
    this.#ask(vu.GET_FEATURES);
  }

  /** Waits for the next finished slot of a queue; -1 when `timeoutMs` passed. */
  complete(queue: FrontQueue, timeoutMs = PATIENCE_MS): number {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const slot = queue.next();
      if (slot >= 0) return slot;
      const left = deadline - performance.now();
      if (left <= 0) return -1;
      if (this.#pump) this.#pump();
      else queue.wait(Math.ceil(left));
    }
  }

  /** One request on a queue and its reply: `bytes` of the slot's request buffer, up to `replyBytes` back. */
  roundTrip(queue: FrontQueue, slot: number, requestBytes: number, replyBytes: number): number {
    queue.add(slot, requestBytes, replyBytes);
    queue.publish();
    const done = this.complete(queue);
    if (done !== slot) throw new Error(`the back end finished slot ${done} instead of ${slot}`);
    return queue.usedBytes;
  }

  close(): void {
    for (const queue of this.queues) for (const fd of [queue.kickFd, queue.callFd, queue.errFd]) close(fd);
    this.memory.close();
    close(this.fd);
  }
}
