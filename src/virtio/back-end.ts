/**
 * The back end of vhost-user for one connection: answers the control messages, owns the guest's memory and the queues.
 * What the queues carry is the device's business.
 *
 * A message that is not valid is refused as a whole: nothing of it takes effect, its descriptors are closed. Where the
 * front end asked to be told (REPLY_ACK), it is told; otherwise the connection ends, which is the only other way of saying
 * it. Descriptors that a message brings beyond what its row states make it invalid.
 */
import { close, EPOLLET, EPOLLIN, isEventfd, setNonBlocking } from '../sys/index.ts';
import { EBUSY, EINVAL, ENOSPC, EOPNOTSUPP } from '../wire/index.ts';
import { ControlChannel, MESSAGE, NO_MESSAGE } from './control-channel.ts';
import { GuestMemory, mapRegion, type Region, type RegionSpec } from './guest-memory.ts';
import * as vu from './messages.ts';
import { MAX_QUEUE_SIZE, Virtqueue } from './virtqueue.ts';

/** What tells a device that descriptors are readable: the device loop, or a test. */
export interface FdWatcher {
  /** `events`: those of epoll, EPOLLIN by default. */
  watch(fd: number, onReadable: () => void, events?: number): void;
  unwatch(fd: number): void;
}

/** What the device on top hears. */
interface BackEndEvents {
  /** The queue may be served from now on. `forgets`: what was in flight on it, and the driver that sent it, are gone. */
  queueRuns(queue: Virtqueue, forgets: boolean): void;
  /** The queue is about to stop; the last chance to give something back on it. */
  queueStops(queue: Virtqueue): void;
  /** The connection is closed and the memory unmapped. */
  closed(reason: string): void;
}

export interface BackEndOptions {
  /** Queues that are offered. */
  queues: number;
  /** Whether memory is accepted that another process could truncate. Touching truncated memory kills this process. */
  allowUnsealed: boolean;
}

/** Regions that ADD_MEM_REG can add. */
const MAX_MEM_SLOTS = 32;

const FEATURES_LO =
  ((1 << vu.VIRTIO_RING_F_INDIRECT_DESC) |
    (1 << vu.VIRTIO_RING_F_EVENT_IDX) |
    (1 << vu.VHOST_USER_F_PROTOCOL_FEATURES)) >>>
  0;
const FEATURES_HI = 1 << (vu.VIRTIO_F_VERSION_1 - 32);
const PROTOCOL_FEATURES = vu.PROTOCOL_F_MQ | vu.PROTOCOL_F_REPLY_ACK | vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS;

/** 0 or a negative errno; of rows that answer with data: the bytes of the answer. */
type Handler = (backEnd: BackEnd, channel: ControlChannel) => number;

/** One message: what it must look like, and what answers it. */
interface Row {
  readonly code: number;
  readonly name: string;
  readonly payloadBytes: readonly [least: number, most: number];
  readonly fds: readonly [least: number, most: number];
  /** Whether the answer is data, always; otherwise there is an acknowledgement where it was asked for. */
  readonly answersData?: boolean;
  readonly handler: Handler;
}

const none = [0, 0] as const;
const u64 = [vu.U64.sizeBytes, vu.U64.sizeBytes] as const;
const state = [vu.VringState.sizeBytes, vu.VringState.sizeBytes] as const;
const slot = [vu.SingleMemRegion.sizeBytes, vu.SingleMemRegion.sizeBytes] as const;
const address = [vu.VringAddr.sizeBytes, vu.VringAddr.sizeBytes] as const;
const table = [vu.MemTableHead.sizeBytes, vu.MAX_PAYLOAD_BYTES] as const;
const regions = [0, vu.MEM_TABLE_MAX_REGIONS] as const;
const maybeFd = [0, 1] as const;

const answerU64 = (channel: ControlChannel, lo: number, hi = 0): number => {
  channel.replyPayload.setUint32(0, lo, true);
  channel.replyPayload.setUint32(4, hi, true);
  return vu.U64.sizeBytes;
};

