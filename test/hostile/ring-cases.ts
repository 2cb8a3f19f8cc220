/** What a driver may put into a ring to harm its device: each case makes one chain, or one ring, that no driver makes. */
import {
  DESC_INDIRECT,
  DESC_NEXT,
  DESC_WRITE,
  type FrontEnd,
  type FrontQueue,
  fuse,
  OPCODE_HOLD,
} from '../front-end/index.ts';
import type { Range } from './memory-guard.ts';

/**
 * What must come of it. `error`: the chain is given back with an errno in the first room for it. `empty`: it is given back
 * with nothing in it. `served`: it is odd but allowed, and answered. `broken`: the queue stands still until a reset.
 * `nothing`: there was nothing to take.
 */
type Outcome = 'error' | 'empty' | 'served' | 'broken' | 'nothing';

export interface RingCase {
  readonly name: string;
  readonly expects: Outcome;
  /** Features that the driver does not take. */
  readonly without?: 'INDIRECT_DESC';
  /** Prepares and publishes; returns what the device may write, in the order of the chain. */
  readonly spoil: (front: FrontEnd, queue: FrontQueue) => readonly Range[];
}

type Address = number | bigint;
interface Descriptor {
  readonly at: Address;
  readonly length: number;
  readonly flags?: number;
  /** Default: the next row, as long as there is one. */
  readonly next?: number;
}

const IN = 40;
const OUT = 16;
const ROOM = 64;
const OPCODE = 1;

function writeDescriptor(table: Uint32Array, index: number, { at, length, flags = 0, next = 0 }: Descriptor): void {
  const address = BigInt(at);
  table[index * 4] = Number(address & 0xffff_ffffn);
  table[index * 4 + 1] = Number(address >> 32n);
  table[index * 4 + 2] = length;
  table[index * 4 + 3] = (flags & 0xffff) | (next << 16);
}

/** Rows, each but the last linked to the next unless it says otherwise. */
function writeChain(table: Uint32Array, first: number, rows: readonly Descriptor[]): void {
  for (const [i, row] of rows.entries()) {
    const isLast = i === rows.length - 1;
    const linked = row.next === undefined && !isLast;
    const flags = (row.flags ?? 0) | (linked ? DESC_NEXT : 0);
    writeDescriptor(table, first + i, { ...row, flags, next: row.next ?? (isLast ? 0 : first + i + 1) });
  }
}

/** Guest addresses of a slot's buffers. */
function places(front: FrontEnd, queue: FrontQueue, slot = 0) {
  const { layout } = queue;
  const offset = layout.buffersOffset + slot * (layout.requestBytes + layout.replyBytes);
  const reply = offset + layout.requestBytes;
  return {
    request: front.memory.guestAddrOf(offset),
    reply: front.memory.guestAddrOf(reply),
    replyOffset: reply,
    table: front.memory.guestAddrOf(layout.tablesOffset + slot * ROOM),
    tableWords: new Uint32Array(front.memory.u8.buffer, layout.tablesOffset, queue.size * 16),
  };
}

const writeRequest = (queue: FrontQueue, opcode = OPCODE, bodyBytes = 24): number =>
  fuse.writeRequest(queue.request(0), { opcode, unique: 5 }, bodyBytes);

function publish(queue: FrontQueue, ...heads: number[]): void {
  for (const head of heads) queue.addHead(head);
  queue.publish();
  queue.kick();
}

/** The chain that a driver would make: header, body, room for the answer's header, room for its body. */
function goodRows(front: FrontEnd, queue: FrontQueue): Descriptor[] {
  writeRequest(queue);
  const { request, reply } = places(front, queue);
  return [
    { at: request, length: IN },
    { at: request + IN, length: 24 },
    { at: reply, length: OUT, flags: DESC_WRITE },
    { at: reply + OUT, length: ROOM, flags: DESC_WRITE },
  ];
}

const goodRanges = (front: FrontEnd, queue: FrontQueue): Range[] => [
  { offset: places(front, queue).replyOffset, bytes: OUT + ROOM },
];

