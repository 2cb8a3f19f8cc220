import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ImageStore } from '../qemu/index.ts';
import type { ImageRequest } from '../records/index.ts';
import { ImageLibrary } from './library.ts';

const sandboxUid = process.getuid?.() === 0 ? 700_131 : undefined;
const options = { progress: () => {} };

const temporary = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'ph-library-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  if (sandboxUid !== undefined) execFileSync('chmod', ['711', directory]);
  return directory;
};

const sha256 = (bytes: Uint8Array | string): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`;

const blobs = (directory: string): string[] => readdirSync(join(directory, 'oci/blobs/sha256')).toSorted();

const read = async (library: ImageLibrary, image: string, digest: string, offset = 0): Promise<Buffer> => {
  const { bytes } = await library.blob({ name: 'any', version: '1', digest: image }, digest, { offset });
  return Buffer.concat(await Array.fromAsync(bytes));
};

const kernel = (directory: string, text: string): ImageRequest['source'] => {
  writeFileSync(join(directory, text), text);
  return { kind: 'kernel', kernel: { from: 'host', path: join(directory, text) }, commandLine: 'quiet' };
};

test('ImageLibrary keeps an image as an OCI artifact when it is added, and nothing of it when it is removed', async (t) => {
  const directory = temporary(t);
  await using library = new ImageLibrary({ directory: join(directory, 'oci'), sandboxUid, recipes: {} });
  const source = kernel(directory, 'vmlinuz');
  const facts = await library.addImage({ name: 'tiny', version: '1', source }, options);
  const oci = (path: string) => JSON.parse(readFileSync(join(directory, 'oci', path), 'utf8'));
  assert.deepEqual(oci('oci-layout'), { imageLayoutVersion: '1.0.0' });
  const [entry] = oci('index.json').manifests;
  assert.equal(entry.digest, facts.digest);
  assert.equal(entry.annotations['org.opencontainers.image.ref.name'], 'tiny:1');
  const manifest = oci(`blobs/${facts.digest.replace(':', '/')}`);
  assert.equal(manifest.artifactType, 'application/vnd.porthole.image.kernel.v1');
  assert.equal(manifest.layers[0].digest, sha256('vmlinuz'));
  assert.deepEqual(oci(`blobs/${manifest.config.digest.replace(':', '/')}`), { kind: 'kernel', commandLine: 'quiet' });
  for (const hex of blobs(directory))
    assert.equal(sha256(readFileSync(join(directory, 'oci/blobs/sha256', hex))), `sha256:${hex}`);
  assert.equal((await read(library, facts.digest, manifest.layers[0].digest, 3)).toString(), 'inuz');

  // The same bytes under two names at once.
  const both = [1, 2].map((version) => library.addImage({ name: 'same', version: `${version}`, source }, options));
  assert.deepEqual(await Promise.all(both), [facts, facts]);
  await library.removeImage({ name: 'tiny', version: '1', digest: facts.digest });
  await library.removeImage({ name: 'same', version: '1', digest: facts.digest });
  assert.equal((await read(library, facts.digest, manifest.layers[0].digest)).toString(), 'vmlinuz');
  const other = await library.addImage({ name: 'other', version: '1', source: kernel(directory, 'other') }, options);
  await assert.rejects(read(library, other.digest, manifest.layers[0].digest), { code: 'HOST_NOT_FOUND' });
  await library.removeImage({ name: 'same', version: '2', digest: facts.digest });

  // Whoever comes late takes nothing from another that has the name by now.
  await assert.rejects(library.addImage({ name: 'other', version: '1', source }, options), {
    code: 'HOST_WRONG_STATE',
  });
  await library.removeImage({ name: 'other', version: '1', digest: facts.digest });
  assert.equal(await library.findImage({ name: 'other', version: '1' }), other.digest);
  for (let n = 0; n < 2; n++) await library.removeImage({ name: 'other', version: '1', digest: other.digest });
  assert.equal(await library.findImage({ name: 'other', version: '1' }), undefined);
  assert.deepEqual(blobs(directory), []);
  await assert.rejects(read(library, facts.digest, facts.digest), { code: 'HOST_NOT_FOUND' });
});

test('ImageLibrary refuses a qcow2 that refers to other files, and keeps a disk as a clean one', async (t) => {
  const directory = temporary(t);
  await using library = new ImageLibrary({ directory: join(directory, 'oci'), sandboxUid, recipes: {} });
  const disk = join(directory, 'disk.qcow2');
  const make = (...more: string[]): unknown =>
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...more, disk, '1M'], { stdio: 'pipe' });
  const add = () =>
    library.addImage(
      {
        name: 'disk',
        version: '1',
        source: { kind: 'disk', disk: { from: 'host', path: disk }, format: 'qcow2' },
      },
      options,
    );
  make('-u', '-b', '/etc/shadow', '-F', 'raw');
  await assert.rejects(add(), { code: 'HOST_INVALID', message: /\/etc\/shadow|backing/ });
  assert.deepEqual(blobs(directory), []);
  make();
  const { digest, virtualSizeBytes } = await add();
  assert.equal(virtualSizeBytes, 1024 ** 2);
  const { config, layers } = JSON.parse((await read(library, digest, digest)).toString());
  assert.deepEqual(JSON.parse((await read(library, digest, config.digest)).toString()), {
    kind: 'disk',
    virtualBytes: 1024 ** 2,
  });
  assert.equal(sha256(await read(library, digest, layers[0].digest)), layers[0].digest);
});

test('ImageLibrary takes up images of a host of before, and drops what a process that was killed left', async (t) => {
  const directory = temporary(t);
  const before = join(directory, 'images');
  const host = new ImageStore({ directory: before });
  writeFileSync(join(directory, 'vmlinuz'), 'vmlinuz');
  const old = await host.addKernel({ kernel: join(directory, 'vmlinuz'), commandLine: 'quiet' });
  const open = () => new ImageLibrary({ directory: join(directory, 'oci'), recipes: {}, before });
  {
    await using library = open();
    const facts = await library.adoptImage({ name: 'tiny', version: '1', digest: old.digest });
    const { layers } = JSON.parse((await read(library, facts!.digest, facts!.digest)).toString());
    assert.equal((await read(library, facts!.digest, layers[0].digest)).toString(), 'vmlinuz');
    assert.deepEqual(host.open(old.digest), old);
    assert.deepEqual(host.copies(), [old.digest]);
    assert.equal(await library.adoptImage({ name: 'x', version: '1', digest: sha256('x') }), undefined);
  }
  const stray = join(directory, 'oci/blobs/sha256', 'f'.repeat(64));
  writeFileSync(stray, 'stray');
  const kept = blobs(directory).filter((hex) => !stray.endsWith(hex));
  await using library = open();
  assert.ok(!existsSync(stray));
  assert.deepEqual(blobs(directory), kept);
  const digest = (await library.findImage({ name: 'tiny', version: '1' }))!;
  await library.removeImage({ name: 'tiny', version: '1', digest });
  assert.deepEqual(blobs(directory), []);
});

test('ImageLibrary shares its directory with another, which may be opened while it adds', async (t) => {
  const directory = temporary(t);
  const open = (makingName: string) => new ImageLibrary({ directory: join(directory, 'oci'), makingName, recipes: {} });
  await using first = open('making-1');
  const incoming = await first.openUpload('default', 7);
  const upload = await incoming.receive(
    (async function* () {
      yield Buffer.from('vmlinuz');
    })(),
  );
  await using second = open('making-2');
  const source = { kind: 'kernel', kernel: { from: 'upload', id: upload.id }, commandLine: '' } as const;
  const { digest } = await first.addImage({ name: 'tiny', version: '1', source }, options);
  const other = await second.addImage({ name: 'other', version: '1', source: kernel(directory, 'other') }, options);
  assert.equal((await read(second, digest, digest)).length, (await read(first, digest, digest)).length);
  await second.removeImage({ name: 'tiny', version: '1', digest });
  await assert.rejects(read(first, digest, digest), { code: 'HOST_NOT_FOUND' });
  await read(first, other.digest, other.digest);
});

test('ImageLibrary drops what is left of another that never came back, and nothing of one that lives', async (t) => {
  const directory = join(temporary(t), 'oci');
  const open = (makingName: string) => new ImageLibrary({ directory, makingName, recipes: {} });
  const age = (name: string, ms: number): void => {
    const making = join(directory, name);
    writeFileSync(join(making, 'left'), '');
    const at = new Date(Date.now() - ms);
    for (const path of readdirSync(making, { recursive: true, encoding: 'utf8' }))
      utimesSync(join(making, path), at, at);
  };
  const dayMs = 24 * 60 * 60_000;
  await using _ = open('making-lives');
  for (const name of ['making-gone', 'making-away']) await open(name)[Symbol.asyncDispose]();
  age('making-lives', 2 * dayMs);
  age('making-gone', 2 * dayMs);
  age('making-away', dayMs / 2);
  await open('making-own')[Symbol.asyncDispose]();
  assert.deepEqual(
    ['lives', 'gone', 'away', 'own'].filter((name) => existsSync(join(directory, `making-${name}`))),
    ['lives', 'away', 'own'],
  );
});

/** Bytes of a library, in pieces that others of the same fetch come between. */
const slowly = (library: ImageLibrary) => ({
  blob: async (...asked: Parameters<ImageLibrary['blob']>) => {
    const { sizeBytes, bytes } = await library.blob(...asked);
    return {
      sizeBytes,
      bytes: (async function* () {
        for await (const chunk of bytes)
          for (let at = 0; at < chunk.length; at += 1000) {
            yield chunk.subarray(at, at + 1000);
            await new Promise(setImmediate);
          }
      })(),
    };
  },
});

test('ImageLibrary copies the same bytes under two names at once', async (t) => {
  const directory = temporary(t);
  await using from = new ImageLibrary({ directory: join(directory, 'from'), recipes: {} });
  await using to = new ImageLibrary({ directory: join(directory, 'oci'), recipes: {} });
  const source = kernel(directory, 'vmlinuz');
  writeFileSync(join(directory, 'vmlinuz'), randomBytes(100_000));
  const { digest } = await from.addImage({ name: 'a', version: '1', source }, options);
  await Promise.all(['a', 'b'].map((name) => to.copyImage({ name, version: '1', digest }, slowly(from), options)));
  for (const hex of blobs(directory))
    assert.equal(sha256(readFileSync(join(directory, 'oci/blobs/sha256', hex))), `sha256:${hex}`);
});

test('ImageLibrary names no image of which a part went while the rest of it was copied', async (t) => {
  const directory = temporary(t);
  await using from = new ImageLibrary({ directory: join(directory, 'from'), recipes: {} });
  await using to = new ImageLibrary({ directory: join(directory, 'oci'), recipes: {} });
  const alone = await from.addImage({ name: 'a', version: '1', source: kernel(directory, 'vmlinuz') }, options);
  writeFileSync(join(directory, 'initrd'), 'initrd');
  const source = { ...kernel(directory, 'vmlinuz'), initrd: { from: 'host', path: join(directory, 'initrd') } };
  const { digest } = await from.addImage({ name: 'b', version: '1', source } as ImageRequest, options);
  await to.copyImage({ name: 'a', version: '1', digest: alone.digest }, from, options);
  let asked = 0;
  await to.copyImage(
    { name: 'b', version: '1', digest },
    {
      blob: async (image, blob, at) => {
        // After manifest and config: the kernel is there.
        if (++asked === 3) await to.removeImage({ name: 'a', version: '1', digest: alone.digest });
        return from.blob(image, blob, at);
      },
    },
    options,
  );
  const { layers } = JSON.parse((await read(to, digest, digest)).toString());
  for (const layer of layers) assert.equal(sha256(await read(to, digest, layer.digest)), layer.digest);
});
