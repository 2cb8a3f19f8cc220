/** Images of two regions with a store and a place for images each, and one global store. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { pino } from 'pino';
import { Manager } from '../../src/cluster/index.ts';
import { entriesOf } from '../../src/cluster/kit.ts';
import { ImageLibrary } from '../../src/images/index.ts';
import { type BlobBytes, encodeRecord, type ImageDigest, type ImagePort } from '../../src/records/index.ts';
import type { Store } from '../../src/store/index.ts';
import { temporaryStore } from '../store/temporary.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import type { HttpAnswer } from './http.ts';

const tcp = { listen: { tcp: { host: '127.0.0.1', port: 0 } } } as const;

interface OfRegions {
  readonly here?: ImagePort;
  readonly eu?: ImagePort;
}

const regions = async (
  t: TestContext,
  images: OfRegions = {},
): Promise<{ readonly here: TestApi; readonly eu: TestApi }> => {
  const here = await startApi(t, { ...tcp, manager: { ...(images.here && { images: images.here }) } });
  const eu = await startApi(t, {
    ...tcp,
    manager: { regionName: 'eu', global: here.stores.global, ...(images.eu && { images: images.eu }) },
  });
  await here.ask({ method: 'PUT', path: '/v1/regions/eu', body: { addresses: [eu.server.url!] } });
  await here.ask({ method: 'PUT', path: '/v1/regions/local', body: { addresses: [here.server.url!] } });
  return { here, eu };
};

const begun = async (api: TestApi, path: string, body: object) => api.ask({ method: 'POST', path, body });

/** How an operation that was asked for ended. */
const endOf = async (api: TestApi, { status, headers, json: refusal }: HttpAnswer): Promise<string> => {
  if (status !== 202) return String(refusal['code']);
  return until('the end of the operation', async () => {
    const { json } = await api.ask({ path: String(headers['location']) });
    const { state, error } = json as unknown as { state: string; error?: { code: string } };
    return state === 'running' || state === 'pending' ? undefined : (error?.code ?? state);
  });
};

const ended = async (api: TestApi, path: string, body: object): Promise<string> =>
  endOf(api, await begun(api, path, body));

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

test('an account stays while images of its are on their way to a region, of which there are so many at once', async (t) => {
  const api = await startApi(t, tcp);
  await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'team' } });
  const made = await api.ask({
    method: 'POST',
    path: '/v1/keys',
    body: { name: 'k', role: 'admin', account: 'team' },
  });
  const key = String(made.json['text']);
  const going = Promise.withResolvers<void>();
  api.host.addImageWith = async (_, { signal }) => {
    signal?.addEventListener('abort', () => going.resolve());
    await going.promise;
    return { digest: `sha256:${'1'.repeat(64)}`, sizeBytes: 1, virtualSizeBytes: 1 };
  };
  const most = 32;
  const versions = Array.from({ length: most }, (_, n) => String(n + 1));
  const begin = (version: string) => {
    const body = { name: 'tiny', version, recipe: 'tiny' };
    return api.ask({ method: 'POST', path: '/v1/images', url: api.server.url!, key, body });
  };
  for (const begun of await Promise.all(versions.map(begin))) assert.equal(begun.status, 202, begun.text);
  assert.equal((await begin('more')).json['code'], 'TOO_MANY_REQUESTS');
  const gone = () => api.ask({ method: 'DELETE', path: '/v1/accounts/team' });
  const refused = await gone();
  assert.equal(refused.json?.['code'], 'IN_USE');
  assert.match(String(refused.json['detail']), /has 32 images on their way to the region "local"/);
  going.resolve();
  await until('their end', async () => (await gone()).text.includes('32 versions of images'));
  for (const version of versions) {
    const path = `/v1/images/tiny/${version}`;
    assert.equal((await api.ask({ method: 'DELETE', path, url: api.server.url!, key })).status, 204);
  }
  assert.equal((await gone()).status, 204);
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

/** By a manager without a server. Its answer's body is the operation's id. */
const addAt = (manager: Manager, region: Store) =>
  manager.images.add(
    'default',
    { name: 'tiny', version: '1', source: { kind: 'recipe', recipe: 'tiny' } },
    async (transaction) => (await region.commit(transaction)).committed,
    (operation) => ({ status: 202, headers: {}, body: operation.id }),
  );