/** Buffers that are not in memory, whole or in part. */
const badBuffers: readonly { name: string; at: (front: FrontEnd) => Address; length: number }[] = [
  { name: 'at address 0, where nothing is', at: () => 0, length: 64 },
  { name: 'in the gap between two regions', at: (f) => end(f, 0) + 4096, length: 64 },
  { name: 'that begins one byte after a region', at: (f) => end(f, 1), length: 1 },
  { name: 'that ends one byte after a region', at: (f) => end(f, 1) - 63, length: 64 },
  { name: 'that begins one byte before a region', at: (f) => f.memory.regions[1]!.guestAddr - 1, length: 64 },
  { name: 'at 2^53', at: () => 2n ** 53n, length: 64 },
  { name: 'at 2^63', at: () => 2n ** 63n, length: 64 },
  { name: 'at the last address there is', at: () => 2n ** 64n - 1n, length: 1 },
  { name: 'that wraps past 2^64', at: () => 2n ** 64n - 16n, length: 64 },
  { name: 'of 2^32 - 1 bytes', at: (f) => f.memory.regions[1]!.guestAddr, length: 0xffff_ffff },
  { name: 'of 2^31 bytes', at: (f) => f.memory.regions[1]!.guestAddr, length: 0x8000_0000 },
  { name: 'of no bytes', at: (f) => f.memory.regions[1]!.guestAddr, length: 0 },
];

const end = (front: FrontEnd, region: number): number => {
  const { guestAddr, sizeBytes } = front.memory.regions[region]!;
  return guestAddr + sizeBytes;
};

const positions = ['a header', 'a body', 'room for the header of an answer', 'room for the body of an answer'] as const;

/** One bad buffer in an otherwise good chain: what is left of the room takes the error, or there is no telling. */
const badBufferCases: RingCase[] = positions.flatMap((position, index) =>
  badBuffers.map(
    (bad): RingCase => ({
      name: `${position} ${bad.name}`,
      expects: 'error',
      spoil: (front, queue) => {
        const rows = goodRows(front, queue);
        rows[index] = { at: bad.at(front), length: bad.length, flags: index < 2 ? 0 : DESC_WRITE };
        writeChain(queue.desc, 0, rows);
        publish(queue, 0);
        const { replyOffset } = places(front, queue);
        if (index === 2) return [{ offset: replyOffset + OUT, bytes: ROOM }];
        return [{ offset: replyOffset, bytes: index === 3 ? OUT : OUT + ROOM }];
      },
    }),
  ),
);

/** The same where there is no other room. */
const noRoomCases: RingCase[] = badBuffers.map((bad) => ({
  name: `all the room for an answer ${bad.name}`,
  expects: 'broken',
  spoil: (front, queue) => {
    const rows = goodRows(front, queue).slice(0, 2);
    writeChain(queue.desc, 0, [...rows, { at: bad.at(front), length: bad.length, flags: DESC_WRITE }]);
    publish(queue, 0);
    return [];
  },
}));

/** Rows put where a good chain stands, with descriptor 0 as the head. */
const chain =
  (rows: (front: FrontEnd, queue: FrontQueue) => Descriptor[], writable = goodRanges): RingCase['spoil'] =>
  (front, queue) => {
    writeChain(queue.desc, 0, rows(front, queue));
    publish(queue, 0);
    return writable(front, queue);
  };

const nothingWritable = (): Range[] => [];

