import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { drainEventfd } from '../../src/sys/index.ts';
import { fuse } from '../../test/front-end/index.ts';
import { reboot, serveGoodRequest, type WildVm, wildVm } from '../../test/fuzz/ring.ts';

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;
const EIO = 5;
const BUFFERS = 2 ** 32;
type Desc = [addr: number, length: number, flags: number, next: number];

function setDesc(table: Uint32Array, at: number, [addr, length, flags, next]: Desc): void {
  table[at * 4] = addr >>> 0;
  table[at * 4 + 1] = Math.floor(addr / 2 ** 32);
  table[at * 4 + 2] = length;
  table[at * 4 + 3] = flags | (next << 16);
}

interface Case {
  name: string;
  /** The descriptor table from 0 on; head 0 is made available unless `heads` says otherwise. */
  table?: Desc[];
  /** What lies at guest address `tablesAt`. */
  indirect?: Desc[];
  heads?: number[];
  /** What avail.idx is set to; the number of heads by default. */
  idx?: number;
  expect: 'broken' | 'EIO';
}

const out: Desc = [BUFFERS + 512, 16, WRITE, 0];
/** Guest address of the indirect tables of queue 1, as `wildVm` lays them out. */
const TABLES = 7 * 4096;

const cases: Case[] = [
  { name: 'a head outside of the table', heads: [16], expect: 'broken' },
  { name: 'avail.idx beyond the ring', heads: [], idx: 17, expect: 'broken' },
  { name: 'avail.idx behind us', heads: [], idx: 0xffff, expect: 'broken' },
  { name: 'a next outside of the table', table: [[BUFFERS, 40, NEXT, 16]], expect: 'broken' },
  { name: 'a chain onto itself', table: [[BUFFERS, 1, NEXT, 0]], expect: 'broken' },
  {
    name: 'a circle of two',
    table: [
      [BUFFERS, 1, NEXT, 1],
      [BUFFERS, 1, NEXT, 0],
    ],
    expect: 'broken',
  },
  {
    name: 'an indirect table in another',
    table: [[TABLES, 16, INDIRECT, 0]],
    indirect: [[TABLES, 16, INDIRECT, 0]],
    expect: 'broken',
  },
  { name: 'an indirect table that goes on', table: [[TABLES, 16, INDIRECT | NEXT, 1]], expect: 'broken' },
  { name: 'an indirect table of 0 bytes', table: [[TABLES, 0, INDIRECT, 0]], expect: 'broken' },
  { name: 'an indirect table of 15 bytes', table: [[TABLES, 15, INDIRECT, 0]], expect: 'broken' },
  { name: 'an indirect table longer than the queue', table: [[TABLES, 17 * 16, INDIRECT, 0]], expect: 'broken' },
  { name: 'an indirect table of 4 GiB', table: [[TABLES, 0xffff_fff0, INDIRECT, 0]], expect: 'broken' },
  { name: 'an indirect table outside of memory', table: [[2 ** 40, 16, INDIRECT, 0]], expect: 'broken' },
  { name: 'an indirect table above 2^53', table: [[2 ** 60, 16, INDIRECT, 0]], expect: 'broken' },
  {
    name: 'a next outside of the indirect table',
    table: [[TABLES, 16, INDIRECT, 0]],
    indirect: [[BUFFERS, 1, NEXT, 1]],
    expect: 'broken',
  },
  { name: 'a bad buffer and no room to say so', table: [[2 ** 40, 40, 0, 0]], expect: 'broken' },
  {
    name: 'a request outside of memory',
    table: [[2 ** 40, 40, NEXT, 1], out],
    expect: 'EIO',
  },
  { name: 'a request above 2^53', table: [[2 ** 62, 40, NEXT, 1], out], expect: 'EIO' },
  { name: 'a request that runs out of memory', table: [[BUFFERS, 0x1000_0000, NEXT, 1], out], expect: 'EIO' },
  {
    name: 'a request that is too long',
    table: [[BUFFERS, 40, NEXT, 1], ...long(), [out[0], 16, WRITE, 0]],
    expect: 'broken',
  },
  { name: 'an empty descriptor', table: [[BUFFERS, 0, NEXT, 1], out], expect: 'EIO' },
  {
    name: 'a request behind the reply',
    table: [
      [out[0], 16, WRITE | NEXT, 1],
      [BUFFERS, 40, 0, 0],
    ],
    expect: 'EIO',
  },
  {
    name: 'a reply that ends outside of memory',
    table: [
      [BUFFERS, 40, NEXT, 1],
      [out[0], 16, WRITE | NEXT, 2],
      [2 ** 41, 64, WRITE, 0],
    ],
    expect: 'EIO',
  },
  {
    name: 'a reply of 4 GiB',
    table: [
      [BUFFERS, 40, NEXT, 1],
      [out[0], 16, WRITE | NEXT, 2],
      [BUFFERS, 0xffff_ffff, WRITE, 0],
    ],
    expect: 'EIO',
  },
];

