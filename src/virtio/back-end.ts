/**
 * The back end of vhost-user for one connection: answers the control messages, owns the guest's memory and the queues.
 * What the queues carry is the device's business.
 *
 * A message that is not valid is refused as a whole: nothing of it takes effect, its descriptors are closed. Where the
 * front end asked to be told (REPLY_ACK), it is told; otherwise the connection ends, which is the only other way of saying
 * it. Descriptors that a message brings beyond what its row states make it invalid.
 */
import { close, duplicate, EPOLLET, EPOLLIN, isEventfd, setNonBlocking } from '../sys/index.ts';
import { EBUSY, EINVAL, ENOSPC, EOPNOTSUPP } from '../wire/index.ts';
import {
  answerU64,
  FEATURES_HI,
  FEATURES_LO,
  MAX_MEM_SLOTS,
  PROTOCOL_FEATURES,
  type Row,
  rowByCode,
} from './back-end-rows.ts';
import { ControlChannel, MESSAGE, NO_MESSAGE } from './control-channel.ts';
import { GuestMemory, mapRegion, type Region, type RegionSpec } from './guest-memory.ts';
import type { BackEndJournal, Recovered, SavedBackEnd, SavedQueue } from './journal.ts';
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
  /** The device's configuration space, where the back end has it. */
  config?: Uint8Array;
  /** What must be writable in a chain with bad buffers so that the device can say so; 0: nothing (virtqueue.ts). */
  faultReplyBytes?: number;
}

