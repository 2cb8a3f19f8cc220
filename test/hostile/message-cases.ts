/** What a monitor may say on the control socket to harm the device: from each row of the back end's table, and by hand. */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import {
  addSeals,
  close,
  eventfd,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  memfd,
  setNonBlocking,
  socketPair,
  timerfd,
} from '../../src/sys/index.ts';
import { shutdown } from '../../src/sys/libc.ts';
import { rows } from '../../src/virtio/back-end-rows.ts';
import * as vu from '../../src/virtio/messages.ts';
import type { FrontEnd } from '../front-end/index.ts';
import type { Range } from './memory-guard.ts';

/**
 * What must come of it. `refused`: it is told so, where it asked to be told, or the connection ends. `ended`: the connection
 * ends. `taken`: it is odd but allowed, and the device serves on. `waits`: the rest of a message may still come. `either`:
 * nobody can be told, so that it is taken or the connection ends.
 */
type Answer = 'refused' | 'ended' | 'taken' | 'waits' | 'either';

export interface MessageCase {
  readonly name: string;
  readonly expects: Answer;
  /** How far the front end is when it says it. Default: the rings run. */
  readonly after?: 'connect' | 'handshake';
  readonly message: (front: FrontEnd, own: (fd: number) => number) => Sent;
  /** What the device may write after it: it moves the rings, and something is available in the new ones. */
  readonly mayWrite?: (front: FrontEnd) => Range[];
}

interface Sent {
  readonly request: number;
  readonly payload: Uint8Array;
  readonly fds?: readonly number[];
  readonly flags?: number;
  /** What the header claims; the payload's length by default. */
  readonly size?: number;
  /** Only so many bytes of it are sent. */
  readonly only?: number;
  /** And then the front end hangs up its side. */
  readonly hangsUp?: boolean;
}

const MIB = 2 ** 20;
const SHUT_WR = 1;

const u64s = (...values: (number | bigint)[]): Uint8Array =>
  new Uint8Array(BigUint64Array.from(values, (value) => BigInt(value)).buffer);
const u32s = (...values: number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);

/** A sealed memfd of one region. */
function memory(own: (fd: number) => number, sizeBytes = MIB, seals = F_SEAL_SHRINK | F_SEAL_GROW): number {
  const fd = own(memfd('hostile', sizeBytes));
  if (seals !== 0) addSeals(fd, seals);
  return fd;
}

const AWAY = 2 ** 45;
const regionRow = (guestAddr: number | bigint, sizeBytes: number | bigint, fileOffset: number | bigint = 0) => [
  guestAddr,
  sizeBytes,
  BigInt(guestAddr) + 2n ** 44n,
  fileOffset,
];