const chainCases: RingCase[] = [
  {
    name: 'a descriptor that goes on with itself',
    expects: 'broken',
    spoil: chain((f, q) => [{ at: places(f, q).request, length: IN, flags: DESC_NEXT, next: 0 }], nothingWritable),
  },
  {
    name: 'a writable descriptor that goes on with itself',
    expects: 'broken',
    spoil: chain(
      (f, q) => [{ at: places(f, q).reply, length: 1, flags: DESC_NEXT | DESC_WRITE, next: 0 }],
      nothingWritable,
    ),
  },
  {
    name: 'two descriptors that go on with each other',
    expects: 'broken',
    spoil: chain((f, q) => {
      const [header, body] = goodRows(f, q);
      return [header!, { ...body!, flags: DESC_NEXT, next: 0 }];
    }, nothingWritable),
  },
  {
    name: 'a good chain whose last descriptor goes back to its first',
    expects: 'broken',
    spoil: chain(
      (f, q) => goodRows(f, q).map((row, i) => (i < 3 ? row : { ...row, flags: DESC_WRITE | DESC_NEXT, next: 0 })),
      nothingWritable,
    ),
  },
  {
    name: 'a next that is the size of the queue',
    expects: 'broken',
    spoil: chain((f, q) => [{ at: places(f, q).request, length: IN, flags: DESC_NEXT, next: q.size }], nothingWritable),
  },
  {
    name: 'a next of 65535',
    expects: 'broken',
    spoil: chain((f, q) => [{ at: places(f, q).request, length: IN, flags: DESC_NEXT, next: 0xffff }], nothingWritable),
  },
  {
    name: 'a chain as long as the queue',
    expects: 'served',
    spoil: chain(
      (f, q) => {
        const [header, body, ...room] = goodRows(f, q);
        const bytes = Array.from({ length: 12 }, (_, i) => ({ at: Number(body!.at) + i * 2, length: 2 }));
        return [header!, ...bytes, ...room, { at: end(f, 1) - 8, length: 8, flags: DESC_WRITE }];
      },
      (f, q) => [...goodRanges(f, q), lastBytes(f, 8)],
    ),
  },
  {
    name: 'readable after writable',
    expects: 'error',
    spoil: chain((f, q) => {
      const [header, body, out, room] = goodRows(f, q);
      return [header!, out!, body!, room!];
    }),
  },
  {
    name: 'readable after all that is writable',
    expects: 'error',
    spoil: chain((f, q) => {
      const [header, body, out, room] = goodRows(f, q);
      return [out!, room!, header!, body!];
    }),
  },
  {
    name: 'nothing readable',
    expects: 'served',
    spoil: chain((f, q) => goodRows(f, q).slice(2)),
  },
  {
    name: 'nothing writable under a request that is answered',
    expects: 'empty',
    spoil: chain((f, q) => goodRows(f, q).slice(0, 2), nothingWritable),
  },
  {
    name: 'room for less than the header of an answer',
    expects: 'empty',
    spoil: chain(
      (f, q) => [...goodRows(f, q).slice(0, 2), { at: places(f, q).reply, length: 15, flags: DESC_WRITE }],
      nothingWritable,
    ),
  },
  {
    name: 'room for an answer byte by byte',
    expects: 'served',
    spoil: chain(
      (f, q) => {
        const { reply } = places(f, q);
        const [header] = goodRows(f, q);
        const bytes = Array.from({ length: 15 }, (_, i) => ({
          at: reply + i,
          length: i === 14 ? 2 : 1,
          flags: DESC_WRITE,
        }));
        return [header!, ...bytes];
      },
      (f, q) => [{ offset: places(f, q).replyOffset, bytes: OUT }],
    ),
  },
  {
    name: 'a request header byte by byte at odd addresses, with its end missing',
    expects: 'served',
    spoil: chain((f, q) => {
      const { request } = places(f, q);
      const rows = Array.from({ length: 13 }, (_, i) => ({ at: request + i, length: 1 }));
      return [...rows, ...goodRows(f, q).slice(2)];
    }),
  },
  {
    name: 'a request longer than there is room to copy it',
    expects: 'error',
    spoil: chain((f, q) => {
      const { guestAddr, sizeBytes } = f.memory.regions[1]!;
      const piece = { at: guestAddr, length: sizeBytes - 4096 };
      writeRequest(q);
      return [...Array.from({ length: 12 }, () => piece), ...goodRows(f, q).slice(2)];
    }),
  },
  {
    name: 'one buffer to read and to write',
    expects: 'served',
    spoil: chain(
      (f, q) => {
        const [header, body] = goodRows(f, q);
        return [header!, body!, { at: header!.at, length: IN, flags: DESC_WRITE }];
      },
      (_, q) => [{ offset: q.layout.buffersOffset, bytes: IN }],
    ),
  },
  {
    name: 'the same room twice',
    expects: 'served',
    spoil: chain((f, q) => {
      const rows = goodRows(f, q);
      return [...rows, rows[3]!];
    }),
  },
  {
    name: 'room over the descriptors of the chain',
    expects: 'served',
    spoil: chain(
      (f, q) => [
        ...goodRows(f, q).slice(0, 2),
        { at: f.memory.guestAddrOf(q.layout.descOffset), length: ROOM, flags: DESC_WRITE },
      ],
      (_, q) => [{ offset: q.layout.descOffset, bytes: ROOM }],
    ),
  },
  {
    name: 'room over the available ring',
    expects: 'served',
    spoil: chain(
      (f, q) => [
        ...goodRows(f, q).slice(0, 2),
        { at: f.memory.guestAddrOf(q.layout.availOffset + 8), length: OUT, flags: DESC_WRITE },
      ],
      (_, q) => [{ offset: q.layout.availOffset + 8, bytes: OUT }],
    ),
  },
  {
    name: 'flag bits that mean nothing',
    expects: 'served',
    spoil: chain((f, q) => goodRows(f, q).map((row) => ({ ...row, flags: (row.flags ?? 0) | 0xfff8 }))),
  },
];

const lastBytes = (front: FrontEnd, bytes: number): Range => {
  const { fileOffset, sizeBytes } = front.memory.regions[1]!;
  return { offset: fileOffset + sizeBytes - bytes, bytes };
};

