import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { ensureDisk } from './disks.ts';
import { QemuError, type QemuErrorCode } from './error.ts';
import { ImageStore } from './images.ts';

const sandboxUid = process.getuid?.() === 0 ? 700_200 : undefined;
const vmUid = process.getuid?.() === 0 ? 700_201 : undefined;

let dir: string;
let store: ImageStore;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'porthole-images-'));
  chmodSync(dir, 0o711);
  store = new ImageStore({ directory: join(dir, 'images'), sandboxUid, gid: sandboxUid });
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const qemuImg = (...args: string[]): string => execFileSync('qemu-img', args, { encoding: 'utf8' });
const fails = (code: QemuErrorCode, pattern: RegExp) => (error: unknown) =>
  error instanceof QemuError && error.code === code && pattern.test(error.message);

/** A raw disk of 1 MiB with a word in it. */
function rawDisk(word: string): string {
  const file = join(dir, `${word}.raw`);
  writeFileSync(file, word);
  truncateSync(file, 1024 * 1024);
  return file;
}

/** Without the notes of which have no name: whoever uses the store gives them. */
const stored = (): string[] =>
  readdirSync(join(dir, 'images'))
    .filter((name) => !name.endsWith('.unnamed'))
    .toSorted();

test('ImageStore rewrites a raw disk and a qcow2 as the same plain image, read-only', async () => {
  const raw = rawDisk('hello');
  const qcow2 = join(dir, 'hello.qcow2');
  qemuImg('convert', '-q', '-f', 'raw', '-O', 'qcow2', '-o', 'compat=0.10,cluster_size=4096', raw, qcow2);
  const steps = new Map<string, number>();
  const work = { onProgress: (step: string, done: number) => void steps.set(step, done) };
  const image = await store.addDisk({ file: qcow2, format: 'qcow2' }, work);
  const same = await store.addDisk({ file: raw, format: 'raw' });
  assert.deepEqual(same, image);
  assert.equal(image.virtualBytes, 1024 * 1024);
  const sum = execFileSync('sha256sum', [image.path], { encoding: 'utf8' }).slice(0, 64);
  assert.equal(image.digest, `sha256:${sum}`);
  assert.equal(image.path, join(dir, 'images', `sha256-${sum}.qcow2`));
  assert.equal(statSync(image.path).mode & 0o777, sandboxUid === undefined ? 0o400 : 0o440);
  assert.equal(statSync(image.path).uid, process.getuid?.());
  assert.equal(qemuImg('compare', '-f', 'raw', '-F', 'qcow2', raw, image.path), 'Images are identical.\n');
  assert.deepEqual(
    [...steps],
    [
      ['copying', 1],
      ['checking', 0],
      ['converting', 1],
      ['digesting', 1],
    ],
  );
  assert.deepEqual(stored(), [`sha256-${sum}.json`, `sha256-${sum}.qcow2`]);
  assert.deepEqual(store.open(image.digest), image);
  assert.deepEqual(store.list(), [image]);
  store.remove(image.digest);
  assert.deepEqual(stored(), []);
  assert.throws(
    () => store.open(image.digest),
    fails('IMAGE_MISSING', /no image "sha256:.*" is stored on this machine/),
  );
});

test('ImageStore refuses a qcow2 that would read a file of this machine', async () => {
  const secret = join(dir, 'secret');
  writeFileSync(secret, 'the secret of this machine'.padEnd(1024 * 1024));
  const hostile = join(dir, 'hostile.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', secret, hostile);
  // What it would have given away: qemu-img by itself follows the name.
  const stolen = join(dir, 'stolen');
  qemuImg('convert', '-f', 'qcow2', '-O', 'raw', hostile, stolen);
  assert.match(execFileSync('head', ['-c', '26', stolen], { encoding: 'utf8' }), /the secret of this machine/);

  const add = store.addDisk({ file: hostile, format: 'qcow2' });
  await assert.rejects(
    add,
    fails('IMAGE_REFUSED', new RegExp(`the image stands on another file, "${secret}"; through it`)),
  );
  qemuImg('create', '-q', '-u', '-f', 'qcow2', '-F', 'raw', '-b', '/etc/shadow', hostile, '1M');
  await assert.rejects(store.addDisk({ file: hostile, format: 'qcow2' }), fails('IMAGE_REFUSED', /"\/etc\/shadow"/));
  // Declared raw it is bytes, whatever they look like.
  truncateSync(hostile, 256 * 1024);
  const image = await store.addDisk({ file: hostile, format: 'raw' });
  assert.match(qemuImg('compare', '-f', 'raw', '-F', 'qcow2', hostile, image.path), /identical/);
  assert.equal(stored().length, 2);
});