/** A message of each row that is as it must be while the rings run: what is spoiled below. */
const good: Readonly<Record<string, MessageCase['message']>> = {
  GET_FEATURES: () => ({ request: vu.GET_FEATURES, payload: u64s() }),
  SET_FEATURES: (front) => ({ request: vu.SET_FEATURES, payload: u32s(front.featuresLo, front.featuresHi) }),
  SET_OWNER: () => ({ request: vu.SET_OWNER, payload: u64s() }),
  RESET_OWNER: () => ({ request: vu.RESET_OWNER, payload: u64s() }),
  SET_MEM_TABLE: (_, own) => ({
    request: vu.SET_MEM_TABLE,
    payload: u64s(1, ...regionRow(AWAY, MIB)),
    fds: [memory(own)],
  }),
  SET_VRING_NUM: (front) => ({ request: vu.SET_VRING_NUM, payload: u32s(1, front.queues[1]!.size) }),
  SET_VRING_ADDR: (front) => {
    const { layout } = front.queues[1]!;
    const at = (offset: number): number => front.memory.frontendAddrOf(offset);
    const payload = u64s(1, at(layout.descOffset), at(layout.usedOffset), at(layout.availOffset), 0);
    return { request: vu.SET_VRING_ADDR, payload };
  },
  SET_VRING_BASE: () => ({ request: vu.SET_VRING_BASE, payload: u32s(9, 0) }),
  GET_VRING_BASE: () => ({ request: vu.GET_VRING_BASE, payload: u32s(1, 0) }),
  SET_VRING_KICK: (_, own) => ({ request: vu.SET_VRING_KICK, payload: u64s(1), fds: [own(eventfd())] }),
  SET_VRING_CALL: (_, own) => ({ request: vu.SET_VRING_CALL, payload: u64s(1), fds: [own(eventfd())] }),
  SET_VRING_ERR: (_, own) => ({ request: vu.SET_VRING_ERR, payload: u64s(1), fds: [own(eventfd())] }),
  GET_PROTOCOL_FEATURES: () => ({ request: vu.GET_PROTOCOL_FEATURES, payload: u64s() }),
  SET_PROTOCOL_FEATURES: (front) => ({ request: vu.SET_PROTOCOL_FEATURES, payload: u64s(front.protocolFeatures) }),
  GET_QUEUE_NUM: () => ({ request: vu.GET_QUEUE_NUM, payload: u64s() }),
  SET_VRING_ENABLE: () => ({ request: vu.SET_VRING_ENABLE, payload: u32s(1, 1) }),
  GET_MAX_MEM_SLOTS: () => ({ request: vu.GET_MAX_MEM_SLOTS, payload: u64s() }),
  ADD_MEM_REG: (_, own) => ({
    request: vu.ADD_MEM_REG,
    payload: u64s(0, ...regionRow(AWAY, MIB)),
    fds: [memory(own)],
  }),
  REM_MEM_REG: (front) => {
    const { guestAddr, sizeBytes, frontendAddr, fileOffset } = front.memory.regions[1]!;
    return { request: vu.REM_MEM_REG, payload: u64s(0, guestAddr, sizeBytes, frontendAddr, fileOffset) };
  },
};

/** The ways to spoil any message, for each row that has what is spoiled. */
function spoilt(row: (typeof rows)[number]): MessageCase[] {
  const { name } = row;
  const [least, most] = row.payloadBytes;
  const [fewestFds, mostFds] = row.fds;
  const from = good[name];
  if (from === undefined) throw new Error(`no good message is known of ${name}; add one here`);
  const all: MessageCase[] = [];
  const add = (what: string, expects: Answer, change: (sent: Sent, own: (fd: number) => number) => Partial<Sent>) =>
    all.push({
      name: `${name} ${what}`,
      expects,
      message: (front, own) => {
        const sent = from(front, own);
        return { ...sent, ...change(sent, own) };
      },
    });
  all.push({ name: `${name} as it must be`, expects: 'taken', message: from });
  all.push({
    name: `${name} as the very first message, asking for a reply nobody agreed on`,
    expects: row.answersData === true ? 'taken' : 'either',
    after: 'connect',
    message: from,
  });
  if (least > 0) {
    add('without its payload', 'refused', () => ({ payload: u64s() }));
    add('one byte short', 'refused', ({ payload }) => ({
      payload: payload.subarray(0, least === most ? payload.length - 1 : least - 1),
    }));
    add('with half of its payload, and then silence', 'waits', ({ payload }) => ({ only: 12 + (payload.length >> 1) }));
    add('with half of its payload, and then the end', 'ended', ({ payload }) => ({
      only: 12 + (payload.length >> 1),
      hangsUp: true,
    }));
  }
  if (most < vu.MAX_PAYLOAD_BYTES) {
    add('one byte long', 'refused', ({ payload }) => ({ payload: Uint8Array.of(...payload, 0) }));
    add('with the longest payload there is', 'refused', () => ({ payload: new Uint8Array(vu.MAX_PAYLOAD_BYTES) }));
  }
  if (mostFds > 0 && name !== 'REM_MEM_REG') add('without its descriptor', 'refused', () => ({ fds: [] }));
  if (fewestFds !== mostFds && mostFds === 1 && name === 'REM_MEM_REG')
    add('with a descriptor, which is allowed', 'taken', (_, own) => ({ fds: [own(eventfd())] }));
  add('with one descriptor too many', 'refused', (sent, own) => ({
    fds: [
      ...(sent.fds ?? []),
      ...Array.from({ length: Math.max(1, mostFds - (sent.fds?.length ?? 0) + 1) }, () => own(eventfd())),
    ],
  }));
  add('with 32 descriptors', 'refused', (_, own) => {
    const fd = own(eventfd());
    return { fds: Array.from({ length: 32 }, () => fd) };
  });
  add('of version 0', 'ended', () => ({ flags: 0 }));
  add('of version 2', 'ended', () => ({ flags: 2 }));
  add('that claims to be a reply', 'ended', () => ({ flags: vu.VERSION | vu.FLAG_REPLY }));
  add('that claims 2^32 - 1 bytes', 'ended', () => ({ size: 0xffff_ffff }));
  add('with half of its header, and then the end', 'ended', () => ({ only: 6, hangsUp: true }));
  return all;
}

