import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { EchoHandler, fuse, type InProcess, inProcess } from '../../test/front-end/index.ts';
import { addSeals, close, F_SEAL_SHRINK, memfd } from '../sys/index.ts';
import { rows } from './back-end-rows.ts';
import * as vu from './messages.ts';

const openFds = (): number => readdirSync('/proc/self/fd').length;

const u64s = (...values: number[]): Uint8Array => {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  for (const [i, value] of values.entries()) vu.U64.value.set(view, i * 8, value);
  return new Uint8Array(view.buffer);
};
const u32s = (...values: number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);

interface BadMessage {
  name: string;
  request: number;
  payload: Uint8Array;
  /** How many descriptors of a good sealed memfd of 1 MiB come along. */
  fds?: number;
  flags?: number;
  /** What the header claims; the payload's length by default. */
  size?: number;
  /** Sent on a device that serves. */
  running?: boolean;
  /** The descriptors are eventfds instead. */
  eventfds?: boolean;
}

const MIB = 2 ** 20;
const region = (guestAddr: number, sizeBytes: number, frontendAddr: number, fileOffset: number): number[] => [
  guestAddr,
  sizeBytes,
  frontendAddr,
  fileOffset,
];
const good = region(0, MIB, 0x7000_0000, 0);

const bad: BadMessage[] = [
  { name: 'a request that does not exist', request: 99, payload: u64s(0) },
  { name: 'a request that was not offered', request: 31, payload: u64s(0, 0) },
  { name: 'request 0', request: 0, payload: u64s() },
  { name: 'features that were not offered', request: vu.SET_FEATURES, payload: u64s(2 ** 34) },
  { name: 'features of a wrong size', request: vu.SET_FEATURES, payload: u32s(1) },
  { name: 'features with a descriptor', request: vu.SET_FEATURES, payload: u64s(0), fds: 1 },
  { name: 'protocol features not offered', request: vu.SET_PROTOCOL_FEATURES, payload: u64s(2) },
  { name: 'high protocol features', request: vu.SET_PROTOCOL_FEATURES, payload: u64s(2 ** 40) },
  { name: 'an owner with a payload', request: vu.SET_OWNER, payload: u64s(1) },
  { name: 'a ring of 0', request: vu.SET_VRING_NUM, payload: u32s(0, 0) },
  { name: 'a ring of 3', request: vu.SET_VRING_NUM, payload: u32s(0, 3) },
  { name: 'a ring of 65536', request: vu.SET_VRING_NUM, payload: u32s(0, 65536) },
  { name: 'a ring of 2^31', request: vu.SET_VRING_NUM, payload: u32s(0, 2 ** 31) },
  { name: 'the size of a queue that is not there', request: vu.SET_VRING_NUM, payload: u32s(17, 128) },
  { name: 'the size of queue 2^32 - 1', request: vu.SET_VRING_NUM, payload: u32s(2 ** 32 - 1, 128) },
  { name: 'another size while running', request: vu.SET_VRING_NUM, payload: u32s(1, 256), running: true },
  { name: 'a base beyond 16 bits', request: vu.SET_VRING_BASE, payload: u32s(0, 65536) },
  { name: 'the base of no queue', request: vu.SET_VRING_BASE, payload: u32s(200, 0) },
  { name: 'a base while running', request: vu.SET_VRING_BASE, payload: u32s(1, 0), running: true },
  { name: 'addresses of no queue', request: vu.SET_VRING_ADDR, payload: u64s(300, 0, 0, 0, 0) },
  { name: 'addresses with flags', request: vu.SET_VRING_ADDR, payload: u64s(2 ** 32, 0, 0, 0, 0) },
  { name: 'descriptors at an odd address', request: vu.SET_VRING_ADDR, payload: u64s(0, 8, 0, 0, 0) },
  { name: 'a used ring at an odd address', request: vu.SET_VRING_ADDR, payload: u64s(0, 0, 2, 0, 0) },
  { name: 'an avail ring at an odd address', request: vu.SET_VRING_ADDR, payload: u64s(0, 0, 0, 1, 0) },
  {
    name: 'addresses above 2^53',
    request: vu.SET_VRING_ADDR,
    payload: new Uint8Array(40).fill(0xf0, 8),
  },
  {
    name: 'rings outside of memory',
    request: vu.SET_VRING_ADDR,
    payload: u64s(1, 4096, 8192, 12288, 0),
    running: true,
  },
  { name: 'the base asked of no queue', request: vu.GET_VRING_BASE, payload: u32s(17, 0) },
  { name: 'a kick without its descriptor', request: vu.SET_VRING_KICK, payload: u64s(0) },
  {
    name: 'a kick with a descriptor it denies',
    request: vu.SET_VRING_KICK,
    payload: u64s(0x100),
    fds: 1,
    eventfds: true,
  },
  { name: 'a kick with two descriptors', request: vu.SET_VRING_KICK, payload: u64s(0), fds: 2, eventfds: true },
  { name: 'a kick of no queue', request: vu.SET_VRING_KICK, payload: u64s(99), fds: 1, eventfds: true },
  { name: 'a kick with unknown bits', request: vu.SET_VRING_KICK, payload: u64s(0x200), fds: 1, eventfds: true },
  { name: 'a kick with high bits', request: vu.SET_VRING_KICK, payload: u64s(2 ** 32), fds: 1, eventfds: true },
  { name: 'a call without its descriptor', request: vu.SET_VRING_CALL, payload: u64s(1) },
  { name: 'a call of no queue', request: vu.SET_VRING_CALL, payload: u64s(255), fds: 1, eventfds: true },
  { name: 'an error fd of no queue', request: vu.SET_VRING_ERR, payload: u64s(40), fds: 1, eventfds: true },
  { name: 'a kick that is no eventfd', request: vu.SET_VRING_KICK, payload: u64s(0), fds: 1 },
  { name: 'a call that is no eventfd', request: vu.SET_VRING_CALL, payload: u64s(0), fds: 1 },
  { name: 'an error fd that is no eventfd', request: vu.SET_VRING_ERR, payload: u64s(0), fds: 1 },
  { name: 'enable of no queue', request: vu.SET_VRING_ENABLE, payload: u32s(17, 1) },
  { name: 'enable by 2', request: vu.SET_VRING_ENABLE, payload: u32s(0, 2) },
  { name: 'a table of 9 regions', request: vu.SET_MEM_TABLE, payload: u64s(9, ...good), fds: 1 },
  { name: 'a table with too few descriptors', request: vu.SET_MEM_TABLE, payload: u64s(1, ...good) },
  { name: 'a table with too many descriptors', request: vu.SET_MEM_TABLE, payload: u64s(1, ...good), fds: 2 },
  { name: 'a table cut short', request: vu.SET_MEM_TABLE, payload: u64s(2, ...good), fds: 2 },
  { name: 'no table', request: vu.SET_MEM_TABLE, payload: u32s(0) },
  {
    name: 'a region beyond its file',
    request: vu.SET_MEM_TABLE,
    payload: u64s(1, ...region(0, MIB, 0x7000_0000, 4096)),
    fds: 1,
  },
  { name: 'an empty region', request: vu.SET_MEM_TABLE, payload: u64s(1, ...region(0, 0, 0, 0)), fds: 1 },
  {
    name: 'a region whose guest addresses overflow',
    request: vu.SET_MEM_TABLE,
    payload: u64s(1, ...region(2 ** 53 - 4096, MIB, 0, 0)),
    fds: 1,
  },
  {
    name: 'a region whose user addresses overflow',
    request: vu.SET_MEM_TABLE,
    payload: u64s(1, ...region(0, MIB, 2 ** 53 - 4096, 0)),
    fds: 1,
  },
  {
    name: 'a region at 2^64 - 1',
    request: vu.SET_MEM_TABLE,
    payload: new Uint8Array(40).fill(0xff, 8).fill(0, 16, 24).with(0, 1),
    fds: 1,
  },
  {
    name: 'a region off its page',
    request: vu.SET_MEM_TABLE,
    payload: u64s(1, ...region(8, 4096, 4096, 0)),
    fds: 1,
  },
  {
    name: 'a region whose file offset is off its page',
    request: vu.SET_MEM_TABLE,
    payload: u64s(1, ...region(0, 4096, 4096, 512)),
    fds: 1,
  },
  {
    name: 'regions that overlap in the guest',
    request: vu.SET_MEM_TABLE,
    payload: u64s(2, ...good, ...region(4096, 4096, 0x8000_0000, 0)),
    fds: 2,
  },
  {
    name: 'regions that overlap in the front end',
    request: vu.SET_MEM_TABLE,
    payload: u64s(2, ...good, ...region(2 ** 32, 4096, 0x7000_1000, 0)),
    fds: 2,
  },
  { name: 'a slot without memory', request: vu.ADD_MEM_REG, payload: u64s(0, ...good) },
  { name: 'a slot cut short', request: vu.ADD_MEM_REG, payload: u64s(0, 0, MIB), fds: 1 },
  { name: 'removal of what is not there', request: vu.REM_MEM_REG, payload: u64s(0, ...good) },
];

