import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { GUEST_CID, op, type Packet, packetBytes, parsePacket } from '../../../test/front-end/vsock-driver.ts';
import { ToyEnd } from '../../../test/front-end/vsock-end.ts';
import { ECONNRESET } from '../../wire/index.ts';
import { VsockMux } from './mux.ts';

const PORT = 7;
const NOBODY = 8;
const GUEST_BUFFER = 1000;

/** A mux, its ends by the guest's port, and a guest that is honest. */
class Stage {
  readonly ends = new Map<number, ToyEnd>();
  nowMs = 0;
  readonly mux: VsockMux = new VsockMux({
    guestCid: GUEST_CID,
    nowMs: () => this.nowMs,
    open: (port, guestPort) => {
      if (port === NOBODY) return undefined;
      const end = new ToyEnd();
      this.ends.set(guestPort, end);
      return end;
    },
  });

  send(srcPort: number, code: number, more: object = {}, data = new Uint8Array()): void {
    const bytes = packetBytes({ srcPort, dstPort: PORT, op: code, bufAlloc: GUEST_BUFFER, ...more }, data);
    const buffer = new Uint8Array(44 + 65_536);
    buffer.set(bytes);
    this.mux.receive(buffer, new DataView(buffer.buffer), bytes.length);
  }

  /** The next packet for the guest. */
  next(capacity = 4096): Packet | undefined {
    if (!this.mux.prepare()) return undefined;
    const whole = new Uint8Array(this.mux.compose(capacity));
    whole.set(this.mux.packet.head.subarray(0, this.mux.packet.headBytes));
    if (this.mux.packet.payload !== undefined) whole.set(this.mux.packet.payload, this.mux.packet.headBytes);
    this.mux.shown();
    return parsePacket(whole);
  }

  ops(): number[] {
    const found: number[] = [];
    for (let packet = this.next(); packet !== undefined; packet = this.next()) found.push(packet.fields.op);
    return found;
  }

  open(srcPort: number): ToyEnd {
    this.send(srcPort, op.request);
    assert.deepEqual(this.ops(), [op.response]);
    return this.ends.get(srcPort)!;
  }
}

type Step =
  | {
      readonly do: 'guest sends' | 'host takes' | 'host writes' | 'guest takes';
      readonly port: number;
      readonly bytes: number;
    }
  | { readonly do: 'rx'; readonly packets: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constantFrom('guest sends', 'host takes', 'host writes', 'guest takes'),
    port: fc.nat(2),
    bytes: fc.oneof(fc.nat(40), fc.nat(3000)),
  }),
  fc.record({ do: fc.constant('rx' as const), packets: fc.nat(5) }),
);

test('VsockMux loses, repeats and swaps no byte of any stream, and keeps to the credit of both sides', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const stage = new Stage();
      const sides = [0, 1, 2].map((port) => {
        const end = stage.open(port);
        end.room = 0;
        return { end, sent: 0, fwdCnt: 0, hostTook: 0, bufAlloc: end.connection!.bufAlloc, wrote: 0, got: 0, read: 0 };
      });
      const receive = (): boolean => {
        const packet = stage.next(200);
        if (packet === undefined) return false;
        const { fields, data } = packet;
        const side = sides[fields.dstPort]!;
        side.hostTook = fields.fwdCnt;
        assert.ok(fields.fwdCnt <= side.end.taken.length, 'what it says it took, it took');
        for (const byte of data) assert.equal(byte, side.got++ & 255);
        assert.ok(side.got - side.read <= GUEST_BUFFER, 'the guest has room');
        return true;
      };
      const take = (port: number, bytes: number): void => {
        const side = sides[port]!;
        side.read = Math.min(side.got, side.read + bytes);
        stage.send(port, op.creditUpdate, { fwdCnt: side.read });
      };
      const room = (port: number, bytes: number): void => {
        const { end } = sides[port]!;
        end.room += bytes;
        stage.mux.writable(end.connection!);
      };
      for (const one of steps) {
        if (one.do === 'rx') {
          for (let i = 0; i < one.packets; i++) receive();
          continue;
        }
        const side = sides[one.port]!;
        if (one.do === 'guest sends') {
          const bytes = Math.min(one.bytes, side.bufAlloc - (side.sent - side.hostTook));
          const data = Uint8Array.from({ length: bytes }, () => side.sent++ & 255);
          stage.send(one.port, op.rw, { fwdCnt: side.read }, data);
        } else if (one.do === 'host takes') room(one.port, one.bytes);
        else if (one.do === 'guest takes') take(one.port, one.bytes);
        else {
          for (let i = 0; i < one.bytes; i++) side.end.toGive.push(side.wrote++ & 255);
          stage.mux.readable(side.end.connection!);
        }
      }
      for (const port of [0, 1, 2]) room(port, Number.POSITIVE_INFINITY);
      for (let goesOn = true; goesOn; ) {
        goesOn = false;
        for (const port of [0, 1, 2]) take(port, Number.POSITIVE_INFINITY);
        while (receive()) goesOn = true;
      }
      for (const { end, sent, wrote, got } of sides) {
        assert.deepEqual([end.taken.length, got], [sent, wrote]);
        assert.ok(end.taken.every((byte, index) => byte === (index & 255)));
        assert.equal(end.overBy, undefined);
      }
    }),
    { numRuns: 200 },
  );
});