/** Descriptors that are no memory of a guest. */
const notMemory: readonly { name: string; make: (own: (fd: number) => number) => number }[] = [
  { name: 'a socket', make: socket },
  { name: 'a pipe', make: pipe },
  { name: 'an eventfd', make: (own) => own(eventfd()) },
  { name: 'a timerfd', make: (own) => own(timerfd()) },
  { name: 'a file of a disk', make: (own) => own(openSync('/etc/hostname', 'r')) },
  { name: 'a directory', make: (own) => own(openSync('/tmp', 'r')) },
  { name: '/dev/null', make: (own) => own(openSync('/dev/null', 'r+')) },
  { name: '/dev/zero', make: (own) => own(openSync('/dev/zero', 'r+')) },
  { name: 'a memfd of no bytes', make: (own) => memory(own, 0) },
  { name: 'a memfd one byte shorter than the region', make: (own) => memory(own, MIB - 1) },
  { name: 'a memfd without seals', make: (own) => memory(own, MIB, 0) },
  { name: 'a memfd that is sealed only against growing', make: (own) => memory(own, MIB, F_SEAL_GROW) },
  { name: 'a memfd that is sealed against writing', make: (own) => memory(own, MIB, F_SEAL_SHRINK | F_SEAL_WRITE) },
  {
    name: 'a sealed memfd opened to read only',
    make: (own) => own(openSync(`/proc/self/fd/${memory(own)}`, 'r')),
  },
];

function socket(own: (fd: number) => number): number {
  const pair = socketPair();
  if (typeof pair === 'number') throw new Error('no socket pair');
  own(pair[1]);
  return own(pair[0]);
}

function pipe(own: (fd: number) => number): number {
  const directory = mkdtempSync('/tmp/porthole-hostile-');
  const path = `${directory}/pipe`;
  execFileSync('mkfifo', [path]);
  const fd = own(openSync(path, 'r+'));
  rmSync(directory, { recursive: true });
  return fd;
}

const memoryCases: MessageCase[] = notMemory.flatMap(({ name, make }): MessageCase[] => [
  {
    name: `SET_MEM_TABLE with ${name} for memory`,
    expects: 'refused',
    message: (_, own) => ({
      request: vu.SET_MEM_TABLE,
      payload: u64s(1, ...regionRow(AWAY, MIB)),
      fds: [make(own)],
    }),
  },
  {
    name: `ADD_MEM_REG with ${name} for memory`,
    expects: 'refused',
    message: (_, own) => ({ request: vu.ADD_MEM_REG, payload: u64s(0, ...regionRow(AWAY, MIB)), fds: [make(own)] }),
  },
]);

const table = (name: string, expects: Answer, ...regions: (number | bigint)[][]): MessageCase => ({
  name: `SET_MEM_TABLE with ${name}`,
  expects,
  message: (_, own) => {
    const fd = memory(own);
    return {
      request: vu.SET_MEM_TABLE,
      payload: u64s(regions.length, ...regions.flat()),
      fds: Array.from({ length: Math.min(regions.length, 32) }, () => fd),
    };
  },
});