/** Fifteen more descriptors: one more than a queue of 16 has room for with head and reply, each onto the next. */
function long(): Desc[] {
  return Array.from({ length: 15 }, (_, i): Desc => [BUFFERS, 1, NEXT, (i + 2) & 15]);
}

function play(vm: WildVm, { table = [], indirect = [], heads = [0], idx = heads.length }: Case): void {
  const queue = vm.front.queues[1]!;
  assert.equal(vm.front.memory.offsetOf(TABLES), queue.layout.tablesOffset);
  for (const [i, desc] of table.slice(0, queue.size).entries()) setDesc(queue.desc, i, desc);
  const tables = new Uint32Array(vm.front.memory.u8.buffer, queue.layout.tablesOffset);
  for (const [i, desc] of indirect.entries()) setDesc(tables, i, desc);
  for (const [i, head] of heads.entries()) queue.avail[2 + i] = head;
  drainEventfd(queue.errFd);
  Atomics.store(queue.avail, 1, idx);
  queue.kick();
  vm.pump();
}

for (const eventIdx of [true, false])
  test(`Virtqueue stands up to ${cases.length} bad rings when EVENT_IDX is ${eventIdx ? 'on' : 'off'}`, (t) => {
    const vm = wildVm({ eventIdx });
    t.after(vm.close);
    for (const each of cases) {
      reboot(vm);
      const queue = vm.front.queues[1]!;
      play(vm, each);
      if (each.expect === 'broken') {
        assert.match(String(vm.device.brokenBy), /^queue 1: /, each.name);
        assert.equal(drainEventfd(queue.errFd), 8, `${each.name}: the front end is told`);
        assert.equal(queue.used[1], 0, `${each.name}: nothing is given back`);
        assert.equal(vm.device.process(64), false, `${each.name}: nothing more is done`);
        const hiprio = vm.front.queues[0]!;
        hiprio.add(0, fuse.writeRequest(hiprio.request(0), { opcode: fuse.FUSE_FORGET, unique: 1 }, 8), 0);
        hiprio.publish();
        vm.pump();
        assert.equal(hiprio.next(), 0, `${each.name}: other queues go on`);
      } else {
        assert.equal(vm.device.brokenBy, undefined, each.name);
        assert.equal(queue.used[1], 1, each.name);
        const reply = new DataView(vm.front.memory.u8.buffer, vm.front.memory.offsetOf(BUFFERS + 512));
        assert.equal(reply.getInt32(4, true), -EIO, each.name);
      }
      reboot(vm);
      serveGoodRequest(vm);
      assert.equal(vm.closedBy(), undefined);
    }
  });