const NOTHING = new Uint8Array(0);

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
  readonly #config: Uint8Array | undefined;
  readonly protocolFeatures: number;
  /** Where each queue shall start: as SET_VRING_BASE said, or undefined for where it stopped. */
  readonly #bases: (number | undefined)[] = [];
  /** Whether a kick descriptor came since the queue was stopped. */
  readonly #wantsStart: boolean[] = [];
  #hasProtocolFeatures = false;
  #hasReplyAck = false;
  #isClosed = false;
  readonly #journal: BackEndJournal | undefined;
  /** What the journal keeps the descriptors of each queue as. */
  readonly #keptAs: { kickFd: number; callFd: number; errFd: number }[];
  /** What it need not keep any more once the message at hand is committed. */
  #outdated: number[] = [];

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
    journal?: BackEndJournal,
    recovered?: Recovered,
  ) {
    this.#channel = new ControlChannel(controlFd, journal !== undefined);
    this.#journal = journal;
    this.#watcher = watcher;
    this.#events = events;
    this.#allowUnsealed = options.allowUnsealed;
    this.#config = options.config;
    this.protocolFeatures = PROTOCOL_FEATURES | (options.config === undefined ? 0 : vu.PROTOCOL_F_CONFIG);
    this.queues = Array.from(
      { length: options.queues },
      (_, i) => new Virtqueue(i, this.memory, request, requestWords, journal?.ring(i), options.faultReplyBytes),
    );
    this.#keptAs = this.queues.map(() => ({ kickFd: 0, callFd: 0, errFd: 0 }));
    if (recovered !== undefined) this.#recover(recovered);
    watcher.watch(controlFd, () => this.serveControl());
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  // --- what outlives the process ---

  /** Goes on as the predecessor left it. Throws, with what it made undone, when something of it is not there. */
  #recover({ saved, fd }: Recovered): void {
    this.#hasProtocolFeatures = saved.hasProtocolFeatures;
    this.#hasReplyAck = saved.hasReplyAck;
    for (const spec of saved.regions) {
      const region = mapRegion(spec, fd(spec.keptAs), this.#allowUnsealed);
      const error = typeof region === 'number' ? region : this.memory.add(region, spec);
      if (error < 0 || typeof region === 'number') {
        this.memory.clear();
        throw new Error(`mapping a region of the guest's memory again failed with errno ${-error}`);
      }
      region.keptAs = spec.keptAs;
    }
    for (const [i, queue] of this.queues.entries()) {
      const left = saved.queues[i];
      if (left === undefined) continue;
      queue.hasEventIdx = saved.hasEventIdx;
      queue.hasIndirect = saved.hasIndirect;
      this.#keptAs[i] = { kickFd: left.kick, callFd: left.call, errFd: left.err };
      queue.callFd = left.call === 0 ? -1 : duplicate(fd(left.call));
      queue.errFd = left.err === 0 ? -1 : duplicate(fd(left.err));
      this.#setKick(queue, left.kick === 0 ? -1 : duplicate(fd(left.kick)));
      this.#bases[i] = left.base < 0 ? undefined : left.base;
      this.#wantsStart[i] = left.wantsStart;
      queue.recover(left);
    }
  }

  #saved(): SavedBackEnd {
    const [first] = this.queues;
    return {
      hasProtocolFeatures: this.#hasProtocolFeatures,
      hasReplyAck: this.#hasReplyAck,
      hasEventIdx: first?.hasEventIdx === true,
      hasIndirect: first?.hasIndirect === true,
      regions: this.memory.regions.map(({ spec, keptAs }) => ({ ...spec, keptAs })),
      queues: this.queues.map((queue, i): SavedQueue => {
        const { num, descAddr, availAddr, usedAddr, isEnabled, isStarted, hasRun } = queue;
        const { kickFd: kick, callFd: call, errFd: err } = this.#keptAs[i]!;
        const wantsStart = this.#wantsStart[i] === true;
        const base = this.#bases[i] ?? -1;
        return { num, descAddr, availAddr, usedAddr, isEnabled, isStarted, hasRun, wantsStart, base, kick, call, err };
      }),
    };
  }

  /** Sends an answer of `bytes` bytes (none: -1), and has done with the message. */
  #reply(channel: ControlChannel, bytes: number): boolean {
    if (this.#journal === undefined) return bytes < 0 || channel.reply(bytes);
    const frame = bytes < 0 ? NOTHING : channel.replyFrame(bytes);
    const taken = this.#journal.commit(this.#saved(), frame, channel.peekedBytes);
    for (const name of this.#outdated.splice(0)) this.#journal.drop(name);
    return taken;
  }

  /** Has the journal keep `fd` for a queue, in place of what it kept. */
  #keep(queue: Virtqueue, which: 'kickFd' | 'callFd' | 'errFd', fd: number): void {
    if (this.#journal === undefined) return;
    const kept = this.#keptAs[queue.index]!;
    if (kept[which] > 0) this.#outdated.push(kept[which]);
    kept[which] = fd < 0 ? 0 : this.#journal.keep(fd);
  }

  #keepRegion(region: Region, fd: number): void {
    if (this.#journal !== undefined) region.keptAs = this.#journal.keep(fd);
  }

  #forgetRegions(regions: readonly Region[]): void {
    for (const { keptAs } of regions) if (keptAs > 0) this.#outdated.push(keptAs);
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
      if (value >= 0 && this.#reply(channel, value)) return true;
      this.close(value < 0 ? `${name} was refused with errno ${-value}` : `the front end does not take replies`);
      return false;
    }
    if (this.#hasReplyAck && (channel.flags & vu.FLAG_NEED_REPLY) !== 0) {
      if (this.#reply(channel, answerU64(channel, value < 0 ? 1 : 0))) return true;
      this.close('the front end does not take replies');
      return false;
    }
    if (value >= 0) {
      if (this.#reply(channel, -1)) return true;
      this.close('the control connection is gone');
      return false;
    }
    this.close(`${name} was refused with errno ${-value}`);
    return false;
  }

  #call(row: Row, channel: ControlChannel): number {
    const [least, most] = row.payloadBytes;
    if (channel.payloadBytes < least || channel.payloadBytes > most) return -EINVAL;
    const [fewest, mostFds] = row.fds;
    if (!(row.usesFds?.(channel.payload) ?? mostFds > 0)) channel.closeStrangers();
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
    if ((lo & ~this.protocolFeatures) !== 0 || hi !== 0) return -EINVAL;
    this.#hasReplyAck = (lo & vu.PROTOCOL_F_REPLY_ACK) !== 0;
    return 0;
  }

  /** Answers with a part of the configuration space; with nothing, which says error here, for what is no part of it. */
  getConfig({ payload, payloadBytes, replyPayload }: ControlChannel): number {
    if (this.#config === undefined) return -EOPNOTSUPP;
    const offset = vu.ConfigHead.offset.get(payload, 0);
    const size = vu.ConfigHead.size.get(payload, 0);
    const head = vu.ConfigHead.sizeBytes;
    if (size > vu.MAX_CONFIG_BYTES || offset + size > this.#config.length || payloadBytes !== head + size) return 0;
    for (let i = 0; i < head; i++) replyPayload.setUint8(i, payload.getUint8(i));
    for (let i = 0; i < size; i++) replyPayload.setUint8(head + i, this.#config[offset + i]!);
    return head + size;
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
    const old = this.memory.regions;
    if (error === 0) error = this.memory.replace(mapped, specs);
    if (error < 0) {
      for (const region of mapped) region.unmap();
      return error;
    }
    this.#forgetRegions(old);
    for (const [i, region] of mapped.entries()) this.#keepRegion(region, fds[i]!);
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
    else {
      this.#keepRegion(region, channel.fds[0]!);
      this.#translateAll();
    }
    return error;
  }

  remMemReg(payload: DataView): number {
    const before = this.memory.regions.slice();
    const error = this.memory.remove(regionSpec(payload, vu.U64.sizeBytes));
    this.#forgetRegions(before.filter((region) => !this.memory.regions.includes(region)));
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
    this.#keep(queue, 'kickFd', -1);
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
    const fd = channel.takeFd(0);
    this.#setKick(queue, fd);
    this.#keep(queue, 'kickFd', fd);
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
    this.#keep(queue, which, fd);
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