/** Every message that is answered. What is missing here was not offered, and is refused. */
export const rows: readonly Row[] = [
  {
    code: vu.GET_FEATURES,
    name: 'GET_FEATURES',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (_, channel) => answerU64(channel, FEATURES_LO, FEATURES_HI),
  },
  {
    code: vu.SET_FEATURES,
    name: 'SET_FEATURES',
    payloadBytes: u64,
    fds: none,
    handler: (backEnd, { payload }) => backEnd.setFeatures(vu.U64.value.lo(payload, 0), vu.U64.value.hi(payload, 0)),
  },
  { code: vu.SET_OWNER, name: 'SET_OWNER', payloadBytes: none, fds: none, handler: () => 0 },
  {
    code: vu.RESET_OWNER,
    name: 'RESET_OWNER',
    payloadBytes: none,
    fds: none,
    handler: (backEnd) => backEnd.resetOwner(),
  },
  {
    code: vu.SET_MEM_TABLE,
    name: 'SET_MEM_TABLE',
    payloadBytes: table,
    fds: regions,
    handler: (backEnd, channel) => backEnd.setMemTable(channel),
  },
  {
    code: vu.SET_VRING_NUM,
    name: 'SET_VRING_NUM',
    payloadBytes: state,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setVringNum(vu.VringState.index.get(payload, 0), vu.VringState.num.get(payload, 0)),
  },
  {
    code: vu.SET_VRING_ADDR,
    name: 'SET_VRING_ADDR',
    payloadBytes: address,
    fds: none,
    handler: (backEnd, { payload }) => backEnd.setVringAddr(payload),
  },
  {
    code: vu.SET_VRING_BASE,
    name: 'SET_VRING_BASE',
    payloadBytes: state,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setVringBase(vu.VringState.index.get(payload, 0), vu.VringState.num.get(payload, 0)),
  },
  {
    code: vu.GET_VRING_BASE,
    name: 'GET_VRING_BASE',
    payloadBytes: state,
    fds: none,
    answersData: true,
    handler: (backEnd, channel) => backEnd.getVringBase(channel),
  },
  {
    code: vu.SET_VRING_KICK,
    name: 'SET_VRING_KICK',
    payloadBytes: u64,
    fds: maybeFd,
    handler: (backEnd, channel) => backEnd.setVringKick(channel),
  },
  {
    code: vu.SET_VRING_CALL,
    name: 'SET_VRING_CALL',
    payloadBytes: u64,
    fds: maybeFd,
    handler: (backEnd, channel) => backEnd.setVringFd(channel, 'callFd'),
  },
  {
    code: vu.SET_VRING_ERR,
    name: 'SET_VRING_ERR',
    payloadBytes: u64,
    fds: maybeFd,
    handler: (backEnd, channel) => backEnd.setVringFd(channel, 'errFd'),
  },
  {
    code: vu.GET_PROTOCOL_FEATURES,
    name: 'GET_PROTOCOL_FEATURES',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (_, channel) => answerU64(channel, PROTOCOL_FEATURES),
  },
  {
    code: vu.SET_PROTOCOL_FEATURES,
    name: 'SET_PROTOCOL_FEATURES',
    payloadBytes: u64,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setProtocolFeatures(vu.U64.value.lo(payload, 0), vu.U64.value.hi(payload, 0)),
  },
  {
    code: vu.GET_QUEUE_NUM,
    name: 'GET_QUEUE_NUM',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (backEnd, channel) => answerU64(channel, backEnd.queues.length),
  },
  {
    code: vu.SET_VRING_ENABLE,
    name: 'SET_VRING_ENABLE',
    payloadBytes: state,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setVringEnable(vu.VringState.index.get(payload, 0), vu.VringState.num.get(payload, 0)),
  },
  {
    code: vu.GET_MAX_MEM_SLOTS,
    name: 'GET_MAX_MEM_SLOTS',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (_, channel) => answerU64(channel, MAX_MEM_SLOTS),
  },
  {
    code: vu.ADD_MEM_REG,
    name: 'ADD_MEM_REG',
    payloadBytes: slot,
    fds: [1, 1],
    handler: (backEnd, channel) => backEnd.addMemReg(channel),
  },
  {
    code: vu.REM_MEM_REG,
    name: 'REM_MEM_REG',
    payloadBytes: slot,
    fds: maybeFd,
    handler: (backEnd, { payload }) => backEnd.remMemReg(payload),
  },
];

const rowByCode: ReadonlyMap<number, Row> = new Map(rows.map((row) => [row.code, row]));