test('Virtqueue takes a table that starts between regions or is not aligned', (t) => {
  const vm = wildVm();
  t.after(vm.close);
  reboot(vm);
  const queue = vm.front.queues[1]!;
  const view = new DataView(vm.front.memory.u8.buffer, queue.layout.tablesOffset + 2);
  const table: Desc[] = [[BUFFERS, 40, NEXT, 1], out];
  for (const [i, [addr, length, flags, next]] of table.entries()) {
    view.setUint32(i * 16, addr >>> 0, true);
    view.setUint32(i * 16 + 4, Math.floor(addr / 2 ** 32), true);
    view.setUint32(i * 16 + 8, length, true);
    view.setUint32(i * 16 + 12, flags | (next << 16), true);
  }
  setDesc(queue.desc, 0, [TABLES + 2, 32, INDIRECT, 0]);
  queue.addHead(0);
  queue.publish();
  vm.pump();
  assert.equal(queue.next(), 0);
  assert.equal(queue.usedBytes, 16);
});

/** Buffers are cells of 64 bytes, every other one a guard. */
const CELL = 64;
const CELLS = 32;
const cellAddr = (cell: number): number => BUFFERS + 8192 + cell * 2 * CELL;

const chain = fc.record({
  readable: fc.array(fc.tuple(fc.nat(CELLS - 1), fc.integer({ min: 1, max: CELL })), { minLength: 1, maxLength: 4 }),
  writable: fc.array(fc.tuple(fc.nat(CELLS - 1), fc.integer({ min: 1, max: CELL })), { maxLength: 4 }),
  first: fc.nat(255),
  spoil: fc.option(fc.record({ at: fc.nat(7), word: fc.nat(3), value: fc.nat(0xffff_ffff) }), {
    freq: 4,
    nil: undefined,
  }),
});

test('Virtqueue writes nothing but used ring and writable buffers, whatever the chains are', (t) => {
  const vm = wildVm({ buffersAt: BUFFERS });
  t.after(vm.close);
  const { memory } = vm.front;
  fc.assert(
    fc.property(fc.array(chain, { minLength: 1, maxLength: 2 }), fc.boolean(), (chains, isIndirect) => {
      reboot(vm);
      const queue = vm.front.queues[1]!;
      const tables = new Uint32Array(memory.u8.buffer, queue.layout.tablesOffset);
      for (const [c, { readable, writable, first, spoil }] of chains.entries()) {
        const table = isIndirect ? tables : queue.desc;
        const base = c * 8;
        const all = [
          ...readable.map(([cell, length]) => ({ cell, length, flags: 0 })),
          ...writable.map(([cell, length]) => ({ cell, length, flags: WRITE })),
        ];
        const start = isIndirect ? 0 : base;
        for (const [i, { cell, length, flags }] of all.entries())
          setDesc(table, base + i, [cellAddr(cell), length, flags | (i + 1 < all.length ? NEXT : 0), start + i + 1]);
        memory.u8[memory.offsetOf(cellAddr(readable[0]![0]))] = first;
        if (spoil) table[(base + (spoil.at % all.length)) * 4 + spoil.word] = spoil.value;
        if (isIndirect) setDesc(queue.desc, base, [TABLES + base * 16, all.length * 16, INDIRECT, 0]);
        queue.addHead(base);
      }
      queue.publish();
      const before = memory.u8.slice();
      const allowed = new Uint8Array(before.length);
      const { usedOffset } = queue.layout;
      allowed.fill(1, usedOffset, usedOffset + 6 + queue.size * 8);
      for (const table of [queue.desc, tables])
        for (let i = 0; i < 16; i++) {
          if ((table[i * 4 + 3]! & WRITE) === 0) continue;
          const addr = table[i * 4]! + table[i * 4 + 1]! * 2 ** 32;
          const end = addr + table[i * 4 + 2]!;
          for (const region of memory.regions) {
            const from = Math.max(addr, region.guestAddr);
            const to = Math.min(end, region.guestAddr + region.sizeBytes);
            if (from < to) {
              const offset = from - region.guestAddr + region.fileOffset;
              allowed.fill(1, offset, offset + to - from);
            }
          }
        }
      for (let turn = 0; turn < 3; turn++) {
        vm.pump();
        vm.handler.answerAll();
      }
      const at = memory.u8.findIndex((byte, i) => byte !== before[i] && allowed[i] === 0);
      assert.equal(at, -1, `byte ${at} of memory was written`);
    }),
    { numRuns: 500 },
  );
});
