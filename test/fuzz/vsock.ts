/**
 * Fuzzes the connections of a vsock device: a guest that sends what the bytes say, and a host that does as they say. Whatever
 * comes, nothing throws; what the guest is sent is well-formed, belongs to a connection that it can know of, and keeps to the
 * credit that it gave; each request is answered once; every end of the host is told once that it is over.
 */
import assert from 'node:assert/strict';
import { MAX_VSOCK_CONNECTIONS } from '../../src/virtio/index.ts';
import { VsockMux } from '../../src/virtio/vsock/mux.ts';
import { EPIPE } from '../../src/wire/index.ts';
import { GUEST_CID, HOST_CID, op, PACKET_HEADER_BYTES, packetBytes, parsePacket } from '../front-end/vsock-driver.ts';
import { ToyEnd } from '../front-end/vsock-end.ts';
import { Choices } from './choices.ts';

const MAX_STEPS = 400;
const guestPorts = [1, 2, 3, 1023, 2 ** 32 - 1];
/** Somebody listens at the first three. */
const hostPorts = [10, 11, 12, 13, 2 ** 30, 2 ** 30 + 1, 2 ** 30 + 2];
const listening = new Set([10, 11, 12]);
const lengths = [0, 1, 4, 100, 4096, 32_768, 65_536];
const amounts = [0, 1, 100, 5000, 65_536, 262_144, 2 ** 31, 2 ** 32 - 1];
const capacities = [70_000, 45, 46, 100, 4096];
const ops = [
  op.request,
  op.request,
  op.rw,
  op.rw,
  op.rw,
  op.creditUpdate,
  op.shutdown,
  op.response,
  op.creditRequest,
  op.rst,
  0,
  9,
];

/** What the guest may be told about two ports. */
interface Known {
  /** It may have one: it was answered, or the host asked. */
  isOpen: boolean;
  /** As it said last, and what it was sent since the connection began; undefined once it lied. */
  sent: number;
  bufAlloc: number;
  fwdCnt: number;
}

