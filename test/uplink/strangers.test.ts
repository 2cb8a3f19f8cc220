/** What whoever reaches the hosts' port may do, without a certificate or with one. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type ClientHttp2Session, connect as connectHttp2 } from 'node:http2';
import { connect as connectSocket } from 'node:net';
import { test } from 'node:test';
import { connect, type TLSSocket } from 'node:tls';
import type { HostPort, TreeEntry } from '../../src/records/index.ts';
import { Caller, sessionOptions } from '../../src/uplink/calls.ts';
import { dial } from '../../src/uplink/dial.ts';
import { frameLimits } from '../../src/uplink/frames.ts';
import type { Identity } from '../../src/uplink/index.ts';
import { alpnOf } from '../../src/uplink/protocols.ts';
import { slots, storeCalls } from '../../src/uplink/store-calls.ts';
import { TestHost } from '../cluster/host-on-authority.ts';
import { until } from '../until.ts';
import { at, openRegion, regionName, vmRecord } from './region.ts';

const hello = { instance: '0'.repeat(16), facts: { version: 'test' } };

interface Asking {
  readonly socket: TLSSocket;
  readonly session: ClientHttp2Session;
  readonly caller: Caller<typeof storeCalls>;
}

/** The store's connection of a host, by hand. */
const asking = async ({ port }: { readonly port: number }, identity: Identity): Promise<Asking> => {
  const { authority, certificate, key } = identity;
  const socket = await dial(at({ port }), 'store', {
    region: regionName,
    authority,
    credentials: { certificate, key },
  });
  const session = connectHttp2('https://m.invalid', { ...sessionOptions, createConnection: () => socket });
  session.on('error', () => {});
  return { socket, session, caller: new Caller(session, socket, storeCalls) };
};

test('a manager closes a connection that speaks no TLS, and one that says nothing', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const { port } = await region.manager();
  const [silent, noisy] = [connectSocket(port, '127.0.0.1'), connectSocket(port, '127.0.0.1')];
  noisy.write('GET / HTTP/1.1\r\n\r\n');
  const signal = AbortSignal.timeout(40_000);
  try {
    await Promise.all(
      [silent, noisy].map((socket) => once(socket.on('error', () => {}).resume(), 'close', { signal })),
    );
  } finally {
    for (const socket of [silent, noisy]) socket.destroy();
  }
});

test('a manager takes TLS 1.3 alone, also after it has made itself another certificate', async (t) => {
  const region = await openRegion(t);
  const { port } = await region.manager({ renewCredentialsMs: 20 });
  const to = { port, host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols: alpnOf('enrol') };
  const shown = async (): Promise<string> => {
    const socket: TLSSocket = connect(to);
    await once(socket, 'secureConnect');
    const { serialNumber } = socket.getPeerX509Certificate()!;
    socket.destroy();
    return serialNumber;
  };
  const first = await shown();
  await until('another certificate', async () => (await shown()) !== first);
  const older = connect({ ...to, maxVersion: 'TLSv1.2' });
  const [error] = (await Promise.race([once(older, 'secureConnect'), once(older, 'close')]).catch((e) => [e])) as [
    Error?,
  ];
  older.destroy();
  assert.equal((error as NodeJS.ErrnoException | undefined)?.code, 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
});

test('a host has few connections to a manager, of which the newest count', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const identity = await region.identity('h1', server);
  const all: Asking[] = [];
  t.after(() => all.forEach(({ caller }) => caller.end()));
  for (let i = 0; i < 8; i++) all.push(await asking(server, identity));
  await until('the oldest to be closed', () => all.slice(0, 2).every(({ socket }) => socket.destroyed));
  await all.at(-1)!.caller.ask('hello', hello);
  assert(all.slice(2).every(({ socket }) => !socket.destroyed));
});

test('a host is refused arguments that are too large together, and uids that Linux has not', {
  timeout: 60_000,
}, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const identity = await region.identity('h1', server);
  const { session, caller } = await asking(server, identity);
  t.after(() => caller.end());
  const uids = { first: Number.MAX_SAFE_INTEGER, count: 1 };
  const lies = { ...hello, facts: { ...hello.facts, uids } };
  await assert.rejects(caller.ask('hello', lies), { code: 'UPLINK_REFUSED' });
  await caller.ask('hello', hello);
  // None of them comes to its end.
  const begun = new Uint8Array(frameLimits.askedBytes);
  new DataView(begun.buffer).setUint32(0, frameLimits.askedBytes);
  let refused = 0;
  const streams = Array.from({ length: slots + 2 }, () => {
    const stream = session.request({ ':method': 'POST', ':path': '/commit' }, { endStream: false });
    stream.on('error', () => {}).on('close', () => refused++);
    stream.write(begun);
    return stream;
  });
  await until('some to be refused', () => refused > 0);
  assert(refused < streams.length);
  const other = await asking(server, identity);
  await other.caller.ask('hello', hello);
  other.caller.end();
});

test('a manager takes no more of a tree than it asked a host for', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager();
  const uplink = await region.uplink(await region.identity('h1', server), { managers: [at(server)] });
  const vm = vmRecord('web-1', 'h1');
  await region.assign(vm);
  const host = new TestHost();
  const made = host.make(vm);
  let sent = 0;
  const entry: TreeEntry = {
    path: '/a',
    kind: 'file',
    madeBy: 'outside',
    sizeBytes: 1,
    dataRevision: 1,
    revision: 1,
    uid: 0,
    gid: 0,
    mode: 0,
    mtimeMs: 0,
    worldReadable: false,
    burned: false,
    rule: '',
  };
  function* endless(): Generator<TreeEntry> {
    for (; sent < 1_000_000; sent++) yield entry;
  }
  made.tree.walk = async () => ({ epoch: 1, revision: 1, entries: endless() as never });
  uplink.serve(host);
  await until('the connection for calls', async () => (await server.hosts.status()).warnings[0] === undefined);
  const asked = server.hosts.tree(vm).walk('/', { mostBytes: 256 * 1024, by: 'test' });
  await assert.rejects(asked, { code: 'HOST_UNAVAILABLE', message: /more of a tree than was asked for/ });
  assert(sent < 1_000_000);
});

test('a host that does not say how it is, or says so of another, is told by its own name', {
  timeout: 60_000,
}, async (t) => {
  const region = await openRegion(t);
  const server = await region.manager({ answerWithinMs: 500 });
  const hosts = ['mute', 'liar'].map((name) => ({ name, host: new TestHost() }));
  for (const { name, host } of hosts)
    (await region.uplink(await region.identity(name, server), { managers: [at(server)] })).serve(host);
  const [mute, liar] = hosts.map(({ host }): HostPort => host);
  mute!.status = () => new Promise(() => {});
  const status = await liar!.status();
  liar!.status = async () => ({ ...status, name: 'mute', warnings: ['it burns'] });
  const warnings = ['host mute: it does not answer; its log says more', 'host liar: it burns'];
  await until('both to be told of', async () => String((await server.hosts.status()).warnings) === String(warnings));
});
