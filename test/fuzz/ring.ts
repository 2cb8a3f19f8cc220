/**
 * Fuzzes the ring: arbitrary bytes become descriptors, available entries and buffers of a running device. What must hold
 * whatever they are: nothing throws, a turn ends, no memory changes that no writable descriptor and no used ring covers (by
 * the checks of `ring.test.ts`), and after a reset the device serves a good request.
 */
import assert from 'node:assert/strict';
import type { Exchange, HeldExchange, RequestHandler } from '../../src/fuse/index.ts';
import { type FrontEndOptions, fuse, type InProcess, inProcess } from '../front-end/index.ts';

/** A session that does what the request's bytes say: fills all the room, holds, answers late, or answers nothing. */
class WildHandler implements RequestHandler {
  held: HeldExchange[] = [];
  readonly #head = new Uint8Array(new ArrayBuffer(16));
  readonly #payload = new Uint8Array(65_536).fill(0xab);

  handle(exchange: Exchange): void {
    const { replyCapacity, requestBytes, request } = exchange;
    assert.ok(requestBytes <= request.byteLength);
    const what = requestBytes === 0 ? 0 : request[0]! & 7;
    if (what === 1 && this.held.length < 64) this.held.push(exchange.hold());
    else if (what === 2 || replyCapacity < 16) exchange.noReply();
    else exchange.reply(this.#head, 16, this.#payload.subarray(0, Math.min(replyCapacity - 16, 65_536)));
  }

  answerAll(): void {
    for (const held of this.held.splice(0))
      if (held.replyCapacity < 16) held.noReply();
      else held.reply(this.#head, 16, this.#payload.subarray(0, Math.min(held.replyCapacity - 16, 65_536)));
  }

  reset(): void {
    this.held = [];
  }

  flushWaiters(): void {
    this.answerAll();
  }

  tick(): void {
    // Nothing here is ever due.
  }

  nextDeadlineMs(): number {
    return Number.POSITIVE_INFINITY;
  }
}

export interface WildVm extends InProcess {
  handler: WildHandler;
}

const shape = { queueSize: 16, requestBytes: 256, replyBytes: 256, ringsAt: 0, buffersAt: 2 ** 32 };

export function wildVm(options: FrontEndOptions = {}): WildVm {
  const handler = new WildHandler();
  const vm = { ...inProcess(handler, { ...shape, ...options }), handler };
  vm.front.handshake();
  vm.front.start();
  return vm;
}

const vms = new Map<boolean, WildVm>();

/** Stops the rings, clears all memory and starts anew, as a guest that reboots. */
export function reboot(vm: WildVm): void {
  vm.front.stop();
  vm.front.memory.u8.fill(0);
  for (const queue of vm.front.queues) queue.resetDriver();
  vm.front.start();
}

export function serveGoodRequest(vm: WildVm): void {
  const queue = vm.front.queues[1]!;
  const bytes = fuse.writeRequest(queue.request(2), { opcode: fuse.FUSE_GETATTR, unique: 7 }, 24);
  queue.add(2, bytes, 200);
  queue.publish();
  vm.pump();
  assert.equal(queue.next(), 2, 'the device serves a good request');
  assert.equal(queue.usedBytes, 200);
}

const FLAG_EVENT_IDX = 1;
const FLAG_ADDRESSES_IN_MEMORY = 2;
const FLAG_SHORT_LENGTHS = 4;
const FLAG_KNOWN_FLAGS = 8;
const HEAD_BYTES = 2;

/**
 * Byte 0: how tame the descriptors are made (bits above). Byte 1: how many heads are made available. Then the descriptor
 * table, the available heads, and what lies in the indirect tables.
 */
export function fuzzRing(bytes: Uint8Array): void {
  const how = bytes[0] ?? 0;
  const hasEventIdx = (how & FLAG_EVENT_IDX) !== 0;
  const vm = vms.get(hasEventIdx) ?? wildVm({ eventIdx: hasEventIdx });
  vms.set(hasEventIdx, vm);
  reboot(vm);
  const queue = vm.front.queues[1]!;
  const { memory } = vm.front;
  const { descOffset, tablesOffset } = queue.layout;
  const tableBytes = queue.size * 16;
  const rest = bytes.subarray(HEAD_BYTES);
  memory.u8.set(rest.subarray(0, tableBytes), descOffset);
  const heads = rest.subarray(tableBytes, tableBytes + queue.size);
  memory.u8.set(rest.subarray(tableBytes + queue.size, tableBytes + queue.size + 1024), tablesOffset);
  const tame = (word: number): void => {
    const { u32 } = memory;
    if ((how & FLAG_ADDRESSES_IN_MEMORY) !== 0) {
      const high = u32[word + 1]! & 1;
      const { sizeBytes } = memory.regions[high]!;
      u32[word] = u32[word]! % sizeBytes;
      u32[word + 1] = high;
    }
    if ((how & FLAG_SHORT_LENGTHS) !== 0) u32[word + 2] = u32[word + 2]! & 0x1ff;
    if ((how & FLAG_KNOWN_FLAGS) !== 0) u32[word + 3] = u32[word + 3]! & 0xf_0007;
  };
  for (let i = 0; i < queue.size; i++) tame(descOffset / 4 + i * 4);
  for (let i = 0; i < 64; i++) tame(tablesOffset / 4 + i * 4);
  for (let i = 0; i < heads.length; i++) queue.avail[2 + i] = heads[i]!;
  Atomics.store(queue.avail, 1, bytes[1] ?? 0);
  queue.kick();
  for (let turn = 0; turn < 4; turn++) {
    vm.pump();
    vm.handler.answerAll();
  }
  reboot(vm);
  serveGoodRequest(vm);
}
