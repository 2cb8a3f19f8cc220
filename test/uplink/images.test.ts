/** Images over the uplink: a host gets those of its own VMs, and hears when to ask again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ImageBytes } from '../../src/records/index.ts';
import { until } from '../until.ts';
import { at, openRegion, vmRecord } from './region.ts';

const image = { name: 'tiny', version: '1', digest: `sha256:${'a'.repeat(64)}` };
const bytes = Buffer.alloc(3_000_000, 'image');

test('a host gets the images of its VMs and no others, and hears when its connection ended', async (t) => {
  const region = await openRegion(t);
  const asked: unknown[] = [];
  const images: ImageBytes = {
    blob: async (of, digest, { offset }) => {
      asked.push([of, digest, offset]);
      return {
        sizeBytes: bytes.length,
        bytes: (async function* () {
          for (let i = offset; i < bytes.length; i += 200_000) yield bytes.subarray(i, i + 200_000);
        })(),
      };
    },
  };
  const first = await region.manager({ images });
  const second = await region.manager({ images });
  const uplink = await region.uplink(await region.identity('h1', first), { managers: [at(first), at(second)] });
  await region.assign(vmRecord('its', 'h1', { image }));
  await region.assign(vmRecord('bare', 'h1'));
  await region.assign(vmRecord('others', 'h2', { image }));
  const read = async (vm: string, offset = 0): Promise<Buffer> => {
    const blob = await uplink.imageBlob(vm, image.digest, { offset });
    assert.equal(blob.sizeBytes, bytes.length);
    return Buffer.concat(await Array.fromAsync(blob.bytes));
  };
  assert.deepEqual(await read('its', 1_000_001), bytes.subarray(1_000_001));
  assert.deepEqual(asked, [[image, image.digest, 1_000_001]]);
  await assert.rejects(read('others'), { code: 'HOST_NOT_FOUND' });
  await assert.rejects(read('none'), { code: 'HOST_NOT_FOUND' });
  await assert.rejects(read('bare'), { code: 'HOST_NOT_FOUND' });
  assert.equal(asked.length, 1);

  const { bytes: coming } = await uplink.imageBlob('its', image.digest, { offset: 0 });
  let got = 0;
  await assert.rejects(
    async () => {
      for await (const chunk of coming) {
        if (got === 0) await Promise.all([first.close(), second.close()]);
        got += chunk.length;
      }
    },
    { code: 'HOST_UNAVAILABLE' },
  );
  assert.ok(got < bytes.length);
  await until('nobody to be there', () => uplink.store.lostAtMs !== undefined);
  await assert.rejects(read('its'), { code: 'HOST_UNAVAILABLE' });
});
