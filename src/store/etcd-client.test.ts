import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { type TestContext, test } from 'node:test';
import { EtcdClient } from './etcd-client.ts';

const listening = async (t: TestContext): Promise<{ readonly server: Server; readonly at: string }> => {
  const server = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
  t.after(() => server.close());
  await once(server, 'listening');
  return { server, at: `127.0.0.1:${(server.address() as AddressInfo).port}` };
};

test('EtcdClient goes to etcd itself when the environment names a proxy', { timeout: 60_000 }, async (t) => {
  const [member, proxy] = [await listening(t), await listening(t)];
  const before = process.env['grpc_proxy'];
  process.env['grpc_proxy'] = `http://${proxy.at}`;
  t.after(() => {
    if (before === undefined) delete process.env['grpc_proxy'];
    else process.env['grpc_proxy'] = before;
  });
  const client = new EtcdClient({ endpoints: [member.at], patienceMs: 1 });
  t.after(() => client.close());
  const asked = client.ask('Range', { key: Buffer.from('a') });
  asked.catch(() => {});
  const first = await Promise.race([
    once(member.server, 'connection').then(() => 'etcd'),
    once(proxy.server, 'connection').then(() => 'the proxy'),
  ]);
  assert.equal(first, 'etcd');
});