test('VsockMux asks for credit once when there is none, and goes on when it comes', () => {
  const stage = new Stage();
  const end = stage.open(1);
  end.toGive.push(...Array.from({ length: GUEST_BUFFER + 5 }, () => 1));
  stage.mux.readable(end.connection!);
  assert.deepEqual(stage.ops(), [op.rw, op.creditRequest]);
  stage.mux.readable(end.connection!);
  assert.deepEqual(stage.ops(), []);
  stage.send(1, op.creditUpdate, { fwdCnt: GUEST_BUFFER });
  assert.deepEqual(stage.ops(), [op.rw]);
});

test('VsockMux tells the guest of room that it needs, and not of each byte', () => {
  const stage = new Stage();
  const end = stage.open(1);
  const { bufAlloc } = end.connection!;
  stage.send(1, op.rw, {}, new Uint8Array(100));
  assert.deepEqual(stage.ops(), []);
  end.room = 0;
  for (let left = bufAlloc - 100; left > 0; left -= 65_536)
    stage.send(1, op.rw, {}, new Uint8Array(Math.min(left, 65_536)));
  assert.deepEqual(stage.ops(), [op.creditUpdate]);
  assert.deepEqual(stage.ops(), []);
  end.room = 1;
  stage.mux.writable(end.connection!);
  const told = stage.next()!;
  assert.deepEqual([told.fields.op, told.fields.fwdCnt], [op.creditUpdate, 101]);
});

test('VsockMux carries what the host wrote before it hung up, and then shuts both ways', () => {
  const stage = new Stage();
  const end = stage.open(1);
  end.toGive.push(1, 2, 3);
  end.hasEnded = true;
  end.gone = true;
  stage.mux.readable(end.connection!);
  const packets = [stage.next()!, stage.next()!];
  assert.deepEqual(
    packets.map(({ fields, data }) => [fields.op, fields.flags, data.length]),
    [
      [op.rw, 0, 3],
      [op.shutdown, 3, 0],
    ],
  );
  assert.equal(end.overBy, 'the host hung up');
  stage.send(1, op.rw, {}, new Uint8Array(70));
  assert.deepEqual(stage.ops(), [], 'what comes late is dropped');
  stage.send(1, op.rst);
  assert.deepEqual([stage.ops(), stage.mux.connectionCount], [[], 0]);
});

test('VsockMux gives a guest up that does not answer in time', () => {
  const stage = new Stage();
  const closing = stage.open(1);
  const asked = new ToyEnd();
  stage.mux.connect(52, asked);
  closing.hasEnded = true;
  closing.gone = true;
  stage.mux.readable(closing.connection!);
  assert.deepEqual(stage.ops(), [op.request, op.shutdown].toSorted());
  stage.nowMs = stage.mux.nextDeadlineMs();
  stage.mux.tick(stage.nowMs);
  stage.nowMs = 60_000;
  stage.mux.tick(stage.nowMs);
  assert.deepEqual([stage.ops(), stage.mux.connectionCount], [[op.rst, op.rst], 0]);
  assert.equal(asked.overBy, 'the guest did not answer in time');
  assert.equal(stage.mux.nextDeadlineMs(), Number.POSITIVE_INFINITY);
});

test('VsockMux lets the host read what a guest sent before it closed, however long that takes', () => {
  const stage = new Stage();
  const end = stage.open(1);
  end.room = 2;
  stage.send(1, op.rw, {}, Uint8Array.of(1, 2, 3, 4));
  stage.send(1, op.shutdown, { flags: 3 });
  assert.deepEqual(stage.ops(), [op.rst]);
  const again = stage.open(1);
  assert.equal(stage.mux.connectionCount, 2);
  end.room = 10;
  stage.mux.writable(end.connection!);
  assert.deepEqual([end.taken, end.overBy], [[1, 2, 3, 4], 'the guest closed the connection']);
  assert.equal(again.overBy, undefined);
});

test('VsockMux resets a connection that the host breaks off while the guest gets its data', () => {
  const stage = new Stage();
  const end = stage.open(1);
  end.givesErrno = ECONNRESET;
  stage.mux.readable(end.connection!);
  assert.deepEqual(stage.ops(), [op.rst]);
  assert.equal(end.overBy, 'the host broke the connection off');
});
