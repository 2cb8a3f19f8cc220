/** A Linux guest's vsock through our device: its kernel's driver, programs of its own and of others. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { Guest } from '../../images/tiny/guest.ts';
import { type Server as PortholeServer, serve } from '../../src/host/index.ts';
import { vsockPeer } from '../../src/virtio/index.ts';
import { until } from '../until.ts';
import { dialGuest } from '../vsock.ts';

const MEBIBYTES = 4 * Number(process.env['PORTHOLE_VSOCK_TIMES'] ?? 1);
const CONNECTIONS = 200;
const timeoutMs = 120_000;
const digestOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Does not end the other half, as reading with an iterator does. */
async function digestOfStream(stream: Readable): Promise<string> {
  const hash = createHash('sha256');
  stream.on('data', (part: Buffer) => hash.update(part));
  await once(stream, 'end');
  return hash.digest('hex');
}

describe('vsock of a guest', () => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-vsock-'));
  const hostPath = join(directory, 'v');
  const servers: Server[] = [];
  let server: PortholeServer;
  let guest: Guest;

  before(async () => {
    const file = join(directory, 'vm.yaml');
    writeFileSync(file, 'porthole: 1\nmetadata:\n  instance: { id: i-1 }\n');
    server = await serve({
      file,
      vhostUser: [],
      vsock: [hostPath],
      mounts: [],
      writeStdout: () => true,
      onEvent: () => undefined,
    });
    const socket = `${hostPath}.vhost-user`;
    guest = await Guest.start({
      allowReset: true,
      qemuArgs: ['-chardev', `socket,id=vsock,path=${socket}`, '-device', 'vhost-user-vsock-pci,chardev=vsock'],
    });
    await guest.sh('modprobe vmw_vsock_virtio_transport');
    await service(5006, (socket) => socket.pipe(socket));
  });
  after(async () => {
    await guest?.[Symbol.asyncDispose]();
    for (const one of servers) one.close();
    await server?.stop();
    rmSync(directory, { recursive: true });
  });

  /** A service of this machine. Every connection is given to `serveOne`. */
  const service = async (port: number, serveOne: (socket: Socket) => void): Promise<void> => {
    const listening = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined);
      serveOne(socket);
    });
    servers.push(listening);
    listening.listen(`${hostPath}_${port}`, 256);
    await once(listening, 'listening');
  };
  const dial = (port: number): Promise<Socket> => dialGuest(hostPath, port);
  const listenInGuest = async (port: number, command: string) => {
    const job = guest.spawn(`exec vsock listen ${port} ${command}`);
    await job.waitForOutput(/ready/);
    return job;
  };
  const counters = async (): Promise<Readonly<Record<string, number>>> => (await server.statistics(30_000)) ?? {};

  test('a stream of the guest goes to the host and back, whole, with its half closed in between', async () => {
    const sent = randomBytes(MEBIBYTES * 2 ** 20);
    const digests: string[] = [];
    /** Only when the guest has said that it will send no more. */
    const answerDigest = async (socket: Socket): Promise<void> => {
      const digest = await digestOfStream(socket);
      digests.push(digest);
      socket.end(`${digest}\n`);
    };
    await service(5000, (socket) => {
      void answerDigest(socket);
    });
    const answer = await guest.sh('vsock connect 5000', { stdin: sent, timeoutMs });
    assert.equal(answer, `${digestOf(sent)}\n`);
    assert.deepEqual(digests, [digestOf(sent)]);
  });

  test('a stream of the host goes to the guest, whole', async () => {
    const sent = randomBytes(MEBIBYTES * 2 ** 20);
    await service(5001, (socket) => socket.end(sent));
    const digest = await guest.sh('vsock connect 5001 < /dev/null | sha256sum', { timeoutMs });
    assert.equal(digest, `${digestOf(sent)}  -\n`);
  });

  test('a program of the host reaches a port of the guest, both ways at once', async () => {
    const job = await listenInGuest(52, 'cat');
    const sent = randomBytes(MEBIBYTES * 2 ** 20);
    const socket = await dial(52);
    const [echo] = await Promise.all([buffer(socket), socket.end(sent)]);
    assert.equal(digestOf(echo), digestOf(sent));
    job.kill(9);
    await job.done;
  });

  test('a port without a listener is refused on either side', async () => {
    const { exitCode, errorText } = await guest.run('vsock connect 5999 < /dev/null');
    assert.deepEqual([exitCode, errorText], [1, 'connect: ECONNRESET\n']);
    const socket = connect(hostPath);
    socket.write('CONNECT 5999\n');
    assert.equal((await buffer(socket)).length, 0, 'no OK, and the end');
  });

  test('a connection that either side breaks off is over on the other', async () => {
    const { promise: gone, resolve } = Promise.withResolvers<void>();
    let connections = 0;
    await service(5002, (socket) => {
      // What is not read when a unix socket is closed resets it.
      if (connections === 0) socket.once('readable', () => socket.destroy());
      else socket.once('end', () => resolve()).resume();
      connections++;
    });
    const lost = await guest.run('yes 2> /dev/null | vsock connect 5002', { timeoutMs });
    // Linux makes the end of the stream of a reset, and EPIPE.
    assert.equal(lost.exitCode, 1);
    assert.match(lost.errorText, /^(the host ended it|send: EPIPE|send: ENOTCONN)\n$/);
    const job = guest.spawn('exec vsock connect 5002');
    await until('the second connection', () => connections === 2);
    job.kill(9);
    await Promise.all([job.done, gone]);
  });

  test('a service is told the port of the guest, below 1024 only where root is at its other end', async () => {
    const peers: unknown[] = [];
    await service(5003, (socket) => {
      peers.push(vsockPeer(fdOf(socket)));
      socket.end();
    });
    await guest.sh('vsock connect 5003 1023 < /dev/null');
    const refused = await guest.run('vsock connect 5003 1022 < /dev/null', { uid: 1000 });
    assert.deepEqual([refused.exitCode, refused.errorText], [1, 'bind: EACCES\n']);
    await guest.sh('vsock connect 5003 1024 < /dev/null', { uid: 1000 });
    await guest.sh('vsock connect 5003 < /dev/null', { uid: 1000 });
    await until('all peers', () => peers.length === 3);
    assert.deepEqual(peers.slice(0, 2), [
      { guestCid: 3, sourcePort: 1023 },
      { guestCid: 3, sourcePort: 1024 },
    ]);
    const { sourcePort } = peers[2] as { sourcePort: number };
    assert.ok(sourcePort >= 1024, `${sourcePort}`);
  });

  test(`${CONNECTIONS} connections at once, from the guest and from the host`, async () => {
    const held: Socket[] = [];
    await service(5004, (socket) => {
      held.push(socket);
      // The first answer when all are there.
      if (held.length === CONNECTIONS) for (const one of held) one.pipe(one);
    });
    assert.equal(await guest.sh(`vsock many 5004 ${CONNECTIONS}`, { timeoutMs }), `${CONNECTIONS}\n`);
    const job = guest.spawn('exec vsock echo 53');
    await job.waitForOutput(/ready/);
    const sockets = await Promise.all(Array.from({ length: CONNECTIONS }, () => dial(53)));
    const echoes = await Promise.all(
      sockets.map((socket, index) => {
        socket.end(`number ${index}`);
        return buffer(socket);
      }),
    );
    assert.deepEqual(
      echoes.map(String),
      sockets.map((_, index) => `number ${index}`),
    );
    job.kill(9);
    await job.done;
  });

  test("Debian's socat connects and listens", async () => {
    await service(5005, (socket) => socket.end('from the host\n'));
    await guest.sh('mkdir /socat && tar -x -C /socat', { stdin: withLibraries('/usr/bin/socat') });
    const socat = 'chroot /socat /usr/bin/socat';
    assert.equal(await guest.sh(`${socat} -u VSOCK-CONNECT:2:5005 -`, { timeoutMs }), 'from the host\n');
    const job = guest.spawn(`echo from the guest | ${socat} -dd VSOCK-LISTEN:54 - 2>&1`);
    await job.waitForOutput(/listening on/, timeoutMs);
    assert.equal(String(await buffer(await dial(54))), 'from the guest\n');
    await job.done;
  });

  test('connections live over stop and cont, and end with a reset of the machine', async () => {
    const job = guest.spawn('exec vsock connect 5006');
    job.write('one\n');
    await job.waitForOutput(/one\n/);
    await guest.qmp('stop');
    await guest.qmp('cont');
    job.write('two\n');
    await job.waitForOutput(/two\n/);
    assert.equal((await counters())['vsock.open'], 1);
    await guest.reset();
    await guest.sh('modprobe vmw_vsock_virtio_transport');
    assert.equal((await counters())['vsock.open'], 0);
    assert.equal(await guest.sh('echo again | vsock connect 5006'), 'again\n');
  });

  test('the device process dies: connections are reset, new ones work at once, and the guest keeps its device', async () => {
    const job = guest.spawn('exec vsock connect 5006');
    job.write('one\n');
    await job.waitForOutput(/one\n/);
    const before = server.devicePid!;
    process.kill(before, 'SIGKILL');
    const { exitCode } = await job.done;
    assert.equal(exitCode, 1, job.stderrText);
    assert.equal(await guest.sh('echo again | vsock connect 5006', { timeoutMs }), 'again\n');
    assert.notEqual(server.devicePid, before);
    for (const name of ['vsock.badChains', 'vsock.brokenQueues', 'vsock.badPackets'])
      assert.equal((await counters())[name], 0, name);
  });
});

/** A program of this machine and the libraries that it loads, as a tar. */
function withLibraries(program: string): Uint8Array {
  const { stdout } = spawnSync('ldd', [program], { encoding: 'utf8' });
  const libraries = [...stdout.matchAll(/(\/\S+) \(0x/g)].map(([, path]) => path!);
  const { stdout: tar, status } = spawnSync('tar', ['-chP', '-f', '-', program, ...libraries], { maxBuffer: 2 ** 28 });
  assert.equal(status, 0);
  return tar;
}

/** Node has no name for it. */
const fdOf = (socket: Socket): number => (Reflect.get(socket, '_handle') as { readonly fd: number }).fd;
