import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { test } from 'node:test';
import { EINVAL } from '../wire/index.ts';
import { accept, close, listenTcp, POLLIN, pollOne, socketPair, tcpPeer, tuneTcp } from './index.ts';

/** errno.h, for what only this test meets. */
const [ENOTCONN, EADDRINUSE, EADDRNOTAVAIL] = [107, 98, 99];

/** A port that nobody listens on: the kernel was asked for one. */
async function freePort(address: string): Promise<number> {
  const server = createServer().listen(0, address);
  await once(server, 'listening');
  const { port } = server.address() as { readonly port: number };
  server.close();
  await once(server, 'close');
  return port;
}

for (const address of ['127.0.0.1', '::1'])
  test(`tcpPeer names address and port of who connected when the socket listens on ${address}`, async () => {
    const port = await freePort(address);
    const listenFd = listenTcp({ address, port });
    assert.ok(listenFd >= 0, `listening answered ${listenFd}`);
    assert.equal(listenTcp({ address, port }), -EADDRINUSE);
    const client = connect({ host: address, port });
    await once(client, 'connect');
    pollOne(listenFd, POLLIN, 1000);
    const fd = accept(listenFd);
    assert.ok(fd >= 0);
    const expected = address === '::1' ? '0:0:0:0:0:0:0:1' : address;
    assert.deepEqual(tcpPeer(fd), { address: expected, port: client.localPort });
    assert.equal(tuneTcp(fd), 0);
    client.destroy();
    close(fd);
    close(listenFd);
  });

test('tcpPeer writes an IPv4 address as such when the socket speaks IPv6', async () => {
  const port = await freePort('::');
  const listenFd = listenTcp({ address: '::', port });
  const client = connect({ host: '127.0.0.1', port });
  await once(client, 'connect');
  const fd = accept(listenFd);
  assert.deepEqual(tcpPeer(fd), { address: '127.0.0.1', port: client.localPort });
  client.destroy();
  close(fd);
  close(listenFd);
});

test('listenTcp answers an errno when it can not listen there', () => {
  for (const address of ['', '127.0.0', '127.0.0.1.1', 'localhost', '::1%lo', '::ffff:127.0.0.1'])
    assert.equal(listenTcp({ address, port: 1 }), -EINVAL, address);
  for (const port of [-1, 65_536, 1.5, Number.NaN]) assert.equal(listenTcp({ address: '127.0.0.1', port }), -EINVAL);
  assert.equal(listenTcp({ address: '192.0.2.1', port: 1 }), -EADDRNOTAVAIL);
});

test('tcpPeer of what is no connected TCP socket is an errno', () => {
  const pair = socketPair() as [number, number];
  assert.equal(tcpPeer(pair[0]), -EINVAL);
  for (const fd of pair) close(fd);
  const listenFd = listenTcp({ address: '127.0.0.1', port: 0 });
  assert.equal(tcpPeer(listenFd), -ENOTCONN);
  close(listenFd);
});