const TOP = 2n ** 64n;
const tableCases: MessageCase[] = [
  table('no region at all', 'taken'),
  table('eight regions', 'taken', ...Array.from({ length: 8 }, (_, i) => regionRow(AWAY + i * MIB, MIB))),
  table('nine regions', 'ended', ...Array.from({ length: 9 }, (_, i) => regionRow(AWAY + i * MIB, MIB))),
  table('a region of no bytes', 'refused', regionRow(AWAY, 0)),
  table('a region of 2^64 - 1 bytes', 'refused', regionRow(AWAY, TOP - 1n)),
  table('a region of 2^63 bytes', 'refused', regionRow(AWAY, TOP / 2n)),
  table('a region at the last page of all addresses', 'refused', [TOP - 4096n, 4096, AWAY, 0]),
  table('a region that wraps past 2^64', 'refused', [TOP - 4096n, MIB, AWAY, 0]),
  table('a region whose user addresses wrap past 2^64', 'refused', [AWAY, MIB, TOP - 4096n, 0]),
  table('an offset in the file that wraps past 2^64', 'refused', [AWAY, MIB, AWAY, TOP - 4096n]),
  table('an offset beyond the file', 'refused', [AWAY, 4096, AWAY, MIB]),
  table('a region one page beyond the file', 'refused', [AWAY, MIB, AWAY, 4096]),
  table('an odd guest address', 'refused', [AWAY + 1, 4096, AWAY, 0]),
  table('an odd user address', 'refused', [AWAY, 4096, AWAY + 1, 0]),
  table('an odd offset', 'refused', [AWAY, 4096, AWAY, 1]),
  table('the same region twice', 'refused', regionRow(AWAY, MIB), regionRow(AWAY, MIB)),
  table('a region within another', 'refused', regionRow(AWAY, MIB), [AWAY + 4096, 4096, 2 ** 46, 0]),
  table('regions that overlap by a page', 'refused', regionRow(AWAY, MIB), [AWAY + MIB - 4096, 8192, 2 ** 46, 0]),
  table('regions whose user addresses overlap', 'refused', [AWAY, MIB, AWAY, 0], [2 ** 46, MIB, AWAY + 4096, 0]),
  table('two regions of the same bytes', 'taken', regionRow(AWAY, MIB), regionRow(2 ** 46, MIB)),
  {
    name: 'SET_MEM_TABLE that counts more regions than it has',
    expects: 'refused',
    message: (_, own) => ({
      request: vu.SET_MEM_TABLE,
      payload: u64s(8, ...regionRow(AWAY, MIB)),
      fds: Array.from({ length: 8 }, () => memory(own)),
    }),
  },
  {
    name: 'SET_MEM_TABLE that counts 2^32 - 1 regions',
    expects: 'refused',
    message: (_, own) => ({
      request: vu.SET_MEM_TABLE,
      payload: u64s(0xffff_ffff, ...regionRow(AWAY, MIB)),
      fds: [memory(own)],
    }),
  },
  {
    name: 'SET_MEM_TABLE with fewer descriptors than regions',
    expects: 'refused',
    message: (_, own) => ({
      request: vu.SET_MEM_TABLE,
      payload: u64s(2, ...regionRow(AWAY, MIB), ...regionRow(2 ** 46, MIB)),
      fds: [memory(own)],
    }),
  },
  {
    name: 'SET_MEM_TABLE with a region of 64 TiB of nothing',
    expects: 'taken',
    message: (_, own) => ({
      request: vu.SET_MEM_TABLE,
      payload: u64s(1, ...regionRow(2 ** 47, 2 ** 46)),
      fds: [memory(own, 2 ** 46)],
    }),
  },
  {
    name: 'SET_MEM_TABLE with more of nothing than there are addresses',
    expects: 'refused',
    message: (_, own) => ({
      request: vu.SET_MEM_TABLE,
      payload: u64s(1, ...regionRow(2 ** 51, 2 ** 50)),
      fds: [memory(own, 2 ** 50)],
    }),
  },
  {
    name: 'ADD_MEM_REG with a region that overlaps a running ring',
    expects: 'refused',
    message: (front, own) => {
      const { guestAddr } = front.memory.regions[0]!;
      return { request: vu.ADD_MEM_REG, payload: u64s(0, ...regionRow(guestAddr, MIB)), fds: [memory(own)] };
    },
  },
  {
    name: 'REM_MEM_REG of a part of a region',
    expects: 'refused',
    message: (front) => {
      const { guestAddr, frontendAddr } = front.memory.regions[0]!;
      return { request: vu.REM_MEM_REG, payload: u64s(0, guestAddr, 4096, frontendAddr, 0) };
    },
  },
  {
    name: 'REM_MEM_REG of the region under running rings',
    expects: 'taken',
    message: (front) => {
      const { guestAddr, sizeBytes, frontendAddr, fileOffset } = front.memory.regions[0]!;
      return { request: vu.REM_MEM_REG, payload: u64s(0, guestAddr, sizeBytes, frontendAddr, fileOffset) };
    },
  },
];