function offered(): InProcess {
  const vm = inProcess(new EchoHandler());
  vm.front.handshake();
  return vm;
}

for (const wantsAck of [true, false])
  test(`BackEnd refuses ${bad.length} bad messages when ${wantsAck ? 'told to answer' : 'told nothing'}`, (t) => {
    for (const { name, request, payload, fds = 0, flags, size, running, eventfds } of bad) {
      const before = openFds();
      const vm = offered();
      if (running === true) vm.front.start();
      const file = memfd('region', MIB);
      addSeals(file, F_SEAL_SHRINK);
      const sent = Array.from({ length: fds }, () => (eventfds ? vm.front.queues[0]!.kickFd : file));
      const asks = wantsAck && rows.find((row) => row.code === request)?.answersData !== true;
      const sentFlags = flags ?? vu.VERSION | (asks ? vu.FLAG_NEED_REPLY : 0);
      vm.front.sendRaw(request, sentFlags, size ?? payload.length, payload, sent);
      if (asks) {
        assert.equal(vu.U64.value.get(vm.front.receive(), 0), 1, name);
        assert.equal(vm.closedBy(), undefined, name);
        vm.front.settle();
      } else {
        vm.pump();
        assert.match(String(vm.closedBy()), /refused with errno/, name);
      }
      close(file);
      vm.close();
      assert.equal(openFds(), before, `${name}: no descriptor is left open`);
    }
    t.diagnostic(`${bad.length} messages`);
  });