export function fuzzVsock(bytes: Uint8Array): void {
  const choose = new Choices(bytes);
  const ends: ToyEnd[] = [];
  const known = new Map<string, Known>();
  let nowMs = 0;
  const mux: VsockMux = new VsockMux({
    guestCid: GUEST_CID,
    nowMs: () => nowMs,
    open: (port) => {
      if (!listening.has(port)) return undefined;
      const end = new ToyEnd();
      ends.push(end);
      return end;
    },
  });
  const knownAt = (guestPort: number, hostPort: number): Known => {
    const key = `${guestPort} ${hostPort}`;
    const found = known.get(key) ?? { isOpen: false, sent: 0, bufAlloc: 2 ** 32 - 1, fwdCnt: 0 };
    known.set(key, found);
    return found;
  };

  const fromGuest = (): void => {
    const code = choose.of(ops);
    const srcPort = choose.of(guestPorts);
    const dstPort = choose.of(hostPorts);
    const data = code === op.rw ? new Uint8Array(choose.of(lengths)) : undefined;
    const fields = { srcPort, dstPort, op: code, bufAlloc: choose.of(amounts), fwdCnt: 0, flags: choose.byte() };
    const about = knownAt(srcPort, dstPort);
    // Mostly the truth about what it has taken.
    fields.fwdCnt = choose.byte() < 200 ? about.sent % 2 ** 32 : choose.of(amounts);
    const packet = packetBytes(fields, data);
    const how = choose.byte();
    const isWhole = how < 230;
    if (how >= 250) packet[choose.byte() % PACKET_HEADER_BYTES] = choose.byte();
    const sent = how >= 230 && how < 250 ? packet.subarray(0, choose.byte()) : packet;
    const buffer = new Uint8Array(PACKET_HEADER_BYTES + 65_536);
    buffer.set(sent);
    if (!mux.mayReceive) return;
    mux.receive(buffer, new DataView(buffer.buffer), sent.length);
    if (!isWhole) {
      // It may have named any ports, and given any credit.
      for (const each of known.values()) [each.bufAlloc, each.fwdCnt] = [2 ** 32 - 1, each.sent];
      return;
    }
    about.bufAlloc = fields.bufAlloc;
    about.fwdCnt = fields.fwdCnt;
    if (code === op.request) about.sent = 0;
  };

  const onHost = (): void => {
    const end = ends[choose.byte() % Math.max(1, ends.length)];
    const connection = end?.connection;
    if (end === undefined || connection === undefined || end.overBy !== undefined) return;
    switch (choose.byte() % 11) {
      case 0:
      case 1:
      case 2:
        for (let i = choose.of([1, 10, 1000, 20_000]); i > 0; i--) end.toGive.push(i & 255);
        return mux.readable(connection);
      case 3:
        end.hasEnded = true;
        return mux.readable(connection);
      case 4:
        end.hasEnded = true;
        end.gone = true;
        return mux.readable(connection);
      case 5:
        end.room = choose.of([0, 1, 1000, Number.POSITIVE_INFINITY]);
        return mux.writable(connection);
      case 6:
        end.takesErrno = EPIPE;
        return mux.writable(connection);
      case 7:
        end.givesErrno = EPIPE;
        return mux.readable(connection);
      case 8:
        end.during = () => {
          end.during = () => undefined;
          mux.broken(connection);
        };
        return undefined;
      case 9:
        end.during = () => mux.readable(connection);
        return undefined;
      default:
        return mux.broken(connection);
    }
  };

  const toGuest = (most: number): void => {
    for (let i = 0; i < most && mux.prepare(); i++) {
      const capacity = choose.of(capacities);
      const size = mux.compose(capacity);
      assert.ok(size <= capacity, `${size} bytes for a buffer of ${capacity}`);
      const whole = new Uint8Array(size);
      whole.set(mux.packet.head.subarray(0, mux.packet.headBytes));
      if (mux.packet.payload !== undefined) whole.set(mux.packet.payload, mux.packet.headBytes);
      const { fields, data } = parsePacket(whole);
      assert.equal(fields.len, data.length);
      assert.equal(fields.dstCid, GUEST_CID);
      assert.ok(fields.op >= op.request && fields.op <= op.creditRequest);
      if (fields.op === op.rst) {
        // One for another host, or of another type, is about something else.
        if (fields.srcCid === HOST_CID && fields.type === 1) knownAt(fields.dstPort, fields.srcPort).isOpen = false;
        continue;
      }
      assert.deepEqual([fields.srcCid, fields.type], [HOST_CID, 1]);
      const about = knownAt(fields.dstPort, fields.srcPort);
      if (fields.op === op.response || fields.op === op.request) {
        about.isOpen = true;
        about.sent = 0;
        continue;
      }
      assert.ok(about.isOpen, `operation ${fields.op} on a connection that the guest cannot know of`);
      if (fields.op !== op.rw) continue;
      assert.ok(data.length > 0);
      about.sent += data.length;
      assert.ok(about.sent - about.fwdCnt <= about.bufAlloc, 'the guest has room for it');
    }
    mux.shown();
  };

  for (let step = 0; step < MAX_STEPS && !choose.ended; step++) {
    const what = choose.byte();
    if (what < 130) fromGuest();
    else if (what < 190) onHost();
    else if (what < 230) toGuest(choose.byte() % 8);
    else if (what < 245) {
      const end = new ToyEnd();
      if (mux.connect(choose.of(guestPorts), end) !== undefined) ends.push(end);
    } else {
      nowMs += 1000 * choose.byte();
      mux.tick(nowMs);
    }
    assert.ok(mux.connectionCount <= MAX_VSOCK_CONNECTIONS);
  }
  toGuest(100_000);
  assert.equal(mux.prepare(), false, 'it comes to rest');
  mux.reset('the end');
  assert.equal(mux.connectionCount, 0);
  for (const end of ends) assert.ok(end.connection === undefined || end.overBy !== undefined, 'every end is told');
}