/** Descriptors that are no eventfd. */
const notEvents: readonly { name: string; make: (own: (fd: number) => number) => number }[] = [
  { name: 'a socket', make: socket },
  { name: 'a pipe', make: pipe },
  {
    name: 'a socket whose other end is closed',
    make: (own) => {
      const pair = socketPair();
      if (typeof pair === 'number') throw new Error('no socket pair');
      close(pair[1]);
      return own(pair[0]);
    },
  },
  { name: 'a file of a disk', make: (own) => own(openSync('/etc/hostname', 'r')) },
  { name: 'a directory', make: (own) => own(openSync('/tmp', 'r')) },
  { name: 'a memfd', make: (own) => memory(own) },
  { name: 'a timerfd', make: (own) => own(timerfd()) },
  { name: '/dev/zero', make: (own) => own(openSync('/dev/zero', 'r+')) },
];

const eventCases: MessageCase[] = (
  [
    ['KICK', vu.SET_VRING_KICK],
    ['CALL', vu.SET_VRING_CALL],
    ['ERR', vu.SET_VRING_ERR],
  ] as const
).flatMap(([what, request]) => {
  const withIndex = (name: string, index: number | bigint, expects: Answer, hasFd = true): MessageCase => ({
    name: `SET_VRING_${what} ${name}`,
    expects,
    message: (_, own) => ({ request, payload: u64s(index), fds: hasFd ? [own(eventfd())] : [] }),
  });
  return [
    ...notEvents.map(
      ({ name, make }): MessageCase => ({
        name: `SET_VRING_${what} with ${name} for an eventfd`,
        expects: 'refused',
        message: (_, own) => ({ request, payload: u64s(1), fds: [make(own)] }),
      }),
    ),
    {
      name: `SET_VRING_${what} with an eventfd that blocks`,
      expects: 'taken',
      message: (_, own) => {
        const fd = own(eventfd());
        setNonBlocking(fd, false);
        return { request, payload: u64s(1), fds: [fd] };
      },
    },
    withIndex('of a queue that is not there', 17, 'refused'),
    withIndex('of queue 255', 255, 'refused'),
    withIndex('with bits that mean nothing', 0x201, 'refused'),
    withIndex('with high bits', 2n ** 63n, 'refused'),
    withIndex('with a descriptor that it says is not there', 0x101, 'refused'),
    withIndex('with no descriptor, as it says', 0x101, 'taken', false),
  ];
});

const state = (
  name: string,
  request: number,
  index: number,
  num: number,
  expects: Answer = 'refused',
): MessageCase => ({
  name,
  expects,
  message: () => ({ request, payload: u32s(index, num) }),
});

const address = (name: string, ...fields: (number | bigint)[]): MessageCase => ({
  name: `SET_VRING_ADDR with ${name}`,
  expects: 'refused',
  message: () => ({ request: vu.SET_VRING_ADDR, payload: u64s(...fields) }),
});

