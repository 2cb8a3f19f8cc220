/**
 * The tiny guest's kernel and initramfs: builds them into `.cache/tiny` unless they are there for the same inputs.
 * Run as a program it builds (holding a lock, so that any number of tests may ask at once) and prints the directory.
 */
import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';

const here = import.meta.dirname;
const cache = join(here, '../../.cache/tiny');

/** Files that QEMU boots. */
export interface BootImage {
  readonly dir: string;
  readonly kernel: string;
  readonly initramfs: string;
  /** Release of the kernel, as `uname -r` prints it. */
  readonly release: string;
}

/** `vmlinuz` is the packaged kernel (for kexec), `kernel` the same one unpacked, which boots sooner. */
export interface TinyImage extends BootImage {
  readonly vmlinuz: string;
  /** Directory of the programs of `probe/`, which are static and run on this machine too. */
  readonly probes: string;
}

/** The package that depends on Debian's current generic kernel, by architecture. */
const kernelPackages: Readonly<Record<string, string>> = { x64: 'linux-image-amd64', arm64: 'linux-image-arm64' };

/** Source of the helper of mount(8) for 9P, from here. */
const mountHelper = '../../guest/mount.porthole.c';

/** Loaded before the control service starts, with what they depend on; the other modules load when a mount asks. */
const bootModules = ['virtio_pci', 'virtio_console', 'virtiofs'];

/** Directories and modules taken from the kernel package, as tar patterns below `lib/modules/RELEASE/kernel`. */
const modulePatterns = [
  'drivers/virtio/*',
  'drivers/char/virtio_console.ko*',
  'drivers/block/virtio_blk.ko*',
  'drivers/net/virtio_net.ko*',
  'drivers/net/net_failover.ko*',
  'drivers/net/veth.ko*',
  'net/core/failover.ko*',
  'drivers/acpi/button.ko*',
  'drivers/input/evdev.ko*',
  'drivers/misc/pvpanic/*',
  'drivers/char/hw_random/virtio-rng.ko*',
  'crypto/crc32c_generic.ko*',
  'lib/crc16.ko*',
  'fs/ext4/*',
  'fs/jbd2/*',
  'fs/mbcache.ko*',
  'fs/fuse/*',
  'fs/9p/*',
  'fs/netfs/*',
  'fs/fscache/*',
  'fs/overlayfs/*',
  'net/9p/*',
  'net/vmw_vsock/*',
];

/** Programs copied from this machine's Debian packages with the libraries they load; busybox does the rest. */
const programs = 'bash dash setpriv getfacl setfacl getfattr setfattr ls stat cat cp mv rm touch truncate tar'.split(
  ' ',
);

/** Returns the image for this machine's architecture, building it first if its inputs changed. */
export async function tinyImage(): Promise<TinyImage> {
  const ready = findImage();
  if (ready !== undefined) return ready;
  mkdirSync(cache, { recursive: true });
  await promisify(execFile)('flock', [join(cache, 'lock'), process.execPath, import.meta.filename]);
  const built = findImage();
  if (built === undefined) throw new Error(`images/tiny: the build left no image in ${cache}`);
  return built;
}

function findImage(): TinyImage | undefined {
  const kernelPackage = findPackages();
  if (kernelPackage === undefined) return undefined;
  const dir = join(cache, inputsHash(kernelPackage));
  if (!existsSync(dir)) return undefined;
  return {
    dir,
    kernel: join(dir, 'kernel'),
    vmlinuz: join(dir, 'vmlinuz'),
    initramfs: join(dir, 'initramfs'),
    probes: join(dir, 'probes'),
    release: readFileSync(join(dir, 'release'), 'utf8').trim(),
  };
}

/** The directory that holds the downloaded packages, unless they are still to be fetched. */
function findPackages(): string | undefined {
  const dir = join(cache, `packages-${process.arch}`);
  return existsSync(dir) ? dir : undefined;
}

function inputsHash(packages: string): string {
  const hash = createHash('sha256');
  for (const name of globSync('*.deb', { cwd: packages }).toSorted()) hash.update(`${name}\n`);
  const sources = globSync('{init,tiny-vm,*.c,*.h,image.ts,probe/*.c,probe/*.h}', { cwd: here }).toSorted();
  for (const name of [...sources, mountHelper]) {
    hash.update(`${name}\n`);
    hash.update(readFileSync(join(here, name)));
  }
  for (const path of ['/bin/busybox', ...programs.map(hostProgram)]) {
    const { size, mtimeMs } = statSync(path);
    hash.update(`${path} ${size} ${mtimeMs}\n`);
  }
  return hash.digest('hex').slice(0, 16);
}

