/** Images of two regions with a store and a place for images each, and one global store. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { encodeRecord } from '../../src/records/index.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';

const tcp = { listen: { tcp: { host: '127.0.0.1', port: 0 } } } as const;

const regions = async (t: TestContext): Promise<{ readonly here: TestApi; readonly eu: TestApi }> => {
  const here = await startApi(t, tcp);
  const eu = await startApi(t, { ...tcp, manager: { regionName: 'eu', global: here.stores.global } });
  await here.ask({ method: 'PUT', path: '/v1/regions/eu', body: { addresses: [eu.server.url!] } });
  await here.ask({ method: 'PUT', path: '/v1/regions/local', body: { addresses: [here.server.url!] } });
  return { here, eu };
};

/** How an operation that was asked for ended. */
const ended = async (api: TestApi, path: string, body?: object): Promise<string> => {
  const begun = await api.ask({ method: 'POST', path, ...(body && { body }) });
  if (begun.status !== 202) return String(begun.json['code']);
  return until('the end of the operation', async () => {
    const { json } = await api.ask({ path: String(begun.headers['location']) });
    const { state, error } = json as unknown as { state: string; error?: { code: string } };
    return state === 'running' || state === 'pending' ? undefined : (error?.code ?? state);
  });
};

const add = (api: TestApi, version = '1'): Promise<string> =>
  ended(api, '/v1/images', { name: 'tiny', version, recipe: 'tiny' });

const create = (api: TestApi, name: string, image: object = { name: 'tiny' }) =>
  api.ask({ method: 'POST', path: '/v1/vms', body: { name, type: 'nano', image } });

const regionsOf = async (api: TestApi): Promise<unknown> => {
  const { status, json } = await api.ask({ path: '/v1/images/tiny/1' });
  return status === 200 ? json['regions'] : status;
};

const remove = async (api: TestApi): Promise<string> => {
  const { status, json } = await api.ask({ method: 'DELETE', path: '/v1/images/tiny/1' });
  return status === 204 ? 'removed' : String(json['code']);
};

test('a name and version is given to one image, whichever regions add it at once', async (t) => {
  const { here, eu } = await regions(t);
  const going = Promise.withResolvers<void>();
  for (const [api, digit] of [
    [here, '1'],
    [eu, '2'],
  ] as const)
    api.host.addImageWith = async () => {
      await going.promise;
      return { digest: `sha256:${digit.repeat(64)}`, sizeBytes: 1, virtualSizeBytes: 1 };
    };
  const both = [add(here), add(eu)];
  // One is about to be added, and the other was refused.
  const first = await Promise.race(both);
  going.resolve();
  assert.equal(first, 'NAME_TAKEN');
  assert.deepEqual((await Promise.all(both)).toSorted(), ['NAME_TAKEN', 'succeeded']);
  assert.equal(await add(here), 'NAME_TAKEN');
  assert.equal(await add(eu), 'NAME_TAKEN');
  const [winner, loser] = (await regionsOf(here))?.toString() === 'eu' ? [eu, here] : [here, eu];
  assert.equal(winner.host.images.size, 1);
  assert.equal(loser.host.images.size, 0);
  assert.equal((await create(winner, 'web')).status, 202);
  const refused = await create(loser, 'web-2');
  assert.equal(refused.status, 404);
  const there = winner === eu ? 'eu' : 'local';
  const own = winner === eu ? 'local' : 'eu';
  assert.equal(
    refused.json['detail'],
    `the image "tiny" version "1" is in ${there}, and not in ${own}; copy it: porthole image copy tiny:1 --region ${own}`,
  );
  assert.equal(await remove(loser), 'NOT_FOUND');
  assert.equal(await remove(winner), 'IMAGE_IN_USE');
  await winner.ask({ method: 'DELETE', path: '/v1/vms/web' });
  await until('the VM to be gone', async () => (await winner.ask({ path: '/v1/vms/web' })).status === 404);
  assert.equal(await remove(winner), 'removed');
  assert.equal(await regionsOf(here), 404);
  assert.equal(await add(loser), 'succeeded');
});

test('an image of before regions kept them is used as it was, and is the region’s that has its bytes', async (t) => {
  const { here } = await regions(t);
  const image = {
    name: 'tiny',
    version: '1',
    account: 'default',
    digest: `sha256:${'a'.repeat(64)}`,
    sizeBytes: 1,
    virtualSizeBytes: 1,
    createdAtMs: 1,
  };
  const value = encodeRecord(image);
  await here.stores.global.commit({ operations: [{ type: 'put', key: 'image/tiny/1', value }] });
  assert.equal((await create(here, 'web')).status, 202);
  assert.deepEqual(await regionsOf(here), []);
  const digest = `sha256:${'b'.repeat(64)}`;
  here.host.adoptImage = async () => ({ digest, sizeBytes: 1, virtualSizeBytes: 1 });
  await here.restart();
  assert.deepEqual(await regionsOf(here), ['local']);
  assert.equal(await remove(here), 'IMAGE_IN_USE');
  const later = await create(here, 'web-2', { name: 'tiny', version: '1' });
  assert.equal(later.json['vm']!['image']!['digest'], digest);
});
