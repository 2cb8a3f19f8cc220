/** Group j: streams through the vsock device, from our own front end to a unix socket, against that unix socket alone. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { close, connectUnix, read, setNonBlocking, write } from '../src/sys/index.ts';
import { FrontEnd } from '../test/front-end/index.ts';
import { op, PACKET_HEADER_BYTES, PacketHeader, packetBytes, VsockDriver } from '../test/front-end/vsock-driver.ts';
import { bindSelf, callerCpu, serverCpu } from './cpus.ts';
import { compare, type Group, type GroupOptions, percentile, type Row, type Sample, type Unit } from './measure.ts';
import { Server } from './server.ts';

const PORT = 7000;
const TURNS_PER_ROUND = 3;
const ROUND_TRIPS = 1000;
const STREAM_BYTES = 64 * 2 ** 20;
const LIMIT_MS = 20_000;
/** As Linux has them. */
const RX_BYTES = 4096;
const DATA_BYTES = 65_536;
const BUF_ALLOC = 256 * 1024;
const mebibytes = (bytes: number, ms: number): number => bytes / 2 ** 20 / (ms / 1000);

/** A connection with the service. It polls and never sleeps, so that this process's wake-up is not measured. */
interface Stream extends Disposable {
  send(bytes: Uint8Array): void;
  /** Takes `count` bytes and drops them. */
  receive(count: number): void;
}

const request = (what: string, count: number, data = 0): Uint8Array => {
  const bytes = new Uint8Array(new ArrayBuffer(5 + data));
  bytes[0] = what.charCodeAt(0);
  new DataView(bytes.buffer).setUint32(1, count, true);
  return bytes;
};

const overdue = (since: number): void => {
  if (performance.now() - since > LIMIT_MS) throw new Error(`nothing came for ${LIMIT_MS / 1000} s`);
};

class UnixStream implements Stream {
  readonly #fd: number;
  readonly #into = new Uint8Array(new ArrayBuffer(BUF_ALLOC));

