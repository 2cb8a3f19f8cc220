/** 9P by the token of a boot, where no port vouches for a client: over the deaths of the daemon, until the next boot. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type IncomingMessage, request } from 'node:http';
import path from 'node:path';
import { json } from 'node:stream/consumers';
import { test } from 'node:test';
import { abi } from '../../src/ninep/index.ts';
import { EACCES } from '../../src/wire/index.ts';
import { RemoteClient } from '../ninep/remote.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';

const spec = `porthole: 1
metadata: { secrets: { db-password: hunter2 } }
users: { postgres: 114 }
policy:
  - { path: /secrets/db-password, owner: postgres, mode: "0400" }
`;

test('the guest of an attached VM gets in by its boot’s token, daemon or not, until another boot is told of', async (t) => {
  const machine = new UpMachine(t);
  await machine.spawn();
  const { client: api } = machine;
  const params = { name: 'one' };
  const wish = { vsock: true, metadataServer: { ways: ['socket' as const] }, spec };
  await machine.done(await api.call('createVm', { body: { ...params, kind: 'attached', ...wish } }));
  await api.call('tellBoot', { params });
  const { vsock, metadataServer } = await api.call('getAttachment', { params, query: {} });

  const connect = (): RemoteClient => {
    const client = new RemoteClient(vsock!.ofOthers.socketPath);
    t.after(() => client[Symbol.dispose]());
    client.version();
    return client;
  };
  const attach = (client: RemoteClient, aname: string): number =>
    client.call('Tattach', { fid: client.newFid(), afid: abi.NOFID, nUname: 114, aname }).errno!;
  const assertReads = (client: RemoteClient): void => {
    const fid = client.open(client.attach(114), 'secrets/db-password');
    assert.equal(Buffer.from(client.ok('Tread', { fid, count: 100 }).data).toString(), 'hunter2');
  };

  const claim = request({
    socketPath: metadataServer!.sockets!.privileged,
    path: '/porthole/v1/token',
    method: 'POST',
    headers: { 'content-type': 'application/json' },
  });
  claim.end(JSON.stringify({ nonce: randomBytes(16).toString('hex') }));
  const [response] = (await once(claim, 'response')) as [IncomingMessage];
  const { token } = (await json(response)) as { readonly token: string };
  const first = connect();
  assert.equal(attach(first, '/'), EACCES);
  assert.equal(attach(first, `token=${token}x`), EACCES);
  assert.equal(attach(first, `token=${token}`), 0);
  assertReads(first);
  await until('it is known that the token was used', async () => {
    return (await api.call('getVm', { params })).metadataServer?.token?.state === 'used';
  });

  await machine.kill('SIGKILL');
  assertReads(first);
  const second = connect();
  assert.equal(attach(second, `token=${token}`), 0, 'with no daemon there');
  await machine.spawn();
  await until('the next daemon serves it', async () => (await api.call('getVm', { params })).status === 'running');
  assertReads(first);
  assert.equal(attach(connect(), `token=${token}`), 0);

  await api.call('tellBoot', { params });
  await until('who came in by the token of before is turned out', () => {
    for (const client of [first, second]) client.session.take();
    return first.isOver && second.isOver;
  });
  assert.equal(attach(connect(), `token=${token}`), EACCES);
  const log = readFileSync(path.join(machine.directory, 'state/vms/one/device.log'), 'utf8');
  assert.ok(!`${machine.said}${JSON.stringify(machine.events)}${log}`.includes(token), 'nobody is told of the token');
});