test('ImageStore refuses what is no disk, and leaves nothing behind', async () => {
  const text = join(dir, 'text');
  writeFileSync(text, 'hello');
  await assert.rejects(store.addDisk({ file: text, format: 'qcow2' }), fails('IMAGE_REFUSED', /is no qcow2 image/));
  await assert.rejects(store.addDisk({ file: text, format: 'raw' }), fails('IMAGE_REFUSED', /5 bytes are no multiple/));
  await assert.rejects(store.addDisk({ file: dir, format: 'raw' }), fails('IMAGE_REFUSED', /is no regular file/));
  await assert.rejects(
    store.addDisk({ file: '/dev/zero', format: 'raw' }),
    fails('IMAGE_REFUSED', /is no regular file/),
  );
  await assert.rejects(
    store.addDisk({ file: join(dir, 'no'), format: 'raw' }),
    fails('IMAGE_REFUSED', /cannot be opened/),
  );
  // A good header over broken tables: found by qemu-img, in its sandbox.
  const broken = join(dir, 'broken.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', broken, '1G');
  execFileSync('dd', ['if=/dev/urandom', `of=${broken}`, 'bs=64k', 'seek=3', 'count=1', 'conv=notrunc', 'status=none']);
  await assert.rejects(
    store.addDisk({ file: broken, format: 'qcow2' }),
    fails('IMAGE_FAILED', /converting the image failed: qemu-img ended with status 1/),
  );
  assert.deepEqual(stored(), []);
});

test('ImageStore ends the conversion when it is aborted', async () => {
  const stop = new AbortController();
  const onProgress = (step: string): void => {
    if (step === 'converting') stop.abort(new Error('enough'));
  };
  const add = store.addDisk({ file: rawDisk('x'), format: 'raw' }, { signal: stop.signal, onProgress });
  await assert.rejects(add, /enough/);
  assert.deepEqual(stored(), []);
});

test('ImageStore finds out that an image was changed or is gone', async () => {
  const image = await store.addDisk({ file: rawDisk('x'), format: 'raw' });
  chmodSync(image.path, 0o600);
  appendFileSync(image.path, 'more');
  assert.throws(
    () => store.open(image.digest),
    fails('IMAGE_CHANGED', /was changed: .*; disks that stand on it may be broken/),
  );
  rmSync(image.path);
  assert.throws(() => store.open(image.digest), fails('IMAGE_MISSING', /the file of image ".*" is gone/));
  assert.deepEqual(await store.addDisk({ file: rawDisk('x'), format: 'raw' }), image);
  assert.deepEqual(store.open(image.digest), image);
});

test('ImageStore keeps a kernel with its initrd and command line, and what a recipe built', async () => {
  const recipe = join(dir, 'recipe.sh');
  const json = '{"kind":"kernel","kernel":"k","initrd":"i","commandLine":"quiet"}';
  writeFileSync(recipe, `printf kernel >"$1/k"; printf initrd >"$1/i"; printf '%s' '${json}' >"$1/image.json"`);
  const image = await store.build(['sh', recipe]);
  assert.ok(image.kind === 'kernel' && image.initrd !== undefined);
  assert.equal(image.commandLine, 'quiet');
  assert.equal(execFileSync('cat', [image.kernel, image.initrd], { encoding: 'utf8' }), 'kernelinitrd');
  writeFileSync(join(dir, 'k'), 'kernel');
  writeFileSync(join(dir, 'i'), 'initrd');
  const source = { kernel: join(dir, 'k'), initrd: join(dir, 'i'), commandLine: 'quiet' };
  assert.deepEqual(await store.addKernel(source), image);
  assert.notEqual((await store.addKernel({ ...source, commandLine: '' })).digest, image.digest);
  writeFileSync(recipe, 'echo no compiler >&2; exit 3');
  await assert.rejects(store.build(['sh', recipe]), fails('IMAGE_FAILED', /building the image failed: no compiler/));
  writeFileSync(recipe, `echo '{"kind":"disk","disk":"../../x","format":"raw"}' >"$1/image.json"`);
  await assert.rejects(store.build(['sh', recipe]), fails('IMAGE_FAILED', /image.json is wrong/));
});