const BASE = 0x7f00_0000_0000;
const ringCases: MessageCase[] = [
  state('SET_VRING_NUM of 0', vu.SET_VRING_NUM, 1, 0),
  state('SET_VRING_NUM of 3', vu.SET_VRING_NUM, 1, 3),
  state('SET_VRING_NUM of 65536', vu.SET_VRING_NUM, 1, 65536),
  state('SET_VRING_NUM of 2^32 - 1', vu.SET_VRING_NUM, 1, 0xffff_ffff),
  state('SET_VRING_NUM of another size while the ring runs', vu.SET_VRING_NUM, 1, 256),
  state('SET_VRING_NUM of queue 2^32 - 1', vu.SET_VRING_NUM, 0xffff_ffff, 128),
  state('SET_VRING_BASE of 65536', vu.SET_VRING_BASE, 9, 65536),
  state('SET_VRING_BASE while the ring runs', vu.SET_VRING_BASE, 1, 0),
  state('SET_VRING_BASE of queue 17', vu.SET_VRING_BASE, 17, 0),
  state('GET_VRING_BASE of queue 17', vu.GET_VRING_BASE, 17, 0),
  state('GET_VRING_BASE of queue 2^31', vu.GET_VRING_BASE, 0x8000_0000, 0),
  state('SET_VRING_ENABLE by 2', vu.SET_VRING_ENABLE, 1, 2),
  state('SET_VRING_ENABLE of queue 17', vu.SET_VRING_ENABLE, 17, 1),
  state('SET_VRING_ENABLE of a queue that has no ring', vu.SET_VRING_ENABLE, 9, 1, 'taken'),
  address('a queue that is not there', 17, BASE, BASE, BASE, 0),
  address('flags', 2n ** 32n + 1n, BASE, BASE, BASE, 0),
  address('descriptors off their alignment', 1, BASE + 8, BASE, BASE, 0),
  address('a used ring off its alignment', 1, BASE, BASE + 2, BASE, 0),
  address('an available ring off its alignment', 1, BASE, BASE, BASE + 1, 0),
  address('rings outside of memory', 1, 4096, 8192, 12288, 0),
  address('rings at 2^64 - 16', 1, TOP - 16n, TOP - 16n, TOP - 16n, 0),
  address('rings at 2^53', 1, 2n ** 53n, 2n ** 53n, 2n ** 53n, 0),
  {
    name: 'SET_VRING_ADDR with all three tables at one place',
    expects: 'taken',
    mayWrite: ({ queues }) => {
      const { layout, size, slots } = queues[1]!;
      const buffers = { offset: layout.buffersOffset, bytes: slots * (layout.requestBytes + layout.replyBytes) };
      return [{ offset: layout.descOffset, bytes: 6 + size * 8 }, buffers];
    },
    message: (front) => {
      const at = front.memory.frontendAddrOf(front.queues[1]!.layout.descOffset);
      return { request: vu.SET_VRING_ADDR, payload: u64s(1, at, at, at, 0) };
    },
  },
  {
    name: 'SET_VRING_ADDR with a descriptor table that ends beyond its region',
    expects: 'refused',
    message: (front) => {
      const { frontendAddr, sizeBytes } = front.memory.regions[0]!;
      const { layout } = front.queues[1]!;
      const at = (offset: number): number => front.memory.frontendAddrOf(offset);
      const payload = u64s(1, frontendAddr + sizeBytes - 16, at(layout.usedOffset), at(layout.availOffset), 0);
      return { request: vu.SET_VRING_ADDR, payload };
    },
  },
];

const plain = (name: string, expects: Answer, sent: Sent, after?: 'connect' | 'handshake'): MessageCase => ({
  name,
  expects,
  ...(after === undefined ? {} : { after }),
  message: () => sent,
});