/** A head that points to a table of these rows, in the place of slot 0's table. */
const indirect =
  (
    rows: (front: FrontEnd, queue: FrontQueue) => Descriptor[],
    head: (table: number, rows: number) => Partial<Descriptor> = () => ({}),
    writable = goodRanges,
  ): RingCase['spoil'] =>
  (front, queue) => {
    const made = rows(front, queue);
    const { table, tableWords } = places(front, queue);
    writeChain(tableWords, 0, made);
    writeDescriptor(queue.desc, 0, {
      at: table,
      length: made.length * 16,
      flags: DESC_INDIRECT,
      ...head(table, made.length),
    });
    publish(queue, 0);
    return writable(front, queue);
  };

const indirectLengths = [0, 1, 15, 17, 24, 16 * 17, 16 * 256, 0x8000_0000, 0xffff_fff0, 0xffff_ffff];

const indirectCases: RingCase[] = [
  ...indirectLengths.map(
    (length): RingCase => ({
      name: `an indirect table of ${length} bytes in a queue of 16`,
      expects: 'broken',
      spoil: indirect(goodRows, () => ({ length }), nothingWritable),
    }),
  ),
  ...badBuffers
    .filter(({ length }) => length === 64)
    .map(
      (bad): RingCase => ({
        name: `an indirect table ${bad.name}`,
        expects: 'broken',
        spoil: (front, queue) =>
          indirect(goodRows, () => ({ at: bad.at(front), length: 64 }), nothingWritable)(front, queue),
      }),
    ),
  {
    name: 'an indirect table in an indirect table',
    expects: 'broken',
    spoil: indirect(
      (f, q) => [{ at: places(f, q, 3).table, length: 64, flags: DESC_INDIRECT }],
      undefined,
      nothingWritable,
    ),
  },
  {
    name: 'an indirect table that is its own entry',
    expects: 'broken',
    spoil: indirect(
      (f, q) => [{ at: places(f, q).table, length: 16, flags: DESC_INDIRECT }],
      undefined,
      nothingWritable,
    ),
  },
  {
    name: 'an indirect table that goes on',
    expects: 'broken',
    spoil: indirect(goodRows, () => ({ flags: DESC_INDIRECT | DESC_NEXT, next: 1 }), nothingWritable),
  },
  {
    name: 'an indirect table that claims to be writable',
    expects: 'served',
    spoil: indirect(goodRows, () => ({ flags: DESC_INDIRECT | DESC_WRITE })),
  },
  {
    name: 'an indirect table at an odd address',
    expects: 'served',
    spoil: (front, queue) => {
      const { table, tableWords } = places(front, queue);
      writeChain(tableWords, 0, goodRows(front, queue));
      const { tablesOffset } = queue.layout;
      front.memory.u8.copyWithin(tablesOffset + 1, tablesOffset, tablesOffset + 64);
      writeDescriptor(queue.desc, 0, { at: table + 1, length: 64, flags: DESC_INDIRECT });
      publish(queue, 0);
      return goodRanges(front, queue);
    },
  },
  {
    name: 'an indirect table at the end of a chain rather than at its head',
    expects: 'served',
    spoil: (front, queue) => {
      const [header, ...rest] = goodRows(front, queue);
      const { table, tableWords } = places(front, queue);
      writeChain(tableWords, 0, rest);
      writeChain(queue.desc, 0, [header!, { at: table, length: 48, flags: DESC_INDIRECT }]);
      publish(queue, 0);
      return goodRanges(front, queue);
    },
  },
  {
    name: 'an indirect table that the driver did not negotiate',
    expects: 'broken',
    without: 'INDIRECT_DESC',
    spoil: indirect(goodRows, undefined, nothingWritable),
  },
  {
    name: 'a next outside of an indirect table, inside of the queue',
    expects: 'broken',
    spoil: indirect((f, q) => [{ ...goodRows(f, q)[0]!, flags: DESC_NEXT, next: 4 }], undefined, nothingWritable),
  },
  {
    name: 'an entry of an indirect table that goes on with itself',
    expects: 'broken',
    spoil: indirect((f, q) => [{ ...goodRows(f, q)[0]!, flags: DESC_NEXT, next: 0 }], undefined, nothingWritable),
  },
  {
    name: 'two entries of an indirect table that go on with each other',
    expects: 'broken',
    spoil: indirect(
      (f, q) => {
        const [header, body] = goodRows(f, q);
        return [header!, { ...body!, flags: DESC_NEXT, next: 0 }];
      },
      undefined,
      nothingWritable,
    ),
  },
  {
    name: 'an indirect table that is room for its own answer',
    expects: 'served',
    spoil: indirect(
      (f, q) => [...goodRows(f, q).slice(0, 2), { at: places(f, q).table, length: 48, flags: DESC_WRITE }],
      undefined,
      (_, q) => [{ offset: q.layout.tablesOffset, bytes: 48 }],
    ),
  },
  {
    name: 'readable after writable in an indirect table',
    expects: 'error',
    spoil: indirect((f, q) => {
      const [header, body, out, room] = goodRows(f, q);
      return [header!, out!, body!, room!];
    }),
  },
  {
    name: 'an indirect table over the descriptor that points to it',
    expects: 'broken',
    spoil: (front, queue) => {
      const at = front.memory.guestAddrOf(queue.layout.descOffset);
      writeDescriptor(queue.desc, 0, { at, length: 16, flags: DESC_INDIRECT });
      publish(queue, 0);
      return [];
    },
  },
];

