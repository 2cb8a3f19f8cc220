/** A whole device process with two vsock devices: hostile guests and hostile programs of the host at one, honest ones at the other. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Server as PortholeServer, type ServeEvent, serve } from '../../src/host/index.ts';
import { FrontEnd } from '../front-end/index.ts';
import { op, type Packet, packetBytes, VsockDriver, vsockFrontEnd } from '../front-end/vsock-driver.ts';
import { until } from '../until.ts';

const PORT = 5000;
/** Seconds of random packets, for long runs by hand. */
const seconds = Number(process.env['PORTHOLE_FUZZ_SECONDS'] ?? 0);

describe('a device process with two vsock devices', () => {
  const directory = mkdtempSync('/tmp/porthole-vsock-');
  const [hostile, honest] = ['a', 'b'].map((name) => path.join(directory, name)) as [string, string];
  const events: ServeEvent[] = [];
  const services: Server[] = [];
  let server: PortholeServer;
  let pid: number;

  before(async () => {
    const file = path.join(directory, 'vm.yaml');
    writeFileSync(file, 'porthole: 1\nmetadata:\n  instance: { id: i-1 }\n');
    server = await serve({
      file,
      vhostUser: [],
      vsock: [hostile, honest],
      mounts: [],
      writeStdout: () => true,
      onEvent: (event) => events.push(event),
    });
    pid = server.devicePid!;
    for (const at of [hostile, honest]) {
      const service = createServer((socket) => {
        socket.on('error', () => undefined);
        socket.pipe(socket);
      });
      services.push(service);
      service.listen(`${at}_${PORT}`, 4096);
      await once(service, 'listening');
    }
  });
  after(async () => {
    for (const service of services) service.close();
    await server?.stop();
    for (const at of [hostile, honest])
      for (const socket of [at, `${at}.vhost-user`]) assert.equal(existsSync(socket), false, `${socket} is removed`);
    rmSync(directory, { recursive: true });
  });

  const plugIn = (at: string): VsockDriver => {
    const front = FrontEnd.connect(`${at}.vhost-user`, vsockFrontEnd);
    front.handshake();
    front.start();
    return new VsockDriver(front);
  };
  /** What a program of the host gets until it is hung up on. */
  const answerTo = async (said: string): Promise<string> => {
    const socket = connect(hostile);
    let got = '';
    socket.on('data', (bytes: Buffer) => {
      got += bytes.toString('latin1');
    });
    // A socket that is closed with something unread in it is reset.
    socket.on('error', () => undefined);
    socket.write(said);
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    socket.once('close', () => resolve());
    await closed;
    return got;
  };
  const packet = async (driver: VsockDriver): Promise<Packet> => {
    let got: Packet | undefined;
    await until('a packet', () => {
      got = driver.receive();
      return got !== undefined;
    });
    return got!;
  };
  /** A connection from a port of the guest to the echo and back. */
  const echoes = async (driver: VsockDriver, srcPort: number): Promise<void> => {
    driver.send({ op: op.request, srcPort, dstPort: PORT });
    let { fields } = await packet(driver);
    assert.deepEqual([fields.op, fields.dstPort], [op.response, srcPort]);
    driver.send({ srcPort, dstPort: PORT }, Uint8Array.of(1, 2, 3));
    const answer = await packet(driver);
    assert.deepEqual([answer.fields.op, ...answer.data], [op.rw, 1, 2, 3]);
    driver.send({ op: op.shutdown, srcPort, dstPort: PORT, flags: 3, fwdCnt: 3 });
    ({ fields } = await packet(driver));
    assert.deepEqual([fields.op, fields.dstPort], [op.rst, srcPort]);
  };
  const eventsOf = (at: string): string[] =>
    events.flatMap((event) =>
      event.event === 'target' && event.target.path === `${at}.vhost-user` ? [event.what] : [],
    );

  const plugOut = async (driver: VsockDriver, at: string): Promise<void> => {
    const ends = (): number => eventsOf(at).filter((what) => what === 'disconnected').length;
    const before = ends();
    driver.front.close();
    await until('its end', () => ends() > before);
  };

  test('a program of the host that says nonsense, or comes before a guest, is hung up on', async () => {
    assert.equal(await answerTo(''), '');
    const driver = plugIn(hostile);
    for (const line of [
      'CONNECT\n',
      'CONNECT x\n',
      'CONNECT -1\n',
      'CONNECT 4294967296\n',
      'GET / HTTP/1.1\r\n',
      `CONNECT ${'0'.repeat(100)}`,
    ])
      assert.equal(await answerTo(line), '', line);
    assert.equal(driver.receive(), undefined, 'the guest hears of none of them');
    await plugOut(driver, hostile);
  });

  test('one front end after another is served, and a second one at a time is refused', async () => {
    for (let life = 1; life <= 3; life++) {
      const driver = plugIn(hostile);
      await echoes(driver, 1000 + life);
      const second = FrontEnd.connect(`${hostile}.vhost-user`, vsockFrontEnd);
      assert.throws(() => second.handshake());
      second.close();
      await plugOut(driver, hostile);
    }
    assert.equal(eventsOf(hostile).filter((what) => what === 'refused').length, 3);
  });

  test('a guest that floods its device with connections and nonsense keeps no other from its own', async () => {
    const driver = plugIn(honest);
    const wild = plugIn(hostile);
    let seed = 7;
    const random = (): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return seed >>> 16;
    };
    const end = performance.now() + seconds * 1000;
    for (let round = 0; round < 20 || performance.now() < end; round++) {
      for (let i = 0; i < 300; i++) {
        const bytes = packetBytes(
          { op: random() % 9, srcPort: random() % 3000, dstPort: [PORT, PORT, 1][random() % 3]!, flags: random() & 3 },
          random() % 4 === 0 ? new Uint8Array(random() % 5000) : undefined,
        );
        if (random() % 8 === 0) bytes[random() % bytes.length] = random() & 255;
        wild.sendBytes(bytes);
        wild.receive();
      }
      await echoes(driver, 2000 + round);
    }
    const counters = (await server.statistics(10_000)) ?? {};
    assert.ok(counters['vsock.resets']! > 100, `${counters['vsock.resets']} resets`);
    assert.ok(counters['vsock.open']! <= 1024);
    assert.equal(server.devicePid, pid, 'the device process lives');
    wild.front.close();
    driver.front.close();
  });
});
