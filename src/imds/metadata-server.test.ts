/** Hostile and broken clients: each limit refuses, is counted, and leaves the others alone. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { request } from 'node:https';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { test } from 'node:test';
import fc from 'fast-check';
import { Stage } from '../../test/imds/stage.ts';
import type { WorldSpec } from '../../test/tree/world.ts';
import { until } from '../../test/until.ts';
import type { RejectReason, ServerLimits } from './limits.ts';

const spec: WorldSpec = { content: { instance: { id: 'i-1' }, 'cloud-init': {}, guest: {} } };

const start = (limits: Partial<ServerLimits> = {}) => Stage.start(spec, { limits });

const rejected = (stage: Stage, reason: RejectReason): number => stage.server.counters()[`rejected.${reason}`]!;

/** What a client that writes what it likes is answered. */
class Raw {
  readonly stream: Duplex;
  text = '';
  hasEnded = false;

  constructor(stream: Duplex) {
    this.stream = stream;
    stream.on('data', (part: Buffer) => {
      this.text += part.toString('latin1');
    });
    for (const event of ['end', 'close', 'error'] as const)
      stream.on(event, () => {
        this.hasEnded = true;
      });
  }

  get statuses(): number[] {
    return [...this.text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map(([, status]) => Number(status));
  }

  send(text: string): this {
    this.stream.write(text);
    return this;
  }

  ended(): Promise<unknown> {
    return until('the connection ends', () => this.hasEnded);
  }

  answers(count: number): Promise<unknown> {
    return until(`${count} answers`, () => this.statuses.length >= count);
  }
}

const get = (path: string, more = ''): string => `GET ${path} HTTP/1.1\r\nHost: x\r\n${more}\r\n`;

/** An honest client is served, whatever the others do. */
const isServed = async (stage: Stage): Promise<void> => {
  assert.equal((await stage.ask('/nocloud/meta-data')).body, 'instance-id: "i-1"\n');
  assert.deepEqual(stage.errors, []);
};

test('a client that sends its headers a byte at a time is cut off', async () => {
  await using stage = await start({ headersMs: 50 });
  const slow = new Raw(stage.connect()).send('GET / HTTP/1.1\r\nHost: x\r\nX-A: ');
  await until('it is cut off', () => {
    if (!slow.hasEnded && !slow.stream.destroyed) slow.send('a');
    return slow.hasEnded;
  });
  assert.deepEqual(slow.statuses, [408]);
  assert.equal(rejected(stage, 'slow'), 1);
  await isServed(stage);
});

test('a client whose body does not come is cut off', async () => {
  await using stage = await start({ headersMs: 50, requestMs: 100 });
  const head =
    'POST /porthole/v1/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{';
  const slow = new Raw(stage.connect()).send(head);
  await slow.ended();
  assert.equal(rejected(stage, 'slow'), 1);
  await isServed(stage);
});

test('a connection on which nothing happens is closed', async () => {
  await using stage = await start({ idleMs: 50 });
  const dir = mkdtempSync(join(tmpdir(), 'porthole-imds-'));
  try {
    await stage.server.listen({ unix: join(dir, 's') });
    await new Raw(connect(join(dir, 's'))).ended();
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('headers that are too long or too many are refused', async () => {
  await using stage = await start();
  const long = new Raw(stage.connect()).send(get('/', `X-A: ${'a'.repeat(20_000)}\r\n`));
  await long.ended();
  assert.deepEqual(long.statuses, [431]);
  const many = new Raw(stage.connect()).send(get('/', 'X-A: a\r\n'.repeat(3_000)));
  await many.ended();
  assert.deepEqual(many.statuses, [431]);
  assert.equal(rejected(stage, 'header-size'), 2);
  await isServed(stage);
});

test('an absurd content-length is refused before the body comes, and a long body when it has', async () => {
  await using stage = await start({ bodyBytes: 1000 });
  const token = await stage.token();
  const head = `Content-Type: application/json\r\nAuthorization: Bearer ${token}\r\n`;
  const post = (more: string) => `POST /porthole/v1/stat HTTP/1.1\r\nHost: x\r\n${head}${more}\r\n`;
  for (const length of ['1001', '99999999999999']) {
    const absurd = new Raw(stage.connect()).send(post(`Content-Length: ${length}\r\n`));
    await absurd.answers(1);
    assert.deepEqual(absurd.statuses, [413]);
    absurd.stream.destroy();
  }
  const chunked = new Raw(stage.connect())
    .send(post('Transfer-Encoding: chunked\r\n'))
    .send(`7d0\r\n${'a'.repeat(2000)}\r\n`);
  await chunked.answers(1);
  assert.deepEqual(chunked.statuses, [413]);
  assert.equal(rejected(stage, 'body-size'), 3);
  for (const length of ['-1', '1e3', '9'.repeat(40), '5, 5']) {
    const nonsense = new Raw(stage.connect()).send(post(`Content-Length: ${length}\r\n`));
    await nonsense.ended();
    assert.deepEqual(nonsense.statuses, [400], length);
  }
  const both = new Raw(stage.connect()).send(post('Content-Length: 4\r\nTransfer-Encoding: chunked\r\n'));
  await both.ended();
  assert.deepEqual(both.statuses, [400], 'nobody agrees where such a request ends');
  await isServed(stage);
});

test('what follows a body that was not read is no request', async () => {
  await using stage = await start();
  const smuggled = get('/nocloud/meta-data');
  const head = `POST /nocloud/meta-data HTTP/1.1\r\nHost: x\r\nContent-Length: ${smuggled.length}\r\n\r\n`;
  const raw = new Raw(stage.connect()).send(head).send(smuggled).send(get('/openstack'));
  await until('the next answer, or the end', () => raw.hasEnded || raw.statuses.length > 1);
  assert.equal(raw.statuses[0], 405);
  assert.ok(!raw.text.includes('instance-id'), raw.text);
});

test('a body that comes after its request was refused is taken, so that the refusal arrives', async () => {
  await using stage = await start();
  const directory = mkdtempSync(join(tmpdir(), 'porthole-imds-'));
  const body = JSON.stringify({ nonce: 'n'.repeat(32) });
  const head = `POST /porthole/v1/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n`;
  try {
    await stage.server.listen({ unix: join(directory, 's') });
    const socket = connect(join(directory, 's'));
    const failures: Error[] = [];
    socket.on('error', (error) => failures.push(error));
    const raw = new Raw(socket).send(head);
    await raw.answers(1);
    assert.equal(stage.server.counters()['inFlight'], 0, 'it waits in nobody’s way');
    raw.send(body);
    await raw.ended();
    assert.deepEqual(raw.statuses, [403]);
    assert.deepEqual(failures, []);
  } finally {
    rmSync(directory, { recursive: true });
  }
  await isServed(stage);
});

test('more connections than allowed are closed, and others are served once some have left', async () => {
  await using stage = await start({ connections: 10 });
  const held = Array.from({ length: 10 }, () => new Raw(stage.connect()));
  const more = Array.from({ length: 50 }, () => new Raw(stage.connect()));
  await Promise.all(more.map((raw) => raw.ended()));
  assert.equal(rejected(stage, 'connections'), 50);
  for (const { stream } of held) stream.destroy();
  await until('they have left', () => stage.server.counters()['connections'] === 0);
  await isServed(stage);
});

test('a client that sends no more is answered what it asked, and neither followed nor waited for', async () => {
  await using stage = await start();
  const token = await stage.token();
  const directory = mkdtempSync(join(tmpdir(), 'porthole-imds-'));
  try {
    const path = join(directory, 's');
    await stage.server.listen({ unix: path });
    const raw = (asked: string): Raw => new Raw(connect({ path, allowHalfOpen: true })).send(asked);
    const plain = raw(get('/nocloud/meta-data'));
    plain.stream.end();
    await plain.ended();
    assert.deepEqual(plain.statuses, [200]);
    const { revision } = stage.world.authority.snapshot;
    const watching = raw(get(`/porthole/v1/watch?from=${revision}`, `Authorization: Bearer ${token}\r\n`));
    await watching.answers(1);
    const wait = get('/computeMetadata/v1/instance/?wait_for_change=true', 'Metadata-Flavor: Google\r\n');
    const polling = raw(wait.repeat(2));
    await until('they wait', () => stage.server.counters()['inFlight'] === 3);
    for (const { stream } of [watching, polling]) stream.end();
    await until('nobody waits', () => stage.server.counters()['inFlight'] === 0);
    const late = raw(wait);
    late.stream.end();
    await late.ended();
    await watching.ended();
    assert.equal(await stage.server.applied(revision + 1, 60_000), true, 'who writes outside waits for nobody');
  } finally {
    rmSync(directory, { recursive: true });
  }
  await isServed(stage);
});

test('a channel may have fewer connections than all together', async () => {
  await using stage = await start();
  const few = { kind: 'vsock', privileged: false, connections: 2 } as const;
  const raws = Array.from({ length: 5 }, () => new Raw(stage.connect(few)));
  await until('three are closed', () => raws.filter(({ hasEnded }) => hasEnded).length === 3);
  assert.equal(rejected(stage, 'connections'), 3);
  const over = new Raw(stage.connect({ ...few })).send(get('/nocloud/meta-data'));
  await over.answers(1);
  assert.deepEqual(over.statuses, [200], 'another channel');
  for (const { stream } of [...raws, over]) stream.destroy();
});

test('requests that were sent ahead are answered in order, up to a limit', async () => {
  await using stage = await start({ pipelined: 4 });
  const polite = new Raw(stage.connect()).send(get('/nocloud/meta-data').repeat(3));
  await polite.answers(3);
  assert.deepEqual(polite.statuses, [200, 200, 200]);
  const wait = get('/computeMetadata/v1/instance/?wait_for_change=true', 'Metadata-Flavor: Google\r\n');
  const greedy = new Raw(stage.connect()).send(wait.repeat(5));
  await greedy.ended();
  assert.equal(rejected(stage, 'pipelined'), 1);
  await until('nothing is left of it', () => stage.server.counters()['inFlight'] === 0);
  await isServed(stage);
});

test('more requests at once than allowed get 503', async () => {
  await using stage = await start({ inFlight: 3 });
  const wait = get('/computeMetadata/v1/instance/?wait_for_change=true', 'Metadata-Flavor: Google\r\n');
  const waiting = Array.from({ length: 3 }, () => new Raw(stage.connect()).send(wait));
  await until('they wait', () => stage.server.counters()['inFlight'] === 3);
  assert.equal((await stage.ask('/nocloud/meta-data')).status, 503);
  for (const { stream } of waiting) stream.destroy();
  await until('they have gone', () => stage.server.counters()['inFlight'] === 0);
  assert.equal(rejected(stage, 'in-flight'), 1);
  await isServed(stage);
});

test('a quarter of connections and requests, and their rate, is kept for privileged channels', async () => {
  await using stage = await start({ connections: 8, inFlight: 8, facadeRate: { burst: 8, perSecond: 1 } });
  const anybody = { kind: 'vsock', privileged: false } as const;
  const wait = get('/computeMetadata/v1/instance/?wait_for_change=true', 'Metadata-Flavor: Google\r\n');
  const greedy = Array.from({ length: 20 }, () => new Raw(stage.connect(anybody)).send(wait));
  await until('six are left', () => greedy.filter(({ hasEnded }) => hasEnded).length === 14);
  await until('they wait', () => stage.server.counters()['inFlight'] === 6);
  const more = greedy.find(({ hasEnded }) => !hasEnded)!.send(get('/nocloud/meta-data'));
  await until('one more of theirs is refused', () => rejected(stage, 'in-flight') === 1);
  const token = await stage.token();
  assert.equal((await stage.native('stat', { caller: { uid: 1, gid: 1, pid: 1 }, node: '/' }, token)).status, 200);
  assert.equal(more.hasEnded, false, 'answered in order, after what it waits for');
  for (const { stream } of greedy) stream.destroy();
});

test('too many requests of nobody or of a uid get 429, and leave other uids alone', async () => {
  const rate = { burst: 5, perSecond: 1 };
  await using stage = await start({ facadeRate: rate, uidRate: rate });
  const token = await stage.token();
  const stat = async (uid: number) =>
    (await stage.native('stat', { caller: { uid, gid: uid, pid: 1 }, node: '/' }, token)).status;
  const statuses: number[] = [];
  for (let i = 0; i < 6; i++) statuses.push((await stage.ask('/nocloud/meta-data')).status);
  assert.equal(statuses.at(-1), 429);
  assert.equal(await stat(1000), 200, 'what nobody asks takes nothing from the agent');
  for (let i = 0; i < 5; i++) await stat(1000);
  assert.equal(await stat(1000), 429);
  assert.equal(await stat(1001), 200);
  stage.world.clock.advance(2000);
  assert.equal(await stat(1000), 200);
  assert.ok(rejected(stage, 'rate') > 0 && rejected(stage, 'uid-rate') > 0);
});

test('guessing tokens is limited', async () => {
  await using stage = await start({ facadeRate: { burst: 5, perSecond: 1 } });
  const token = await stage.token();
  const statuses: number[] = [];
  for (let i = 0; i < 6; i++) statuses.push((await stage.native('tree', undefined, 'x'.repeat(43))).status);
  assert.deepEqual([statuses[0], statuses.at(-1)], [401, 429]);
  assert.equal((await stage.native('tree', undefined, token)).status, 200, 'who has the token is not held up');
});

test('forwarded requests are refused, whatever they ask for', async () => {
  await using stage = await start();
  const token = await stage.token();
  for (const name of ['X-Forwarded-For', 'Forwarded', 'Via', 'X-Real-IP', 'x-forwarded-host']) {
    const headers = {
      [name]: '10.0.0.1',
      'x-aws-ec2-metadata-token-ttl-seconds': '60',
      authorization: `Bearer ${token}`,
    };
    assert.equal((await stage.ask('/latest/api/token', { method: 'PUT', headers })).status, 403, name);
    assert.equal((await stage.ask('/porthole/v1/tree', { headers })).status, 403, name);
  }
  assert.equal(rejected(stage, 'forwarded'), 10);
});

test('over TCP only an address or a known name is a host', async () => {
  await using stage = await start();
  const port = await stage.server.listen({ host: '127.0.0.1', port: 0 });
  const status = async (host: string): Promise<number> => {
    const raw = new Raw(connect(port, '127.0.0.1')).send(`GET /nocloud/meta-data HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
    await raw.answers(1);
    raw.stream.destroy();
    return raw.statuses[0]!;
  };
  for (const host of [
    '127.0.0.1',
    `127.0.0.1:${port}`,
    '169.254.169.254',
    '[fd00:ec2::254]:80',
    'metadata.google.internal',
    'METADATA',
    `localhost:${port}`,
  ])
    assert.equal(await status(host), 200, host);
  for (const host of ['attacker.example', 'localhost.attacker.example', '', '127.0.0.1.nip.io', '[::1', '1'])
    assert.ok([400, 403].includes(await status(host)), host);
  const without = new Raw(connect(port, '127.0.0.1')).send('GET / HTTP/1.1\r\n\r\n');
  await without.answers(1);
  assert.deepEqual(without.statuses, [400]);
});

test('a socket is its owner’s, unless a group may connect', async () => {
  await using stage = await start();
  const dir = mkdtempSync(join(tmpdir(), 'porthole-imds-'));
  try {
    await stage.server.listen({ unix: join(dir, 'own') });
    await stage.server.listen({ unix: join(dir, 'group'), mode: 0o660, gid: process.getgid!() });
    assert.deepEqual(
      [statSync(join(dir, 'own')).mode & 0o777, statSync(join(dir, 'group')).mode & 0o777],
      [0o600, 0o660],
    );
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('over TLS a client that pins the certificate is served, and others are not taken for it', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'porthole-imds-'));
  try {
    const [key, cert] = [join(dir, 'key'), join(dir, 'cert')];
    const made = [
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-keyout',
      key,
      '-out',
      cert,
    ];
    execFileSync('openssl', [...made, '-subj', '/CN=metadata', '-addext', 'subjectAltName=IP:127.0.0.1'], {
      stdio: 'pipe',
    });
    const pem = { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') };
    await using stage = await Stage.start(spec, { tls: pem });
    const port = await stage.server.listen({ host: '127.0.0.1', port: 0 });
    const get = (ca: string | undefined) =>
      new Promise<number | string>((resolve) => {
        const options = {
          host: '127.0.0.1',
          port,
          path: '/nocloud/meta-data',
          agent: false,
          ...(ca !== undefined && { ca }),
        };
        request(options, (response) => resolve(response.resume().statusCode!))
          .once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? ''))
          .end();
      });
    assert.equal(await get(pem.cert), 200);
    assert.equal(await get(undefined), 'DEPTH_ZERO_SELF_SIGNED_CERT');
    const bare = new Raw(connect(port, '127.0.0.1')).send('GET /nocloud/meta-data HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await bare.ended();
    assert.ok(!bare.text.includes('instance-id'));
    await isServed(stage);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('a TCP connection is privileged when its source port takes privilege', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('only root may have a source port below 1024');
  await using stage = await start();
  const port = await stage.server.listen({ host: '127.0.0.1', port: 0 });
  const body = JSON.stringify({ nonce: 'n'.repeat(22) });
  const claim = `POST /porthole/v1/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  const free = new Raw(connect({ port, host: '127.0.0.1' })).send(claim);
  await free.answers(1);
  assert.deepEqual(free.statuses, [403]);
  free.stream.destroy();
  let privileged: Raw | undefined;
  for (let localPort = 1023; privileged === undefined && localPort > 900; localPort--) {
    const socket: Socket = connect({ port, host: '127.0.0.1', localPort });
    const isUp = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    });
    if (isUp) privileged = new Raw(socket).send(claim);
  }
  await privileged!.answers(1);
  assert.deepEqual(privileged!.statuses, [200]);
  privileged!.stream.destroy();
});

test('nothing is upgraded or tunnelled, and targets in other forms are refused', async () => {
  await using stage = await start();
  for (const request of [
    'CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n',
    get('/', 'Connection: Upgrade\r\nUpgrade: websocket\r\n'),
    get('/', 'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n'),
    'GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n',
    'OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n',
    get('/latest/../openstack'),
    get('/latest/%2e%2e/openstack'),
    get('/nocloud/%2fmeta-data'),
    get('/nocloud/meta-data%00'),
    get('/%ff'),
    get('/a?%'),
    get(`/${'a/'.repeat(100)}`),
    'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    '\u0016\u0003\u0001\u0002\u0000\u0001\u0000\u0001',
  ]) {
    const raw = new Raw(stage.connect()).send(request);
    await until('an answer or an end', () => raw.statuses.length > 0 || raw.hasEnded);
    assert.ok(
      raw.statuses.every((status) => status === 400),
      `${request}: ${raw.text}`,
    );
    raw.stream.destroy();
  }
  await isServed(stage);
});

const piece = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.constantFrom(
      'GET ',
      'PUT ',
      'POST ',
      'HEAD ',
      '/latest/api/token',
      '/computeMetadata/v1/?recursive=true',
      '/porthole/v1/token',
      ' HTTP/1.1\r\n',
      'Host: x\r\n',
      '\r\n',
      'Content-Length: 5\r\n',
      'Transfer-Encoding: chunked\r\n',
      'Expect: 100-continue\r\n',
      'Metadata-Flavor: Google\r\n',
      '5\r\nhello\r\n0\r\n\r\n',
      '{"nonce":"',
      'aaaaaaaaaaaaaaaaaaaaaaaa"}',
      'Content-Type: application/json\r\n',
    ),
  },
  { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 40 }) },
);