function hostProgram(name: string): string {
  const found = ['/usr/bin', '/bin', '/usr/sbin', '/sbin']
    .map((dir) => join(dir, name))
    .find((path) => existsSync(path));
  if (found === undefined)
    throw new Error(`images/tiny: no program "${name}" on this machine; run sh scripts/install-debian test`);
  return realpathSync(found);
}

function run(command: string, args: readonly string[], options: { cwd?: string; input?: string } = {}): string {
  const result = spawnSync(command, args, { ...options, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (result.error) throw new Error(`images/tiny: starting ${command} failed: ${result.error.message}`);
  if (result.status !== 0) throw new Error(`images/tiny: ${command} ${args.join(' ')} failed:\n${result.stderr}`);
  return result.stdout;
}

/** Fetches the kernel once; delete the directory to move to a newer kernel. */
function fetchPackages(): string {
  const ready = findPackages();
  if (ready !== undefined) return ready;
  const kernelPackage = kernelPackages[process.arch];
  if (kernelPackage === undefined)
    throw new Error(`images/tiny: no kernel package known for architecture "${process.arch}"`);
  const partial = mkdtempSync(join(cache, 'fetch-'));
  const download = (): void => {
    const depends = run('apt-cache', ['depends', kernelPackage]);
    const real = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
    if (real === undefined) throw new Error(`images/tiny: ${kernelPackage} depends on no linux-image-*`);
    run('apt-get', ['download', '-qq', real], { cwd: partial });
  };
  try {
    download();
  } catch {
    run('apt-get', ['update']);
    download();
  }
  const dir = join(cache, `packages-${process.arch}`);
  renameSync(partial, dir);
  return dir;
}

function build(): string {
  const packages = fetchPackages();
  const target = join(cache, inputsHash(packages));
  if (existsSync(target)) return target;
  const work = mkdtempSync(join(cache, 'build-'));
  try {
    const out = join(work, 'out');
    const root = join(work, 'root');
    for (const dir of [
      'dev',
      'proc',
      'sys',
      'tmp',
      'run',
      'root',
      'mnt',
      'etc',
      'bin',
      'usr/bin',
      'usr/sbin',
      'lib64',
    ]) {
      mkdirSync(join(root, dir), { recursive: true });
    }
    mkdirSync(out);
    const release = unpackKernel(packages, root, out);
    addPrograms(root);
    compileSources(root, out);
    writeAccounts(root);
    listBootModules(root, release);
    copyFileSync(join(here, 'init'), join(root, 'init'));
    chmodSync(join(root, 'init'), 0o755);
    copyFileSync(join(here, 'tiny-vm'), join(root, 'usr/bin/tiny-vm'));
    chmodSync(join(root, 'usr/bin/tiny-vm'), 0o755);
    const names = run('find', ['.'], { cwd: root });
    const sorted = names.split('\n').filter(Boolean).toSorted().join('\n');
    run('cpio', ['--quiet', '-o', '-H', 'newc', '--owner=0:0', '--reproducible', '-F', join(out, 'initramfs')], {
      cwd: root,
      input: sorted,
    });
    writeFileSync(join(out, 'release'), `${release}\n`);
    renameSync(out, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return target;
}

/** Takes the kernel and the modules out of its package; returns the kernel's release. */
function unpackKernel(packages: string, root: string, out: string): string {
  const deb = only(join(packages, 'linux-image-*.deb'));
  const patterns = [
    './boot/vmlinuz-*',
    './lib/modules/*/modules.*',
    ...modulePatterns.map((p) => `./lib/modules/*/kernel/${p}`),
  ];
  run('sh', [
    '-c',
    'deb=$1 root=$2; shift 2; dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --wildcards "$@"',
    'sh',
    deb,
    root,
    ...patterns,
  ]);
  const vmlinuz = only(join(root, 'boot/vmlinuz-*'));
  const release = basename(vmlinuz).slice('vmlinuz-'.length);
  renameSync(vmlinuz, join(out, 'vmlinuz'));
  rmSync(join(root, 'boot'), { recursive: true });
  run('depmod', ['-b', root, release]);
  writeFileSync(join(out, 'kernel'), unpackedKernel(join(out, 'vmlinuz')));
  return release;
}

/**
 * The kernel proper inside a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length), so
 * that QEMU enters it by PVH and no emulated CPU has to decompress it; what is no bzImage (arm64) is returned as it is.
 */
function unpackedKernel(path: string): Buffer {
  const image = readFileSync(path);
  if (image.toString('latin1', 0x202, 0x206) !== 'HdrS') return image;
  const start = ((image[0x1f1] ?? 0) + 1) * 512 + image.readUInt32LE(0x248);
  const payload = image.subarray(start, start + image.readUInt32LE(0x24c) - 4);
  const tool = { fd37: 'xz', '28b5': 'zstd', '1f8b': 'gzip' }[payload.toString('hex', 0, 2)];
  if (tool === undefined)
    throw new Error(`images/tiny: unknown compression in ${path}: ${payload.toString('hex', 0, 6)}`);
  const result = spawnSync(tool, ['-dc'], { input: payload, maxBuffer: 1 << 28 });
  if (result.status !== 0) throw new Error(`images/tiny: ${tool} failed on ${path}: ${result.stderr.toString()}`);
  return result.stdout;
}

function addPrograms(root: string): void {
  addProgram(root, '/bin/busybox', 'bin/busybox');
  for (const applet of run('/bin/busybox', ['--list']).split('\n').filter(Boolean)) {
    if (applet !== 'busybox' && applet !== 'sh') symlinkSync('busybox', join(root, 'bin', applet));
  }
  for (const name of programs) addProgram(root, hostProgram(name), `usr/bin/${name}`);
  symlinkSync('/usr/bin/dash', join(root, 'bin/sh'));
  mkdirSync(join(root, 'sbin'));
  symlinkSync('/bin/modprobe', join(root, 'sbin/modprobe'));
}

/** Copies a program and the libraries that the loader finds for it, each to the path where the loader looks. */
function addProgram(root: string, from: string, to: string): void {
  copyFileSync(from, join(root, to));
  chmodSync(join(root, to), 0o755);
  const { stdout, status } = spawnSync('ldd', [from], { encoding: 'utf8' });
  if (status !== 0) return;
  for (const [, path] of stdout.matchAll(/(\/\S+) \(0x/g)) {
    if (path === undefined || existsSync(join(root, path))) continue;
    mkdirSync(dirname(join(root, path)), { recursive: true });
    copyFileSync(path, join(root, path));
    chmodSync(join(root, path), 0o755);
  }
}

function compileSources(root: string, out: string): void {
  const probes = join(out, 'probes');
  mkdirSync(probes);
  const compile = (source: string, to: string): void => {
    const flags = ['-static', '-O2', '-Wall', '-Wextra', '-Werror', '-D_GNU_SOURCE', '-s'];
    run('gcc', [...flags, '-o', join(to, basename(source, '.c')), join(here, source)]);
  };
  for (const source of globSync('*.c', { cwd: here })) compile(source, join(root, 'usr/bin'));
  compile(mountHelper, join(root, 'sbin'));
  for (const source of globSync('probe/*.c', { cwd: here })) compile(source, probes);
  cpSync(probes, join(root, 'usr/bin'), { recursive: true });
}

function writeAccounts(root: string): void {
  const users = { root: 0, postgres: 114, app: 1000, alice: 1001, bob: 1002 };
  const lines = Object.entries(users).map(([name, id]) => ({
    passwd: `${name}:x:${id}:${id}::${id === 0 ? '/root' : '/tmp'}:/bin/sh\n`,
    group: `${name}:x:${id}:\n`,
  }));
  writeFileSync(join(root, 'etc/passwd'), lines.map((line) => line.passwd).join(''));
  writeFileSync(join(root, 'etc/group'), `${lines.map((line) => line.group).join('')}ssl-cert:x:115:app\n`);
}

/** Writes what init loads, in the order in which modules need each other. */
function listBootModules(root: string, release: string): void {
  const order = new Set<string>();
  for (const module of bootModules) {
    const lines = run('modprobe', ['-d', root, '-S', release, '--show-depends', module]).split('\n');
    for (const line of lines) {
      const path = /^insmod (\S+)/.exec(line)?.[1];
      if (path !== undefined) order.add(path.slice(root.length));
    }
  }
  writeFileSync(join(root, 'etc/modules.boot'), `${[...order].join('\n')}\n`);
}

function only(pattern: string): string {
  const found = globSync(pattern);
  const [first] = found;
  if (found.length !== 1 || first === undefined)
    throw new Error(`images/tiny: ${found.length} files match ${pattern}, not one`);
  return first;
}

if (import.meta.main) {
  mkdirSync(cache, { recursive: true });
  console.log(build());
}
