/** The same malformed 9P frames to a real device process by its socket, clients that do not read, and more than it takes. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { abi } from '../../src/ninep/index.ts';
import { close, connectUnix, read, send, setNonBlocking } from '../../src/sys/index.ts';
import { frame } from '../ninep/client.ts';
import { RemoteClient } from '../ninep/remote.ts';
import { ServedNinep } from '../ninep/served.ts';
import { allNinepCases, type Held, hold, type NinepCase, TAG } from './ninep-cases.ts';

const spec = `porthole: 1
metadata:
  instance: { id: i-0001, link: { symlink: id }, long: "${'x'.repeat(65_536)}" }
  guest: {}
users: { app: 1000 }
quota: { bytes: 16MiB, nodes: 10000 }
`;

const version = { msize: 8192, version: '9P2000.L' };

/** Seconds of frames that are changed at random, for long runs by hand, and how many there are at least. */
const fuzzSeconds = Number(process.env['PORTHOLE_FUZZ_SECONDS'] ?? 0);
const MUTATED_FRAMES = 300;

/** A seed, and numbers below a bound that follow from it (Marsaglia's xorshift). */
function randomBelow(): [seed: number, below: (bound: number) => number] {
  const seed = Number(process.env['PORTHOLE_FUZZ_SEED'] ?? Math.floor(Math.random() * 2 ** 32));
  let x = seed | 1;
  const below = (bound: number): number => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % bound;
  };
  return [seed, below];
}

const SET_UP_FRAMES = 9;

/** What a client holds that opened it without looking at the answers. */
const fids = { root: 1, guest: 2, file: 3, xattr: 4, directory: 5, link: 6 } as const;

const setUp = (): Uint8Array =>
  Buffer.concat([
    frame('Tversion', abi.NOTAG, version),
    frame('Tattach', 1, { fid: fids.root, afid: abi.NOFID, nUname: 1000, aname: '/' }),
    frame('Twalk', 2, { fid: fids.root, newfid: fids.guest, names: ['guest'] }),
    frame('Twalk', 3, { fid: fids.root, newfid: fids.file, names: ['instance', 'long'] }),
    frame('Tlopen', 4, { fid: fids.file }),
    frame('Txattrwalk', 5, { fid: fids.root, newfid: fids.xattr, name: 'system.porthole.why' }),
    frame('Twalk', 6, { fid: fids.root, newfid: fids.directory, names: [] }),
    frame('Tlopen', 7, { fid: fids.directory }),
    frame('Twalk', 8, { fid: fids.root, newfid: fids.link, names: ['instance', 'link'] }),
  ]);

/** Of the frame that begins there; of what is less than a header, more than that. */
const sizeOf = (bytes: Uint8Array): number =>
  bytes.length < 7 ? 7 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);

/** For a case that asks its client for numbers and sends nothing by it. */
function guessed(): Held {
  let fid = fids.link as number;
  const client = { newFid: () => ++fid, open: () => ++fid, start: () => ({ tag: TAG + 1 }), call: () => undefined };
  return { ...fids, client: client as unknown as Held['client'] };
}

/** A frame of which a few bytes are others, or which is cut off, or comes twice; its tag is its own, most often. */
function mutated(bytes: Uint8Array, below: (bound: number) => number): Uint8Array {
  const frame = Uint8Array.from(bytes);
  if (frame.length > 6) frame[5] = below(256);
  for (let changes = below(4); changes > 0; changes--) frame[7 + below(Math.max(1, frame.length - 7))] = below(256);
  const how = below(100);
  if (how === 0) return frame.subarray(0, below(frame.length + 1));
  if (how === 1) return Buffer.concat([frame, frame]);
  if (how === 2 && frame.length > 0) frame[below(Math.min(7, frame.length))] = below(256);
  return frame;
}

const rssMib = (pid: number): number =>
  Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024;