test('whatever bytes come, the server lives, and makes no mistake of its own', async () => {
  await using stage = await start();
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { minLength: 1, maxLength: 30 }), async (pieces) => {
      const raw = new Raw(stage.connect());
      raw.stream.end(pieces.join(''));
      await raw.ended();
      assert.ok(!raw.statuses.includes(500), raw.text);
      assert.deepEqual(stage.errors, []);
    }),
    { numRuns: 150 },
  );
  await until('nothing is left', () => stage.server.counters()['inFlight'] === 0);
  await isServed(stage);
});

test('MetadataServer refuses a machine that asks too much, and no other, nor its own agent', async () => {
  const spec = { content: { instance: { id: 'i-1' } } };
  await using loud = await Stage.start(spec, { limits: { facadeRate: { burst: 3, perSecond: 1 } } });
  await using quiet = await Stage.start(spec, { limits: { facadeRate: { burst: 3, perSecond: 1 } } });
  const statusOf = async (stage: Stage): Promise<number> => (await stage.ask('/nocloud/meta-data')).status;
  for (const expected of [200, 200, 200, 429, 429]) assert.equal(await statusOf(loud), expected);
  assert.equal(await statusOf(quiet), 200);
  const token = await loud.token();
  assert.equal((await loud.native('stat', { caller: { uid: 0, gid: 0, pid: 1 }, node: '/' }, token)).status, 200);
  assert.equal(loud.server.counters()['rejected.rate'], 2);
});