test('ensureDisk makes an overlay, keeps what was written, and grows it only', async () => {
  const base = await store.addDisk({ file: rawDisk('hello'), format: 'raw' });
  const path = join(dir, 'disk.qcow2');
  const groups = sandboxUid === undefined ? [] : [sandboxUid];
  const disk = { path, base, uid: vmUid, groups };
  assert.equal(await ensureDisk(disk), 1024 * 1024);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  if (vmUid !== undefined) assert.equal(statSync(path).uid, vmUid);
  execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -P 0x61 4096 512', path]);
  assert.equal(await ensureDisk(disk), 1024 * 1024);
  assert.equal(await ensureDisk({ ...disk, sizeBytes: 4 * 1024 * 1024 }), 4 * 1024 * 1024);
  assert.equal(await ensureDisk(disk), 4 * 1024 * 1024, 'it stays as large as it was made');
  const check = execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'read -P 0x61 4096 512', '-c', 'read -P 0 1M 3M', path], {
    encoding: 'utf8',
  });
  assert.doesNotMatch(check, /Pattern verification failed/);
  const smaller = ensureDisk({ ...disk, sizeBytes: 2 * 1024 * 1024 });
  await assert.rejects(smaller, fails('DISK_INVALID', /has 4194304 bytes and cannot shrink to 2097152/));
  await assert.rejects(
    ensureDisk({ ...disk, path: `${path}2`, sizeBytes: 512 }),
    fails('DISK_INVALID', /cannot hold its image/),
  );
  await assert.rejects(
    ensureDisk({ path: `${path}2`, sizeBytes: 100 }),
    fails('DISK_INVALID', /cannot have 100 bytes/),
  );
  store.remove(base.digest);
  await assert.rejects(ensureDisk(disk), fails('IMAGE_MISSING', /the image of disk ".*" is gone/));
});

test('ensureDisk refuses a disk whose header was turned to another file', async () => {
  const path = join(dir, 'disk.qcow2');
  const base = await store.addDisk({ file: rawDisk('hello'), format: 'raw' });
  await ensureDisk({ path, base });
  qemuImg('rebase', '-u', '-f', 'qcow2', '-F', 'raw', '-b', '/etc/shadow', path);
  await assert.rejects(ensureDisk({ path, base }), fails('DISK_INVALID', /now names "\/etc\/shadow"; restore it/));
  await assert.rejects(ensureDisk({ path }), fails('DISK_INVALID', /cannot have undefined bytes/));
  await assert.rejects(ensureDisk({ path, sizeBytes: 2 ** 20 }), fails('DISK_INVALID', /it stands on another file/));
  rmSync(path);
  symlinkSync('/etc/shadow', path);
  await assert.rejects(ensureDisk({ path, base }), /ELOOP/);
});

test('ensureDisk and addDisk say that there is no room', async (t) => {
  const small = join(dir, 'small');
  mkdirSync(small);
  if (spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1M,mode=711', 'none', small]).status !== 0)
    return t.skip('mounting a small file system needs root');
  try {
    const full = new ImageStore({ directory: join(small, 'images'), sandboxUid });
    const add = full.addDisk({ file: rawDisk('x'), format: 'raw' });
    await assert.rejects(add, fails('DISK_FULL', /no room for the image in ".*"; free space there/));
    execFileSync('sh', ['-c', `head -c 2M /dev/zero >${small}/fill 2>/dev/null; true`]);
    const disk = ensureDisk({ path: join(small, 'disk.qcow2'), sizeBytes: 2 ** 30, uid: vmUid });
    await assert.rejects(disk, fails('DISK_FULL', /no room for disk/));
    assert.equal(existsSync(join(small, 'disk.qcow2')), false);
  } finally {
    execFileSync('umount', [small]);
  }
});