/** Sends one, and holds what comes of it against what must. */
function say({ name, expects, frame: frameOf }: NinepCase, held: Held<RemoteClient>): void {
  const { client } = held;
  let errno: number | undefined;
  const reply = client.expect('Tversion', TAG);
  reply.answer = (type, body) => {
    assert.equal(errno, undefined, `"${name}" is answered once`);
    errno = type === abi.RLERROR ? new DataView(body.buffer, body.byteOffset).getUint32(0, true) : 0;
  };
  client.session.receive(frameOf(held));
  if (expects === 'waits') return;
  client.waitFor(() => errno !== undefined);
  if (expects === 'closed') assert.ok(client.isOver, `"${name}" ends the connection`);
  else assert.equal(client.isOver, false, `"${name}" ends nothing`);
  if (expects === 'errno') assert.ok(errno! > 0 && errno! < 134, `"${name}" was answered with errno ${errno}`);
}

describe('a device process with hostile 9P clients', () => {
  let served: ServedNinep;
  let bystander: RemoteClient;
  let file: number;
  let pid: number;
  const longest = { ms: 0, asked: 0 };

  before(async () => {
    served = await ServedNinep.start(spec);
    pid = served.devicePid;
    bystander = new RemoteClient(served.socket);
    bystander.version();
    file = bystander.open(bystander.attach(1000), 'instance/id');
  });
  after(async () => {
    bystander[Symbol.dispose]();
    await served[Symbol.asyncDispose]();
  });

  /** Another client, on a connection of its own, is answered. */
  function ask(): void {
    const start = performance.now();
    const { data } = bystander.ok('Tread', { fid: file, offset: 0, count: 100 });
    assert.equal(Buffer.from(data).toString(), 'i-0001');
    longest.ms = Math.max(longest.ms, performance.now() - start);
    longest.asked++;
  }

  /** Opens things: each request is answered, and with no error. */
  function prepare(line: number): void {
    const requests = setUp();
    assert.equal(send(line, requests), requests.length);
    let rest = Buffer.alloc(0);
    for (let left = SET_UP_FRAMES; left > 0; ) {
      const bytes = new Uint8Array(65_536);
      const count = read(line, bytes);
      assert.notEqual(count, 0, 'it hung up');
      if (count < 0) ask();
      else rest = Buffer.concat([rest, bytes.subarray(0, count)]);
      for (let size = sizeOf(rest); rest.length >= size; size = sizeOf(rest), left--) {
        assert.notEqual(rest[4], abi.RLERROR, `the last but ${left - 1} of what it prepares is refused`);
        rest = rest.subarray(size);
      }
    }
  }

  /** Node has no way to stop reading what a blocking client needs: a socket that is never read. */
  async function deafSocket(): Promise<Socket> {
    const socket = createConnection(served.socket);
    await once(socket, 'connect');
    socket.pause();
    return socket;
  }

  test('it answers or hangs up, and serves another, whatever frame comes', (t) => {
    let client = new RemoteClient(served.socket);
    let isNew = true;
    for (const each of allNinepCases) {
      const { expects, beforeVersion = false } = each;
      if (beforeVersion ? !isNew : client.isOver) {
        client[Symbol.dispose]();
        client = new RemoteClient(served.socket);
      }
      const nothing = { client, root: 0, guest: 0, file: 0, directory: 0, link: 0, xattr: 0 };
      say(each, beforeVersion ? nothing : hold(client));
      ask();
      isNew = false;
      if (expects === 'waits') client.hangUp();
    }
    client[Symbol.dispose]();
    t.diagnostic(`${allNinepCases.length} malformed frames over a socket`);
  });

  test('it lives, and serves another, however the frames that come are changed', (t) => {
    // So many connections are taken a second: few frames are to end theirs before they are changed.
    const frames = allNinepCases.filter(({ expects }) => expects === 'errno' || expects === 'answered');
    const [seed, below] = randomBelow();
    const memory = rssMib(pid);
    const drop = new Uint8Array(65_536);
    let [line, lines, sent, answered] = [-1, 0, 0, 0];
    const end = performance.now() + fuzzSeconds * 1000;
    for (; sent < MUTATED_FRAMES || performance.now() < end; sent++) {
      if (line < 0) {
        line = connectUnix(served.socket);
        setNonBlocking(line, true);
        assert.ok(line >= 0, 'it takes another connection');
        prepare(line);
        lines++;
      }
      const frame = mutated(frames[below(frames.length)]!.frame(guessed()), below);
      if (send(line, frame) < 0) line = (close(line), -1);
      else while (read(line, drop) > 0) answered++;
      if (sent % 10 === 0) ask();
    }
    if (line >= 0) close(line);
    ask();
    assert.equal(served.devicePid, pid, `the process lives; the seed was ${seed}`);
    // Many answers come in one read, or after their connection was given up.
    assert.ok(answered > 0, `it answered some of ${sent} frames; the seed was ${seed}`);
    const grown = rssMib(pid) - memory;
    assert.ok(grown < 64, `it grew by ${grown.toFixed(1)} MiB; the seed was ${seed}`);
    t.diagnostic(`${sent} changed frames over ${lines} connections, seed ${seed}; it grew by ${grown.toFixed(1)} MiB`);
  });

  test('it looks at no more requests of a client that does not read, and keeps no more answers than that', async (t) => {
    const before = rssMib(pid);
    const deaf: Socket[] = [];
    for (let i = 0; i < 4; i++) {
      const socket = await deafSocket();
      deaf.push(socket);
      socket.write(frame('Tversion', abi.NOTAG, { msize: 262_144, version: '9P2000.L' }));
      socket.write(frame('Tattach', 1, { fid: 1, afid: abi.NOFID, nUname: 1000, aname: '/' }));
      socket.write(frame('Twalk', 1, { fid: 1, newfid: 2, names: ['instance', 'long'] }));
      socket.write(frame('Tlopen', 1, { fid: 2 }));
      const reads = Buffer.concat(
        Array.from({ length: 2000 }, () => frame('Tread', 1, { fid: 2, offset: 0, count: 65_536 })),
      );
      socket.write(reads);
    }
    // Each of them has had its turns by then.
    for (let i = 0; i < 200; i++) ask();
    // Unbounded, the answers would be 500 MiB.
    const grown = rssMib(pid) - before;
    assert.ok(grown < 64, `the device process grew by ${grown.toFixed(1)} MiB`);
    t.diagnostic(`with 4 clients that ask for 125 MiB each and read nothing it grew by ${grown.toFixed(1)} MiB`);
    for (const socket of deaf) socket.destroy();
  });

  test('it waits for the rest of half a frame, and serves the others meanwhile', async () => {
    const half = await deafSocket();
    const whole = frame('Tversion', abi.NOTAG, version);
    for (const byte of whole.subarray(0, -1)) {
      half.write(Uint8Array.of(byte));
      ask();
    }
    half.write(whole.subarray(-1));
    half.resume();
    const [answer] = (await once(half, 'data')) as [Buffer];
    assert.equal(answer[4], 101);
    half.destroy();
  });

  test('it takes sixteen connections and turns the next away, until one ends', async () => {
    await served.until((events) => {
      const count = (what: string): number => events.filter((event) => event.what === what).length;
      return count('connected') - count('disconnected') === 1;
    });
    const all = Array.from({ length: 16 }, () => {
      const client = new RemoteClient(served.socket);
      const reply = client.start('Tversion', version, abi.NOTAG);
      client.waitFor(() => reply.body !== undefined);
      return client;
    });
    assert.deepEqual(
      all.map(({ isOver }) => isOver),
      [...Array.from({ length: 15 }, () => false), true],
    );
    all.pop()![Symbol.dispose]();
    all.pop()![Symbol.dispose]();
    // The place is free when the process has seen that nobody is there any more.
    for (let isServed = false; !isServed; ) {
      using next = new RemoteClient(served.socket);
      const reply = next.start('Tversion', version, abi.NOTAG);
      next.waitFor(() => reply.body !== undefined);
      isServed = !next.isOver;
    }
    ask();
    for (const client of all) client[Symbol.dispose]();
  });

  test('it serves the others while somebody connects without end', async (t) => {
    let connections = 0;
    const end = performance.now() + Number(process.env['PORTHOLE_FLOOD_SECONDS'] ?? 1) * 1000;
    while (performance.now() < end) {
      const socket = createConnection(served.socket);
      socket.on('error', () => {});
      await once(socket, 'connect').catch(() => {});
      socket.destroy();
      if (++connections % 10 === 0) ask();
    }
    ask();
    assert.equal(served.devicePid, pid, 'the process lives');
    t.diagnostic(
      `${connections} attempts to connect; ${longest.asked} requests of another client, the longest ${longest.ms.toFixed(1)} ms`,
    );
  });
});