/** A store whose leases are not kept alive while that is said. */
const forgetting = (store: Store, forgets: () => boolean): Store =>
  new Proxy(store, {
    get: (target, name: keyof Store) => {
      const member = target[name] as unknown;
      if (typeof member !== 'function') return member;
      if (name === 'keepAlive' && forgets()) return async () => {};
      return (...args: unknown[]): unknown => member.apply(target, args) as unknown;
    },
  });

test('what a manager is at is left to it by those that start, and ended by others when it is dead', async (t) => {
  const api = await startApi(t);
  const { stores, host } = api;
  const log = pino({ level: 'silent' });
  const open = (region: Store): Promise<Manager> =>
    Manager.open({ region, global: stores.global, host, images: host, log, takeoverSeconds: 1 });
  let isStuck = false;
  await using other = await open(forgetting(stores.region, () => isStuck));
  const going = Promise.withResolvers<void>();
  using ending = new DisposableStack();
  ending.defer(() => going.resolve());
  let isEnded = false;
  host.addImageWith = async (_, { signal }) => {
    signal?.addEventListener('abort', () => {
      isEnded = true;
    });
    await going.promise;
    return { digest: `sha256:${'1'.repeat(64)}`, sizeBytes: 1, virtualSizeBytes: 1 };
  };
  const { body: id } = await addAt(other, stores.region);
  const operation = () => api.ask({ path: `/v1/operations/${id}` });
  await (await open(stores.region)).close();
  assert.equal((await operation()).json['state'], 'running');
  isStuck = true;
  await until('another to end it', async () => String((await operation()).json['state']) === 'failed');
  assert.equal((await operation()).json['error']!['code'], 'UNAVAILABLE');
  // It was not dead, and comes too late.
  await until('it to be told', () => isEnded);
  going.resolve();
  await other.images.close();
  assert.equal((await operation()).json['state'], 'failed');
  assert.equal(await regionsOf(api), 404);
  assert.equal(await add(api), 'succeeded');
  assert.deepEqual((await entriesOf(stores.region, 'opening/')).entries, []);
});

test('an image that one manager brings is cancelled at another', async (t) => {
  const api = await startApi(t);
  const { stores, host } = api;
  const { region, global } = stores;
  const log = pino({ level: 'silent' });
  await using other = await Manager.open({ region, global, host, images: host, log });
  host.addImageWith = async (_, { signal }) =>
    new Promise((_, reject) => signal!.addEventListener('abort', () => reject(signal!.reason as Error)));
  const { body: id } = await addAt(other, stores.region);
  const path = `/v1/operations/${id}`;
  const cancel = { method: 'POST', path: `${path}/cancel` };
  assert.equal((await api.ask(cancel)).status, 202);
  await until('its end', async () => String((await api.ask({ path })).json['state']) === 'cancelled');
  const again = await api.ask(cancel);
  assert.equal(again.json['code'], 'WRONG_STATE');
  assert.deepEqual((await entriesOf(region, 'imagecancel/')).entries, []);
});

test('a manager that is closed before the work of an image has begun does not begin it', async (t) => {
  const api = await startApi(t);
  api.host.addImageWith = (_, { signal }) =>
    new Promise((_resolve, reject) => {
      const end = (): void => reject(signal!.reason);
      if (signal!.aborted) end();
      else signal!.addEventListener('abort', end);
    });
  const { json } = await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'slow', recipe: 'tiny' } });
  await api.restart();
  const { json: operation } = await api.ask({ path: `/v1/operations/${String(json['id'])}` });
  assert.equal(`${operation['state']}`, 'cancelled');
});

test('an image that is added anew while a late manager removes the one before it stays', async (t) => {
  const api = await startApi(t);
  const { stores, host } = api;
  const log = pino({ level: 'silent' });
  assert.equal(await add(api), 'succeeded');
  const late = Promise.withResolvers<void>();
  const slow: ImagePort = Object.create(host, {
    removeImage: {
      value: async (image: ImageDigest) => {
        await late.promise;
        await host.removeImage(image);
      },
    },
  });
  const { region, global } = stores;
  await using other = await Manager.open({ region, global, host, images: slow, log });
  const removing = other.images.remove('default', 'tiny', '1');
  await until('it to have begun', async () => (await region.get('imageremoval/tiny/1')) !== undefined);
  assert.equal(await remove(api), 'removed');
  const digest = `sha256:${'2'.repeat(64)}`;
  host.addImageWith = async () => ({ digest, sizeBytes: 1, virtualSizeBytes: 1 });
  assert.equal(await add(api), 'succeeded');
  late.resolve();
  await removing;
  assert.equal(host.images.get('tiny/1'), digest);
  assert.deepEqual(await regionsOf(api), ['local']);
  assert.equal((await create(api, 'web')).status, 202);
});