  constructor(socketPath: string) {
    this.#fd = connectUnix(socketPath);
    setNonBlocking(this.#fd, true);
  }

  send(bytes: Uint8Array): void {
    const since = performance.now();
    for (let left = bytes; left.length > 0; ) {
      const sent = write(this.#fd, left);
      if (sent > 0) left = left.subarray(sent);
      else overdue(since);
    }
  }

  receive(count: number): void {
    const since = performance.now();
    for (let left = count; left > 0; ) {
      const got = read(this.#fd, this.#into, Math.min(left, this.#into.length));
      if (got > 0) left -= got;
      else overdue(since);
    }
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}

class VsockStream implements Stream {
  readonly #front: FrontEnd;
  readonly #driver: VsockDriver;
  readonly #ports = { srcPort: 1000, dstPort: PORT, bufAlloc: BUF_ALLOC } as const;
  readonly #views: DataView[] = [];
  /** Of the host, as it said last. */
  #hostFwdCnt = 0;
  #hostBufAlloc = 0;
  #sent = 0;
  #received = 0;
  #told = 0;
  /** Received and not asked for yet. */
  #waiting = 0;

  constructor(socketPath: string) {
    this.#front = FrontEnd.connect(socketPath, {
      queues: 2,
      indirect: false,
      queueSize: 512,
      requestBytes: PACKET_HEADER_BYTES + DATA_BYTES + 20,
      replyBytes: RX_BYTES,
    });
    this.#front.handshake();
    this.#front.start();
    this.#driver = new VsockDriver(this.#front);
    const { rx } = this.#driver;
    for (let slot = 0; slot < rx.slots; slot++) {
      const reply = rx.reply(slot);
      this.#views.push(new DataView(reply.buffer, reply.byteOffset, reply.byteLength));
    }
    this.#packet(packetBytes({ ...this.#ports, op: op.request }));
    const since = performance.now();
    while (this.#hostBufAlloc === 0) if (!this.#look()) overdue(since);
  }

  #packet(bytes: Uint8Array): void {
    const since = performance.now();
    this.#driver.tx.suppressInterrupts();
    while (!this.#driver.sendBytes(bytes)) overdue(since);
  }

  /** Takes what the device has given. Returns whether there was anything. */
  #look(): boolean {
    const { rx } = this.#driver;
    let slot = rx.next();
    if (slot < 0) return false;
    for (; slot >= 0; slot = rx.next()) {
      const view = this.#views[slot]!;
      this.#hostBufAlloc = PacketHeader.bufAlloc.get(view, 0);
      this.#hostFwdCnt = PacketHeader.fwdCnt.get(view, 0);
      if (PacketHeader.op.get(view, 0) === op.rst) throw new Error('the connection was reset');
      const data = rx.usedBytes - PACKET_HEADER_BYTES;
      this.#waiting += data;
      this.#received = (this.#received + data) >>> 0;
      this.#driver.give(slot);
    }
    rx.suppressInterrupts();
    rx.publish();
    if ((this.#received - this.#told) >>> 0 > BUF_ALLOC / 2) {
      this.#told = this.#received;
      this.#packet(packetBytes({ ...this.#ports, op: op.creditUpdate, fwdCnt: this.#received }));
    }
    return true;
  }

  send(bytes: Uint8Array): void {
    const since = performance.now();
    for (let at = 0; at < bytes.length; ) {
      const credit = this.#hostBufAlloc - ((this.#sent - this.#hostFwdCnt) >>> 0);
      const count = Math.min(credit, DATA_BYTES, bytes.length - at);
      if (count > 0) {
        this.#packet(packetBytes({ ...this.#ports, fwdCnt: this.#received }, bytes.subarray(at, at + count)));
        this.#told = this.#received;
        this.#sent = (this.#sent + count) >>> 0;
        at += count;
      } else if (!this.#look()) overdue(since);
    }
  }

  receive(count: number): void {
    const since = performance.now();
    while (this.#waiting < count) if (!this.#look()) overdue(since);
    this.#waiting -= count;
  }

  [Symbol.dispose](): void {
    this.#front.close();
  }
}

interface Case {
  readonly name: string;
  readonly unit: Unit;
  readonly measure: (stream: Stream) => Sample;
}

const roundTrips =
  (bytes: number) =>
  (stream: Stream): Sample => {
    const ask = request('e', bytes, bytes);
    const took = new Float64Array(ROUND_TRIPS);
    for (let i = -ROUND_TRIPS / 10; i < ROUND_TRIPS; i++) {
      const start = performance.now();
      stream.send(ask);
      stream.receive(bytes);
      if (i >= 0) took[i] = (performance.now() - start) * 1000;
    }
    took.sort();
    return { n: ROUND_TRIPS, p50: percentile(took, 0.5), p99: percentile(took, 0.99) };
  };

const cases: readonly Case[] = [
  { name: 'round trip of 64 bytes', unit: 'us', measure: roundTrips(64) },
  { name: 'round trip of 4 KiB', unit: 'us', measure: roundTrips(4096) },
  {
    name: 'stream from the guest to the host',
    unit: 'MiB/s',
    measure(stream) {
      const part = new Uint8Array(new ArrayBuffer(DATA_BYTES));
      const start = performance.now();
      stream.send(request('s', STREAM_BYTES));
      for (let sent = 0; sent < STREAM_BYTES; sent += part.length) stream.send(part);
      stream.receive(1);
      return { n: STREAM_BYTES, p50: mebibytes(STREAM_BYTES, performance.now() - start) };
    },
  },
  {
    name: 'stream from the host to the guest',
    unit: 'MiB/s',
    measure(stream) {
      const start = performance.now();
      stream.send(request('g', STREAM_BYTES));
      for (let got = 0; got < STREAM_BYTES; got += DATA_BYTES) stream.receive(DATA_BYTES);
      return { n: STREAM_BYTES, p50: mebibytes(STREAM_BYTES, performance.now() - start) };
    },
  },
];

async function run({ rounds, selfTest, print }: GroupOptions): Promise<Row[]> {
  const scratch = mkdtempSync(path.join(tmpdir(), 'porthole-bench-'));
  const hostPath = path.join(scratch, 'v');
  const front = `${hostPath}.vhost-user`;
  const socket = `${hostPath}_${PORT}`;
  const file = path.join(scratch, 'tree.yaml');
  writeFileSync(file, 'porthole: 1\nmetadata:\n  instance: { id: i-1 }\n');
  const rows: Row[] = [];
  const service = path.join(import.meta.dirname, 'stream-service.ts');
  try {
    await using server = await Server.start('porthole serve', ['./porthole', 'serve', file, '--vsock', hostPath], () =>
      existsSync(front),
    );
    await using peerServer = await Server.start('the service', [process.execPath, service, socket], () =>
      existsSync(socket),
    );
    using ours = selfTest ? new UnixStream(socket) : new VsockStream(front);
    using peer = new UnixStream(socket);
    for (const each of [server, peerServer]) each.pin(serverCpu);
    using _ = bindSelf(callerCpu);
    for (const { name, unit, measure } of cases) {
      const row = await compare(
        { name, unit, ours: async () => measure(ours), peer: async () => measure(peer) },
        { group: 'j', peerName: 'a unix socket', rounds: rounds * TURNS_PER_ROUND },
      );
      print(`${row.name}: ${row.ratio.toFixed(2)}`);
      rows.push(row);
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return rows;
}

export const vsockStreams: Group = { letter: 'j', title: 'streams over vsock, against a unix socket', run };