/** A region as it stands in `payload` from `at` on; both region structs end alike. */
const regionSpec = (payload: DataView, at: number): RegionSpec => ({
  guestAddr: vu.MemRegion.guestPhysAddr.get(payload, at),
  sizeBytes: vu.MemRegion.memorySize.get(payload, at),
  frontendAddr: vu.MemRegion.userspaceAddr.get(payload, at),
  fileOffset: vu.MemRegion.mmapOffset.get(payload, at),
});

export class BackEnd {
  readonly memory = new GuestMemory();
  readonly queues: readonly Virtqueue[];
  readonly #channel: ControlChannel;
  readonly #watcher: FdWatcher;
  readonly #events: BackEndEvents;
  readonly #allowUnsealed: boolean;
  /** Where each queue shall start: as SET_VRING_BASE said, or undefined for where it stopped. */
  readonly #bases: (number | undefined)[] = [];
  /** Whether a kick descriptor came since the queue was stopped. */
  readonly #wantsStart: boolean[] = [];
  #hasProtocolFeatures = false;
  #hasReplyAck = false;
  #isClosed = false;

  /**
   * Takes `controlFd` over: an accepted control connection. `request` is where the queues put what they take,
   * `requestWords` is over the same bytes.
   */
  constructor(
    controlFd: number,
    options: BackEndOptions,
    watcher: FdWatcher,
    events: BackEndEvents,
    request: Uint8Array,
    requestWords: Uint32Array,
  ) {
    this.#channel = new ControlChannel(controlFd);
    this.#watcher = watcher;
    this.#events = events;
    this.#allowUnsealed = options.allowUnsealed;
    this.queues = Array.from(
      { length: options.queues },
      (_, i) => new Virtqueue(i, this.memory, request, requestWords),
    );
    watcher.watch(controlFd, () => this.serveControl());
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Answers every control message that is there. */
  serveControl(): void {
    const channel = this.#channel;
    while (!this.#isClosed) {
      const got = channel.receive();
      if (got === NO_MESSAGE) return;
      if (got !== MESSAGE) {
        this.close(channel.isEnd ? 'the front end hung up' : `the control connection failed with errno ${-got}`);
        return;
      }
      if (!this.#answer(channel)) return;
      channel.closeFds();
    }
  }

  #answer(channel: ControlChannel): boolean {
    const row = rowByCode.get(channel.request);
    const name = row?.name ?? `request ${channel.request}`;
    const value = row === undefined ? -EOPNOTSUPP : this.#call(row, channel);
    if (row?.answersData === true) {
      if (value >= 0 && channel.reply(value)) return true;
      this.close(value < 0 ? `${name} was refused with errno ${-value}` : `the front end does not take replies`);
      return false;
    }
    if (this.#hasReplyAck && (channel.flags & vu.FLAG_NEED_REPLY) !== 0) {
      if (channel.reply(answerU64(channel, value < 0 ? 1 : 0))) return true;
      this.close('the front end does not take replies');
      return false;
    }
    if (value >= 0) return true;
    this.close(`${name} was refused with errno ${-value}`);
    return false;
  }

  #call(row: Row, channel: ControlChannel): number {
    const [least, most] = row.payloadBytes;
    if (channel.payloadBytes < least || channel.payloadBytes > most) return -EINVAL;
    const [fewest, mostFds] = row.fds;
    if (channel.fds.length < fewest || channel.fds.length > mostFds) return -EINVAL;
    return row.handler(this, channel);
  }

  // --- features ---

  setFeatures(lo: number, hi: number): number {
    if ((lo & ~FEATURES_LO) !== 0 || (hi & ~FEATURES_HI) !== 0) return -EINVAL;
    this.#hasProtocolFeatures = (lo & (1 << vu.VHOST_USER_F_PROTOCOL_FEATURES)) !== 0;
    const hasEventIdx = (lo & (1 << vu.VIRTIO_RING_F_EVENT_IDX)) !== 0;
    const hasIndirect = (lo & (1 << vu.VIRTIO_RING_F_INDIRECT_DESC)) !== 0;
    for (const queue of this.queues)
      if (queue.isStarted && (queue.hasEventIdx !== hasEventIdx || queue.hasIndirect !== hasIndirect)) return -EBUSY;
    for (const queue of this.queues) {
      queue.hasEventIdx = hasEventIdx;
      queue.hasIndirect = hasIndirect;
    }
    return 0;
  }

