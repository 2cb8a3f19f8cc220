/** What a host that was taken over may send: frames of HTTP/2 as it likes, and a manager goes on for all others. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import type { HostPort } from '../../src/records/index.ts';
import { dial } from '../../src/uplink/dial.ts';
import { noHostConnected } from '../../src/uplink/fleet.ts';
import { encodeFrame } from '../../src/uplink/frames.ts';
import type { Identity } from '../../src/uplink/index.ts';
import type { Purpose } from '../../src/uplink/protocols.ts';
import { TestHost } from '../cluster/host-on-authority.ts';
import { until } from '../until.ts';
import { at, openRegion, regionName, vmRecord } from './region.ts';

const rounds = Number(process.env['PORTHOLE_UPLINK_ROUNDS'] ?? 1);
const connectionsEach = 30;
const callsEach = 12;
const turns: readonly Purpose[] = ['calls', 'calls', 'store', 'calls', 'calls', 'calls', 'enrol'];

// RFC 9113, sections 4.1 and 6
const types = { data: 0, headers: 1, reset: 3, settings: 4, ping: 6, goAway: 7, window: 8 } as const;
const headerBytes = 9;
const ack = 1;
const endHeaders = 4;
const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const status200 = Buffer.from([0x88]);
const codes = [0, 1, 2, 8, 11];
const lastStreams = [0, 1, 5, 0x7fff_ffff];

const frame = (type: number, flags: number, stream: number, payload: Uint8Array = Buffer.alloc(0)): Buffer => {
  const header = Buffer.alloc(headerBytes);
  header.writeUIntBE(payload.length, 0, 3);
  header[3] = type;
  header[4] = flags;
  header.writeUInt32BE(stream, 5);
  return Buffer.concat([header, payload]);
};

const words = (...values: readonly number[]): Buffer => {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, i) => void bytes.writeUInt32BE(value, i * 4));
  return bytes;
};

const goAway = (last: number, code: number): Buffer => frame(types.goAway, 0, 0, words(last, code));
const reset = (stream: number, code: number): Buffer => frame(types.reset, 0, stream, words(code));
const pick = <T>(of: readonly T[]): T => of[Math.floor(Math.random() * of.length)]!;

/** Frames that are there, in an order that nobody sends them in. */
const anyFrame = (streams: readonly number[]): Buffer => {
  const stream = pick([0, 1, ...streams]);
  const bytes = Buffer.alloc(Math.floor(Math.random() * 20));
  return pick([
    () => goAway(stream, pick(codes)),
    () => reset(stream, pick(codes)),
    () => frame(types.window, 0, stream, words(0x100)),
    () => frame(types.data, pick([0, 1]), stream, encodeFrame([pick([0, 1, 2, 3]), null])),
    () => frame(types.headers, endHeaders, stream, status200),
    () => frame(pick(Object.values(types)), Math.floor(Math.random() * 256), stream, bytes),
  ])();
};

/** One connection of HTTP/2 by hand: it says what it is told to, and acknowledges what has to be. */
class Raw {
  readonly socket: TLSSocket;
  /** Of the calls that came. */
  readonly streams: number[] = [];
  #rest: Buffer = Buffer.alloc(0);
  #skip: number;

  constructor(socket: TLSSocket, purpose: Purpose) {
    this.socket = socket;
    this.#skip = purpose === 'calls' ? preface.length : 0;
    socket.on('error', () => {}).on('data', (bytes: Buffer) => this.#take(bytes));
    if (purpose !== 'calls') socket.write(preface);
    socket.write(frame(types.settings, 0, 0));
  }

  #take(bytes: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    if (this.#rest.length < this.#skip) return;
    this.#rest = this.#rest.subarray(this.#skip);
    this.#skip = 0;
    while (this.#rest.length >= headerBytes) {
      const end = headerBytes + this.#rest.readUIntBE(0, 3);
      if (this.#rest.length < end) return;
      const [type, flags] = this.#rest.subarray(3, 5);
      if (type === types.headers) this.streams.push(this.#rest.readUInt32BE(5));
      const isAsked = (type === types.settings || type === types.ping) && (flags! & ack) === 0;
      const payload = type === types.ping ? this.#rest.subarray(headerBytes, end) : undefined;
      if (isAsked && this.socket.writable) this.socket.write(frame(type, ack, 0, payload));
      this.#rest = this.#rest.subarray(end);
    }
  }
}

/** Asks for as long as it runs, by calls that are short, that go on, and that send more than is taken. */
const askMuch = (
  host: HostPort,
  vm: { readonly id: string; readonly name: string },
  stop: AbortSignal,
): Promise<void>[] => {
  const asks: readonly ((signal: AbortSignal) => Promise<unknown>)[] = [
    (signal) => host.tree(vm).stat('/', { signal }),
    async (signal) => Array.fromAsync((await host.tree(vm).watch('/', { signal })).commits),
    async (signal) => Array.fromAsync((await host.console(vm).stream({ signal })).pieces),
    (signal) => host.tree(vm).edit([{ op: 'put', path: '/a', bytes: Buffer.alloc(900_000) }], [], { signal }),
  ];
  return Array.from({ length: callsEach }, async (_, i) => {
    while (!stop.aborted) {
      await asks[i % asks.length]!(AbortSignal.any([stop, AbortSignal.timeout(1_000)])).catch(() => {});
      await pause(1);
    }
  });
};

test('a host can end no manager when it sends GOAWAY, or any frames in any order', { timeout: 120_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const bad = await region.identity('bad', server);
  const good = await region.uplink(await region.identity('good', server), { managers: [at(server)] });
  const [its, others] = [vmRecord('its', 'bad'), vmRecord('others', 'good')];
  await region.assign(its);
  await region.assign(others);
  const host = new TestHost();
  host.make(others);
  good.serve(host);
  const connect = async ({ authority, certificate, key }: Identity, purpose: Purpose): Promise<Raw> =>
    new Raw(
      await dial(at(server), purpose, { region: regionName, authority, credentials: { certificate, key } }),
      purpose,
    );
  const stop = new AbortController();
  t.after(() => stop.abort());
  const asking = askMuch(server.hosts, its, stop.signal);
  let calls = 0;
  for (let i = 0; i < connectionsEach * rounds; i++) {
    const purpose = turns[i % turns.length]!;
    const raw = await connect(bad, purpose);
    const { socket, streams } = raw;
    if (purpose !== 'calls') streams.push(1, 3, 5);
    else await until('calls to come', () => streams.length >= callsEach / 2 || socket.destroyed);
    calls += streams.length;
    if (i % 3 === 1) for (const stream of streams) socket.write(frame(types.headers, endHeaders, stream, status200));
    if (i % 3 === 2) socket.write(Buffer.concat(Array.from({ length: 20 }, () => anyFrame(streams))));
    const last = [goAway(pick(lastStreams), codes[i % codes.length]!), ...streams.map((stream) => reset(stream, 8))];
    socket.write(Buffer.concat(i % 2 === 0 ? last : last.toReversed()));
    socket.end();
    await until('the connection to end', () => socket.destroyed);
  }
  stop.abort();
  await Promise.all(asking);
  t.diagnostic(`${calls} calls on ${connectionsEach * rounds} connections`);
  await until('the other host to be asked', async () => {
    const status = await server.hosts.status().catch(() => undefined);
    return status !== undefined && !status.warnings.includes(noHostConnected);
  });
  assert.equal(
    (await server.hosts.tree(others).edit([{ op: 'put', path: '/a', bytes: Buffer.from('1') }], [])).revision > 0,
    true,
  );
  assert.deepEqual(region.troubles, []);
});