test('BackEnd hangs up when a header makes no sense', () => {
  const headers: [request: number, flags: number, size: number][] = [
    [vu.GET_FEATURES, 0, 0],
    [vu.GET_FEATURES, 2, 0],
    [vu.GET_FEATURES, vu.VERSION | vu.FLAG_REPLY, 0],
    [vu.SET_MEM_TABLE, vu.VERSION, vu.MAX_PAYLOAD_BYTES + 1],
    [vu.SET_MEM_TABLE, vu.VERSION, 2 ** 32 - 1],
  ];
  for (const [request, flags, size] of headers) {
    const vm = offered();
    vm.front.sendRaw(request, flags, size, new Uint8Array());
    vm.pump();
    assert.match(String(vm.closedBy()), /failed with errno 71/);
    vm.close();
  }
});

test('BackEnd waits for the rest when a message comes byte by byte', (t) => {
  const vm = inProcess(new EchoHandler());
  t.after(vm.close);
  const message = new Uint8Array(20);
  const view = new DataView(message.buffer);
  for (const [i, value] of [vu.SET_FEATURES, vu.VERSION, 8, 1 << vu.VIRTIO_RING_F_EVENT_IDX, 0].entries())
    view.setUint32(i * 4, value, true);
  for (const byte of message) {
    vm.front.sendBytes(Uint8Array.of(byte));
    vm.pump();
  }
  vm.front.settle();
  assert.equal(vm.closedBy(), undefined);
});

test('BackEnd refuses memory that could shrink unless it is allowed', () => {
  for (const allowUnsealed of [false, true]) {
    const vm = inProcess(new EchoHandler(), { seals: 0 }, { allowUnsealed });
    vm.front.handshake();
    if (allowUnsealed) vm.front.start();
    else assert.throws(() => vm.front.start(), /refused vhost-user request 5/);
    vm.close();
  }
});

test('BackEnd keeps the memory it has when a new table is refused', (t) => {
  const vm = offered();
  t.after(vm.close);
  vm.front.start();
  const payload = u64s(1, ...region(0, 2 ** 40, 0x7000_0000, 0));
  vm.front.sendRaw(vu.SET_MEM_TABLE, vu.VERSION | vu.FLAG_NEED_REPLY, payload.length, payload, [vm.front.memory.fd]);
  assert.equal(vu.U64.value.get(vm.front.receive(), 0), 1);
  const queue = vm.front.queues[1]!;
  const bytes = fuse.writeRequest(queue.request(0), { opcode: 1, unique: 3 }, 0);
  assert.equal(vm.front.roundTrip(queue, 0, bytes, 16), 16);
});

test('BackEnd stops serving when the memory of a ring is removed, and goes on when it is back', (t) => {
  const vm = inProcess(new EchoHandler(), { flavour: 'cloud-hypervisor' });
  t.after(vm.close);
  vm.front.handshake();
  vm.front.start();
  const queue = vm.front.queues[1]!;
  const rings = vm.front.memory.regions.slice(0, 1);
  vm.front.removeMemory(rings);
  queue.add(0, fuse.writeRequest(queue.request(0), { opcode: 1, unique: 3 }, 0), 16);
  queue.publish();
  vm.pump();
  assert.equal(queue.next(), -1);
  vm.front.setMemory(true, rings);
  assert.equal(vm.front.complete(queue), 0);
});

test('BackEnd takes at most 32 memory slots', (t) => {
  const vm = offered();
  t.after(vm.close);
  for (let i = 0; i <= 32; i++) {
    const payload = u64s(0, ...region(i * 8192, 4096, 0x7000_0000 + i * 8192, 0));
    vm.front.sendRaw(vu.ADD_MEM_REG, vu.VERSION | vu.FLAG_NEED_REPLY, payload.length, payload, [vm.front.memory.fd]);
    assert.equal(vu.U64.value.get(vm.front.receive(), 0), i < 32 ? 0 : 1);
  }
});

test('every row has its own code and name', () => {
  assert.equal(new Set(rows.map((row) => row.code)).size, rows.length);
  assert.equal(new Set(rows.map((row) => row.name)).size, rows.length);
  for (const row of rows) assert.equal((vu as unknown as Record<string, number>)[row.name], row.code);
});