  setProtocolFeatures(lo: number, hi: number): number {
    if ((lo & ~PROTOCOL_FEATURES) !== 0 || hi !== 0) return -EINVAL;
    this.#hasReplyAck = (lo & vu.PROTOCOL_F_REPLY_ACK) !== 0;
    return 0;
  }

  /** Disables all rings, which is all that the specification still asks of RESET_OWNER. */
  resetOwner(): number {
    for (const queue of this.queues) {
      this.#stop(queue);
      queue.isEnabled = false;
    }
    return 0;
  }

  // --- memory ---

  setMemTable(channel: ControlChannel): number {
    const { payload, payloadBytes, fds } = channel;
    const count = vu.MemTableHead.nregions.get(payload, 0);
    if (count > vu.MEM_TABLE_MAX_REGIONS || count !== fds.length) return -EINVAL;
    if (payloadBytes < vu.MemTableHead.sizeBytes + count * vu.MemRegion.sizeBytes) return -EINVAL;
    const specs = Array.from({ length: count }, (_, i) =>
      regionSpec(payload, vu.MemTableHead.sizeBytes + i * vu.MemRegion.sizeBytes),
    );
    const mapped: Region[] = [];
    let error = 0;
    for (const [i, spec] of specs.entries()) {
      const region = mapRegion(spec, fds[i]!, this.#allowUnsealed);
      if (typeof region === 'number') {
        error = region;
        break;
      }
      mapped.push(region);
    }
    if (error === 0) error = this.memory.replace(mapped, specs);
    if (error < 0) {
      for (const region of mapped) region.unmap();
      return error;
    }
    this.#translateAll();
    return 0;
  }

  addMemReg(channel: ControlChannel): number {
    if (this.memory.regions.length >= MAX_MEM_SLOTS) return -ENOSPC;
    const spec = regionSpec(channel.payload, vu.U64.sizeBytes);
    const region = mapRegion(spec, channel.fds[0]!, this.#allowUnsealed);
    if (typeof region === 'number') return region;
    const error = this.memory.add(region, spec);
    if (error < 0) region.unmap();
    else this.#translateAll();
    return error;
  }

  remMemReg(payload: DataView): number {
    const error = this.memory.remove(regionSpec(payload, vu.U64.sizeBytes));
    this.#translateAll();
    return error;
  }

  /** The table has changed: every saved ring address means something else now. */
  #translateAll(): void {
    for (const queue of this.queues) {
      const ran = queue.isRunning;
      queue.translate();
      if (!this.#tryStart(queue) && !ran && queue.isRunning) this.#events.queueRuns(queue, false);
    }
  }

  // --- rings ---

  #queue(index: number): Virtqueue | undefined {
    return this.queues[index];
  }

  /** Starts the queue if all that it needs has come. Returns whether it did. */
  #tryStart(queue: Virtqueue): boolean {
    if (queue.isStarted || this.#wantsStart[queue.index] !== true || !queue.translate()) return false;
    const forgets = queue.start(this.#bases[queue.index] ?? queue.base);
    this.#bases[queue.index] = undefined;
    this.#wantsStart[queue.index] = false;
    if (!this.#hasProtocolFeatures) queue.isEnabled = true;
    if (queue.isRunning || forgets) this.#events.queueRuns(queue, forgets);
    return true;
  }

  #stop(queue: Virtqueue): void {
    if (queue.isStarted) this.#events.queueStops(queue);
    queue.stop();
    this.#setKick(queue, -1);
    this.#wantsStart[queue.index] = false;
  }

  setVringNum(index: number, num: number): number {
    const queue = this.#queue(index);
    if (queue === undefined || num < 1 || num > MAX_QUEUE_SIZE || (num & (num - 1)) !== 0) return -EINVAL;
    if (queue.isStarted) return queue.num === num ? 0 : -EBUSY;
    queue.num = num;
    queue.translate();
    return 0;
  }

  setVringAddr(payload: DataView): number {
    const queue = this.#queue(vu.VringAddr.index.get(payload, 0));
    const desc = vu.VringAddr.desc.get(payload, 0);
    const avail = vu.VringAddr.avail.get(payload, 0);
    const used = vu.VringAddr.used.get(payload, 0);
    if (queue === undefined || vu.VringAddr.flags.get(payload, 0) !== 0) return -EINVAL;
    if (!Number.isSafeInteger(desc) || !Number.isSafeInteger(avail) || !Number.isSafeInteger(used)) return -EINVAL;
    if (desc % 16 !== 0 || avail % 2 !== 0 || used % 4 !== 0) return -EINVAL;
    queue.descAddr = desc;
    queue.availAddr = avail;
    queue.usedAddr = used;
    const found = queue.translate();
    this.#tryStart(queue);
    return found || this.memory.regions.length === 0 || queue.num === 0 ? 0 : -EINVAL;
  }

  setVringBase(index: number, base: number): number {
    const queue = this.#queue(index);
    if (queue === undefined || base > 0xffff) return -EINVAL;
    if (queue.isStarted) return -EBUSY;
    this.#bases[index] = base;
    return 0;
  }

  /** Stops the ring and says how far it was taken; what is in flight stays ours (virtqueue.ts, `start`). */
  getVringBase(channel: ControlChannel): number {
    const index = vu.VringState.index.get(channel.payload, 0);
    const queue = this.#queue(index);
    if (queue === undefined) return -EINVAL;
    this.#stop(queue);
    vu.VringState.index.set(channel.replyPayload, 0, index);
    vu.VringState.num.set(channel.replyPayload, 0, queue.base);
    return vu.VringState.sizeBytes;
  }

  setVringEnable(index: number, enable: number): number {
    const queue = this.#queue(index);
    if (queue === undefined || enable > 1) return -EINVAL;
    const ran = queue.isRunning;
    if (enable === 0 && ran) this.#events.queueStops(queue);
    queue.isEnabled = enable === 1;
    if (!ran && queue.isRunning) this.#events.queueRuns(queue, false);
    return 0;
  }

  /** The queue of SET_VRING_KICK, CALL and ERR, if the message is as it must be. */
  #queueOfFdMessage({ payload, fds }: ControlChannel): Virtqueue | undefined {
    const lo = vu.U64.value.lo(payload, 0);
    if (vu.U64.value.hi(payload, 0) !== 0 || (lo & ~(vu.VRING_INDEX_MASK | vu.VRING_NO_FD)) !== 0) return undefined;
    const wantsFd = (lo & vu.VRING_NO_FD) === 0;
    if (wantsFd !== (fds.length === 1)) return undefined;
    // epoll takes no regular file, a write to a pipe may block, a read from a socket steals: eventfds do none of that.
    if (wantsFd && !isEventfd(fds[0]!)) return undefined;
    return this.#queue(lo & vu.VRING_INDEX_MASK);
  }

  #setKick(queue: Virtqueue, fd: number): void {
    if (queue.kickFd >= 0) {
      this.#watcher.unwatch(queue.kickFd);
      close(queue.kickFd);
    }
    queue.kickFd = fd;
    if (fd < 0) return;
    // Never read: its flags are the front end's too, so that a read could block, and one of a semaphore takes 1 only.
    this.#watcher.watch(fd, () => {}, EPOLLIN | EPOLLET);
  }

  setVringKick(channel: ControlChannel): number {
    const queue = this.#queueOfFdMessage(channel);
    if (queue === undefined) return -EINVAL;
    this.#setKick(queue, channel.takeFd(0));
    this.#wantsStart[queue.index] = !queue.isStarted;
    this.#tryStart(queue);
    return 0;
  }

  setVringFd(channel: ControlChannel, which: 'callFd' | 'errFd'): number {
    const queue = this.#queueOfFdMessage(channel);
    if (queue === undefined) return -EINVAL;
    if (queue[which] >= 0) close(queue[which]);
    const fd = channel.takeFd(0);
    if (fd >= 0) setNonBlocking(fd, true);
    queue[which] = fd;
    return 0;
  }

  /** Ends the connection: closes what it brought, unmaps the memory. */
  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#watcher.unwatch(this.#channel.fd);
    for (const queue of this.queues) {
      this.#setKick(queue, -1);
      if (queue.callFd >= 0) close(queue.callFd);
      if (queue.errFd >= 0) close(queue.errFd);
      queue.callFd = -1;
      queue.errFd = -1;
      queue.forget();
    }
    this.#channel.close();
    this.memory.clear();
    this.#events.closed(reason);
  }
}
