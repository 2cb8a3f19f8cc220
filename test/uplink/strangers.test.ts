/** What whoever reaches the hosts' port may do, without a certificate or with one. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as connectSocket } from 'node:net';
import { test } from 'node:test';
import { connect, type TLSSocket } from 'node:tls';
import { alpnOf } from '../../src/uplink/protocols.ts';
import { until } from '../until.ts';
import { openRegion } from './region.ts';

test('a manager closes a connection that speaks no TLS, and one that says nothing', { timeout: 60_000 }, async (t) => {
  const region = await openRegion(t);
  const { port } = await region.manager();
  const [silent, noisy] = [connectSocket(port, '127.0.0.1'), connectSocket(port, '127.0.0.1')];
  noisy.write('GET / HTTP/1.1\r\n\r\n');
  const signal = AbortSignal.timeout(40_000);
  try {
    await Promise.all([silent, noisy].map((socket) => once(socket.on('error', () => {}).resume(), 'close', { signal })));
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
  const [error] = (await Promise.race([once(older, 'secureConnect'), once(older, 'close')]).catch((e) => [e])) as [Error?];
  older.destroy();
  assert.equal((error as NodeJS.ErrnoException | undefined)?.code, 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
});