test('a manager starts where an image that a killed one had brought has lost its name to another', async (t) => {
  const api = await startApi(t);
  const { region, global } = api.stores;
  const image = { name: 'tiny', version: '1', sizeBytes: 1, virtualSizeBytes: 1, createdAtMs: 1 };
  const put = (key: string, record: object) => ({ type: 'put', key, value: encodeRecord(record) }) as const;
  const own = { ...image, account: 'default', digest: `sha256:${'a'.repeat(64)}`, regions: ['local'] };
  const others = { ...image, account: 'team', digest: own.digest, regions: ['eu'] };
  await region.commit({
    operations: [put('regionimage/tiny/1', own), put('imageadd/tiny/1', { operation: 'op-1' })],
  });
  await global.commit({ operations: [put('image/tiny/1', others)] });
  await api.restart();
  assert.equal(await region.get('regionimage/tiny/1'), undefined);
  assert.equal(await region.get('imageadd/tiny/1'), undefined);
  assert.equal(await regionsOf(api), 404, 'it is another account’s, which keeps it');
  assert.ok((await global.get('image/tiny/1')) !== undefined);
});

/** A library whose connections break after so many bytes, as often as is said, and whose bytes can be others. */
class Unsteady extends ImageLibrary {
  readonly offsets: number[] = [];
  breaks = 0;
  isFalse = false;

  override async blob(...[image, digest, options]: Parameters<ImageLibrary['blob']>): Promise<BlobBytes> {
    const { sizeBytes, bytes } = await super.blob(image, digest, options);
    if (sizeBytes < fileBytes) return { sizeBytes, bytes };
    this.offsets.push(options.offset);
    const breaks = this.breaks-- > 0;
    const { isFalse } = this;
    return {
      sizeBytes,
      bytes: (async function* () {
        let sent = 0;
        for await (const chunk of bytes) {
          yield isFalse ? new Uint8Array(chunk.length) : chunk;
          sent += chunk.length;
          if (breaks && sent > fileBytes / 4) throw new Error('the disk is broken');
        }
      })(),
    };
  }
}

const fileBytes = 4_000_000;