const setAvailIdx = (queue: FrontQueue, idx: number): readonly Range[] => {
  Atomics.store(queue.avail, 1, idx & 0xffff);
  queue.kick();
  return [];
};

const ringCases: RingCase[] = [
  { name: 'a head that is the size of the queue', expects: 'broken', spoil: (_, q) => (publish(q, q.size), []) },
  { name: 'a head of 65535', expects: 'broken', spoil: (_, q) => (publish(q, 0xffff), []) },
  {
    name: 'an available index that jumps by more than the queue',
    expects: 'broken',
    spoil: (_, q) => setAvailIdx(q, q.size + 1),
  },
  { name: 'an available index that jumps by 2^15', expects: 'broken', spoil: (_, q) => setAvailIdx(q, 0x8000) },
  {
    name: 'an available index that goes back by one',
    expects: 'broken',
    spoil: (_, q) => setAvailIdx(q, q.availIdx - 1),
  },
  { name: 'a kick for nothing', expects: 'nothing', spoil: (_, q) => (q.kick(), []) },
  {
    name: 'ten thousand kicks for nothing',
    expects: 'nothing',
    spoil: (_, queue) => {
      for (let i = 0; i < 10_000; i++) queue.kick();
      return [];
    },
  },
  {
    name: 'the same head in every entry of the ring',
    expects: 'served',
    spoil: (front, queue) => {
      writeChain(queue.desc, 0, goodRows(front, queue));
      publish(queue, ...Array.from({ length: queue.size }, () => 0));
      return goodRanges(front, queue);
    },
  },
  {
    name: 'more chains in flight than the queue has descriptors',
    expects: 'broken',
    spoil: (front, queue) => {
      const rows = goodRows(front, queue);
      writeRequest(queue, OPCODE_HOLD);
      writeChain(queue.desc, 0, rows);
      publish(queue, ...Array.from({ length: queue.size }, () => 0));
      front.settle();
      publish(queue, 0);
      return [];
    },
  },
  {
    name: 'a used index that the driver overwrote',
    expects: 'served',
    spoil: (front, queue) => {
      writeChain(queue.desc, 0, goodRows(front, queue));
      Atomics.store(queue.used, 1, 0x1234);
      publish(queue, 0);
      return goodRanges(front, queue);
    },
  },
  {
    name: 'a used ring, its flags and its event that the driver overwrote',
    expects: 'served',
    spoil: (front, queue) => {
      writeChain(queue.desc, 0, goodRows(front, queue));
      queue.used.fill(0xffff);
      publish(queue, 0);
      return goodRanges(front, queue);
    },
  },
  {
    name: 'an available ring with flags and an event of all ones',
    expects: 'served',
    spoil: (front, queue) => {
      writeChain(queue.desc, 0, goodRows(front, queue));
      queue.avail[0] = 0xffff;
      queue.avail[2 + queue.size] = 0xffff;
      publish(queue, 0);
      return goodRanges(front, queue);
    },
  },
  {
    name: 'room over the used ring, where the device writes at that moment',
    expects: 'served',
    spoil: (front, queue) => {
      const { usedOffset } = queue.layout;
      const at = front.memory.guestAddrOf(usedOffset);
      writeChain(queue.desc, 0, [...goodRows(front, queue).slice(0, 2), { at, length: ROOM, flags: DESC_WRITE }]);
      publish(queue, 0);
      return [{ offset: usedOffset, bytes: ROOM }];
    },
  },
];

export const allRingCases: readonly RingCase[] = [
  ...badBufferCases,
  ...noRoomCases,
  ...chainCases,
  ...indirectCases,
  ...ringCases,
];