const otherCases: MessageCase[] = [
  plain('request 0', 'refused', { request: 0, payload: u64s() }),
  plain('a request that does not exist', 'refused', { request: 99, payload: u64s(1) }),
  plain('a request that was not offered (SET_LOG_BASE)', 'refused', { request: 6, payload: u64s(0, 0) }),
  plain('request 2^32 - 1', 'refused', { request: 0xffff_ffff, payload: u64s() }),
  plain('SET_FEATURES with a bit that was not offered', 'refused', {
    request: vu.SET_FEATURES,
    payload: u64s(2n ** 34n),
  }),
  plain('SET_FEATURES with all bits', 'refused', { request: vu.SET_FEATURES, payload: u64s(TOP - 1n) }),
  plain('SET_FEATURES that takes back EVENT_IDX while rings run', 'refused', {
    request: vu.SET_FEATURES,
    payload: u64s(2n ** 30n + 2n ** 28n + 2n ** 32n),
  }),
  plain(
    'SET_FEATURES twice before anything else',
    'taken',
    { request: vu.SET_FEATURES, payload: u64s(2n ** 30n) },
    'handshake',
  ),
  plain('SET_PROTOCOL_FEATURES with a bit that was not offered', 'refused', {
    request: vu.SET_PROTOCOL_FEATURES,
    payload: u64s(2),
  }),
  plain('SET_PROTOCOL_FEATURES with all bits', 'refused', {
    request: vu.SET_PROTOCOL_FEATURES,
    payload: u64s(TOP - 1n),
  }),
  plain('SET_PROTOCOL_FEATURES that takes back all of them', 'waits', {
    request: vu.SET_PROTOCOL_FEATURES,
    payload: u64s(0),
  }),
  plain('nothing but the end', 'ended', { request: 0, payload: u64s(), only: 0, hangsUp: true }, 'connect'),
  plain('the end while rings run', 'ended', { request: 0, payload: u64s(), only: 0, hangsUp: true }),
  {
    name: 'descriptors byte by byte, 32 with each',
    expects: 'ended',
    message: (front, own) => {
      const fd = own(eventfd());
      const fds = Array.from({ length: 32 }, () => fd);
      const header = u32s(vu.SET_MEM_TABLE, vu.VERSION, 8);
      for (let i = 0; i < 4; i++) if (front.sendBytes(header.slice(i, i + 1), fds) < 0) break;
      return { request: 0, payload: u64s(), only: 0 };
    },
  },
  {
    name: 'a message in the middle of another',
    expects: 'ended',
    message: (front) => {
      front.sendBytes(u32s(vu.SET_FEATURES, vu.VERSION));
      return { request: vu.GET_FEATURES, payload: u64s() };
    },
  },
];

/** A file system has no configuration space here, whatever a message asks of it. */
const configCases: MessageCase[] = [
  ['as another device would take it', u32s(0, 8, 0, 0, 0)],
  ['of nothing', u32s(0, 0, 0)],
  ['without its payload', u64s()],
  ['far beyond its end', u32s(0xffff_fff8, 8, 0, 0, 0)],
  ['of 2^32 - 1 bytes', u32s(0, 0xffff_ffff, 0)],
].map(([what, payload]) => ({
  name: `GET_CONFIG ${String(what)}`,
  expects: 'refused',
  message: () => ({ request: vu.GET_CONFIG, payload: payload as Uint8Array }),
}));

export const allMessageCases: readonly MessageCase[] = [
  ...rows.filter(({ code }) => code !== vu.GET_CONFIG).flatMap(spoilt),
  ...configCases,
  ...memoryCases,
  ...tableCases,
  ...eventCases,
  ...ringCases,
  ...otherCases,
];

/** Says it, and hangs up where the case does. Returns whether an answer is due if it is not refused by hanging up. */
export function say(front: FrontEnd, { message }: MessageCase): boolean {
  const owned: number[] = [];
  const own = (fd: number): number => {
    if (fd < 0) throw new Error(`making a descriptor failed with errno ${-fd}`);
    owned.push(fd);
    return fd;
  };
  const sent = message(front, own);
  const answersData = rows.find((row) => row.code === sent.request)?.answersData === true;
  const canAsk = (front.protocolFeatures & vu.PROTOCOL_F_REPLY_ACK) !== 0;
  const flags = sent.flags ?? vu.VERSION | (answersData ? 0 : vu.FLAG_NEED_REPLY);
  const bytes = new Uint8Array(vu.MessageHeader.sizeBytes + sent.payload.length);
  bytes.set(u32s(sent.request, flags, sent.size ?? sent.payload.length));
  bytes.set(sent.payload, vu.MessageHeader.sizeBytes);
  const part = bytes.slice(0, sent.only ?? bytes.length);
  if (part.length > 0) front.sendBytes(part, sent.fds ?? []);
  if (sent.hangsUp === true) shutdown(front.fd, SHUT_WR);
  for (const fd of owned) closeSync(fd);
  return canAsk || answersData;
}
