/** What a host's certificate is worth for the API's operations, at its port and at the hosts': nothing, for any of them. */
import assert from 'node:assert/strict';
import { type ClientHttp2Session, connect as connectHttp2 } from 'node:http2';
import { request as send } from 'node:https';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { openStores } from '../../src/store/index.ts';
import { Authority, certificateRequest, keyToPem, managerName, newKeys } from '../../src/uplink/authority.ts';
import { endConnection, sessionOptions } from '../../src/uplink/calls.ts';
import { dial } from '../../src/uplink/dial.ts';
import { FrameReader } from '../../src/uplink/frames.ts';
import { alpnOf } from '../../src/uplink/protocols.ts';
import { startApi } from '../cluster/api.ts';
import { temporaryStore } from '../store/temporary.ts';
import { at, openRegion, regionName } from './region.ts';

test('the API takes no host’s certificate for any operation', async (t) => {
  const stores = await openStores(temporaryStore(t));
  t.after(() => stores.close());
  const authority = await Authority.open(stores.region, 'eu');
  const keys = await newKeys();
  const { certificate: cert } = await authority.issueHost('h1', await certificateRequest(keys));
  const key = await keyToPem(keys.privateKey);
  const server = await authority.issueManager();
  const tls = { cert: server.certificate, key: server.key };
  const api = await startApi(t, { listen: { tcp: { host: '127.0.0.1', port: 0, tls } } });
  const outcomeOf = (method: string, path: string): Promise<number> => {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    const asked = { method, cert, key, ca: authority.certificate, servername: managerName('eu'), agent: false };
    const sending = send(`${api.server.url!}${path}`, asked, (response) => {
      resolve(response.statusCode ?? 0);
      sending.destroy();
    });
    sending.on('error', reject).end();
    return promise;
  };
  for (const { id, method, path, access } of api.contract.operations) {
    const status = await outcomeOf(method, path.replaceAll(/\{[^}]+\}/g, 'a'));
    assert.equal(status, access === 'none' ? 200 : 401, `${id}: ${method} ${path}`);
  }
  assert(api.contract.operations.length > 50);
});

/** What comes back of a request as the API takes it. */
const answerTo = async (session: ClientHttp2Session, method: string, path: string): Promise<unknown[]> => {
  const headers = { ':method': method, ':path': path, 'content-type': 'application/json' };
  const sending = session.request(headers, { endStream: false });
  sending.end(method === 'GET' ? undefined : '{}');
  const reader = new FrameReader();
  const frames: unknown[] = [];
  for await (const chunk of sending) frames.push(...reader.push(chunk as Uint8Array));
  return frames;
};

test('the hosts’ port answers no operation of the API, whatever a host connects for', async (t) => {
  const { contract } = await startApi(t);
  const region = await openRegion(t);
  const server = await region.manager();
  const { authority, certificate, key } = await region.identity('h1', server);
  const credentials = { certificate, key };
  for (const purpose of ['store', 'enrol'] as const) {
    const socket = await dial(at(server), purpose, { region: regionName, authority, credentials });
    const session = connectHttp2('https://manager.invalid', { ...sessionOptions, createConnection: () => socket });
    t.after(() => endConnection(socket));
    for (const { id, method, path } of contract.operations) {
      const [frame, ...more] = await answerTo(session, method, path.replaceAll(/\{[^}]+\}/g, 'a'));
      assert.deepEqual(more, [], id);
      assert.deepEqual(
        [(frame as unknown[])[0], ((frame as unknown[])[1] as { readonly code: string }).code],
        [2, 'UPLINK_REFUSED'],
        `${id} for ${purpose}`,
      );
    }
  }
  // On the connection by which it is asked, and on one for nothing that there is, nothing is answered at all.
  for (const protocol of [...alpnOf('calls'), 'http/1.1', 'h2', undefined]) {
    const asked = protocol === undefined ? {} : { ALPNProtocols: [protocol] };
    const tls = { ...at(server), ca: authority, cert: certificate, key, servername: managerName(regionName), ...asked };
    const socket = connectTls(tls);
    socket.on('error', () => {});
    const heard: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => heard.push(chunk));
    for (const { method, path } of contract.operations) socket.write(`${method} ${path} HTTP/1.1\r\nHost: a\r\n\r\n`);
    await new Promise((resolve) => void socket.once('close', resolve));
    assert.doesNotMatch(Buffer.concat(heard).toString('latin1'), /HTTP\/1|\{/, String(protocol));
  }
  assert.deepEqual(region.troubles, []);
});
