import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ImageLibrary } from '../images/index.ts';
import type { BlobBytes, VmRecord } from '../records/index.ts';
import { ImageCache, type ImageSource } from './image-cache.ts';

const { signal } = new AbortController();
const kernelBytes = 3_000_000;

const vm = (name: string, digest: string): VmRecord =>
  ({ name, image: { name: 'tiny', version: '1', digest } }) as VmRecord;

/** A library with an image, as a host has it by way of others. */
const setUp = async (t: TestContext) => {
  const directory = mkdtempSync(join(tmpdir(), 'ph-cache-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const library = new ImageLibrary({ directory: join(directory, 'oci'), recipes: {} });
  t.after(() => library[Symbol.asyncDispose]());
  const bytes = randomBytes(kernelBytes);
  writeFileSync(join(directory, 'vmlinuz'), bytes);
  const { digest } = await library.addImage(
    {
      name: 'tiny',
      version: '1',
      source: { kind: 'kernel', kernel: { from: 'host', path: join(directory, 'vmlinuz') }, commandLine: 'quiet' },
    },
    { progress: () => {} },
  );
  /** Offsets of the kernel that were asked for. */
  const asked: number[] = [];
  const source: ImageSource = {
    blob: async ({ image }, blob, options) => {
      const found = await library.blob(image!, blob, options);
      if (found.sizeBytes === kernelBytes) asked.push(options.offset);
      return found;
    },
  };
  const images = join(directory, 'images');
  const open = (from: ImageSource): ImageCache => {
    const cache = new ImageCache({ directory: images }, from);
    t.after(() => cache.close());
    return cache;
  };
  return { directory, images, library, digest, bytes, asked, source, open };
};

const broken = (): Error => Object.assign(new Error('the connection ended'), { code: 'HOST_UNAVAILABLE' });

async function* breaking(bytes: AsyncIterable<Uint8Array>, after: number): AsyncGenerator<Uint8Array> {
  let done = 0;
  for await (const chunk of bytes) {
    yield chunk;
    done += chunk.length;
    if (done >= after) throw broken();
  }
}

test('ImageCache fetches an image once for many VMs, and drops it when none has it', async (t) => {
  const { images, digest, bytes, asked, source, open } = await setUp(t);
  const cache = open(source);
  const all = await Promise.all(['a', 'b', 'c'].map((name) => cache.of(vm(name, digest), signal)));
  assert.deepEqual(asked, [0]);
  const [image] = all;
  assert.ok(image?.kind === 'kernel' && image.commandLine === 'quiet');
  assert.ok(all.every((one) => one.path === image.path));
  assert.deepEqual(readFileSync(image.kernel), bytes);
  cache.keepOnly(new Set([digest]));
  assert.equal((await cache.of(vm('a', digest), signal)).path, image.path);
  cache.keepOnly(new Set());
  assert.deepEqual(readdirSync(images), ['coming']);
  await cache.of(vm('a', digest), signal);
  assert.deepEqual(asked, [0, 0]);
});

test('ImageCache goes on where a fetch broke off, over a restart too, and takes no other bytes', async (t) => {
  const { digest, bytes, asked, source, open } = await setUp(t);
  const first = open({
    blob: async (...args): Promise<BlobBytes> => {
      if (asked.length === 2) throw Object.assign(new Error('this host has no such VM'), { code: 'HOST_NOT_FOUND' });
      const { sizeBytes, bytes: whole } = await source.blob(...args);
      return { sizeBytes, bytes: sizeBytes === kernelBytes ? breaking(whole, 1_000_000) : whole };
    },
  });
  await assert.rejects(first.of(vm('a', digest), signal), { code: 'HOST_NOT_FOUND' });
  assert.ok(asked[0] === 0 && asked[1]! >= 1_000_000, `${asked}`);
  await first.close();

  const wrong = open({
    blob: async (...args) => {
      const { sizeBytes, bytes: whole } = await source.blob(...args);
      if (sizeBytes !== kernelBytes) return { sizeBytes, bytes: whole };
      return {
        sizeBytes,
        bytes: (async function* () {
          for await (const chunk of whole) yield new Uint8Array(chunk.length);
        })(),
      };
    },
  });
  await assert.rejects(wrong.of(vm('a', digest), signal), { code: 'HOST_INVALID' });
  assert.ok(asked[2]! >= 2_000_000, `${asked}`);

  const last = open(source);
  const image = await last.of(vm('a', digest), signal);
  assert.equal(asked[3], 0);
  assert.ok(image.kind === 'kernel' && readFileSync(image.kernel).equals(bytes));
});

test('ImageCache links files of this machine, and leaves no fetch to a VM that went', async (t) => {
  const { digest, library, source, open } = await setUp(t);
  const linking = open({ ...source, pathOf: (blob) => library.pathOf(blob) });
  const image = await linking.of(vm('a', digest), signal);
  assert.ok(image.kind === 'kernel' && statSync(image.kernel).nlink === 2);
  linking.keepOnly(new Set());

  const begun = Promise.withResolvers<void>();
  const gone = Promise.withResolvers<never>();
  const cache = open({
    blob: (of, ...args) => {
      if (of.name !== 'gone') return source.blob(of, ...args);
      begun.resolve();
      return gone.promise;
    },
  });
  const its = cache.of(vm('gone', digest), signal);
  await begun.promise;
  const others = cache.of(vm('others', digest), signal);
  gone.reject(Object.assign(new Error('there is no VM "gone"'), { code: 'HOST_NOT_FOUND' }));
  await assert.rejects(its, { code: 'HOST_NOT_FOUND' });
  assert.equal((await others).digest, digest);
});
