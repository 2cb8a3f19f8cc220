/** What a host's certificate is worth at the API: nothing, for any operation. */
import assert from 'node:assert/strict';
import { request as send } from 'node:https';
import { test } from 'node:test';
import { openStores } from '../../src/store/index.ts';
import { Authority, certificateRequest, keyToPem, managerName, newKeys } from '../../src/uplink/authority.ts';
import { startApi } from '../cluster/api.ts';
import { temporaryStore } from '../store/temporary.ts';

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