test('an image is copied between regions by digest, goes on where that broke off, and migrates with the source last', async (t) => {
  const { directory } = temporaryStore(t);
  const library = (name: string): Unsteady => {
    const made = new Unsteady({ directory: join(directory, name), recipes: {} });
    t.after(() => made[Symbol.asyncDispose]());
    return made;
  };
  const [source, target] = [library('here'), library('eu')];
  const { here, eu } = await regions(t, { here: source, eu: target });
  const bytes = randomBytes(fileBytes);
  const file = join(directory, 'vmlinuz');
  writeFileSync(file, bytes);
  const tiny = { name: 'tiny', version: '1', kernel: { kernel: { file } } };
  assert.equal(await ended(here, '/v1/images', tiny), 'succeeded');
  const digest = String((await here.ask({ path: '/v1/images/tiny/1' })).json['digest']);
  const copy = (api: TestApi, body: object = {}): Promise<string> => ended(api, '/v1/images/tiny/1/copy', body);
  assert.equal(await copy(here), 'WRONG_STATE');
  assert.equal(await copy(eu, { from: 'us' }), 'BAD_REQUEST');
  source.isFalse = true;
  assert.equal(await copy(eu), 'BAD_SPEC');
  assert.deepEqual(await regionsOf(eu), ['local']);
  source.isFalse = false;
  source.breaks = 2;
  source.offsets.length = 0;
  assert.equal(await copy(eu), 'succeeded');
  assert.equal(source.offsets.length, 3);
  assert.ok(source.offsets[1]! > 0 && source.offsets[2]! > source.offsets[1]!, `${source.offsets}`);
  assert.deepEqual(await regionsOf(eu), ['eu', 'local']);
  const there = await eu.ask({ path: `/v1/images/tiny/1/blobs/${digest}` });
  assert.equal(`sha256:${createHash('sha256').update(there.bytes).digest('hex')}`, digest);
  const { layers } = JSON.parse(there.text) as { layers: { digest: string }[] };
  const half = await eu.ask({ path: `/v1/images/tiny/1/blobs/${layers[0]!.digest}?offset=${fileBytes / 2}` });
  assert.deepEqual(half.bytes, bytes.subarray(fileBytes / 2));

  // Here it is used: both keep it, until it is not.
  assert.equal((await create(here, 'web')).status, 202);
  assert.equal(await copy(eu, { move: true }), 'IMAGE_IN_USE');
  assert.deepEqual(await regionsOf(here), ['eu', 'local']);
  await here.ask({ method: 'DELETE', path: '/v1/vms/web' });
  await until('the VM to be gone', async () => (await here.ask({ path: '/v1/vms/web' })).status === 404);
  assert.equal(await copy(eu, { move: true }), 'succeeded');
  assert.deepEqual(await regionsOf(here), ['eu']);
  assert.equal((await create(here, 'web')).status, 404);
  assert.equal((await create(eu, 'web')).status, 202);
  await assert.rejects(source.blob({ name: 'tiny', version: '1', digest }, digest, { offset: 0 }), {
    code: 'HOST_NOT_FOUND',
  });

  // A manager that ends in the middle leaves what came, and nothing else.
  target.breaks = 1;
  target.offsets.length = 0;
  const gone = Promise.withResolvers<void>();
  const { blob } = target;
  target.blob = async (...asked) => {
    if (target.offsets.length === 0 || asked[1] === digest) return blob.apply(target, asked);
    gone.resolve();
    throw Object.assign(new Error('the region is away'), { code: 'HOST_UNAVAILABLE' });
  };
  const ending = await begun(here, '/v1/images/tiny/1/copy', {});
  await gone.promise;
  await here.restart();
  assert.equal(await endOf(here, ending), 'CANCELLED');
  assert.deepEqual(await regionsOf(here), ['eu']);
  target.blob = blob;
  assert.equal(await copy(here), 'succeeded');
  assert.ok(target.offsets.at(-1)! > 0, `${target.offsets}`);
});

test('a region is forgotten when it has no images, or is lost with them', async (t) => {
  const { here, eu } = await regions(t);
  await add(eu, '1');
  await add(eu, '2');
  assert.equal(await ended(here, '/v1/images/tiny/1/copy', { from: 'eu' }), 'succeeded');
  const remove = async (query = ''): Promise<string> => {
    const { status, text } = await here.ask({ method: 'DELETE', path: `/v1/regions/eu${query}` });
    return `${status} ${text}`;
  };
  assert.match(
    await remove(),
    /^409 .*the region \\"eu\\" has 2 images \(tiny:1, tiny:2\); migrate or remove them first/,
  );
  await eu.ask({ method: 'POST', path: '/v1/vms', body: { name: 'web', kind: 'attached', count: 120 } });
  const counts = async (): Promise<string> => (await here.ask({ path: '/v1/counts' })).text;
  await until('the VMs to be counted', async () => (await counts()).includes('"count":120'));
  assert.match(
    await remove(),
    /^409 .*has 120 VMs; delete them first. If it is lost for ever: porthole region rm --lost eu/,
  );
  await eu.server.close();
  await eu.manager.close();
  const claim = { type: 'put', value: Buffer.from('{"region":"eu","operation":"op"}') } as const;
  await here.stores.global.commit({ operations: [{ ...claim, key: 'imageclaim/adding/1' }] });
  assert.match(await remove('?lost=true'), /^204/);
  assert.equal(await here.stores.global.get('imageclaim/adding/1'), undefined);
  assert.doesNotMatch(await counts(), /"eu"/);
  assert.deepEqual(await regionsOf(here), ['local']);
  assert.equal((await here.ask({ path: '/v1/images/tiny/2' })).status, 404, 'its name is free');
  assert.equal(await here.stores.global.get('outboxread/eu'), undefined);
});
