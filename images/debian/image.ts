/**
 * The Debian guest's disk, and what boots it: builds them into `.cache/debian` unless they are there for the same inputs.
 * Run as a program it builds (holding a lock, so that any number of tests may ask at once) and prints the directory.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { type BootImage, tinyImage } from '../tiny/image.ts';
import { installDebian, run } from './mmdebstrap.ts';

const here = import.meta.dirname;
const tiny = path.join(here, '../tiny');
const cache = path.join(here, '../../.cache/debian');

/** Files that QEMU boots. The disk is raw and written by nobody: guests run on a snapshot of it. */
export interface DebianImage extends BootImage {
  readonly disk: string;
}

/** Packages beyond Debian's essential ones. QEMU: a guest starts VMs of its own. */
const packages = [
  'acl',
  'attr',
  'dbus',
  'iproute2',
  'kmod',
  // What dist/porthole needs of Debian.
  'libatomic1',
  'procps',
  'systemd-sysv',
  'udev',
  process.arch === 'arm64' ? 'qemu-system-arm' : 'qemu-system-x86',
  'qemu-utils',
];

/** Modules of the tiny guest's kernel that programs in this one may ask for, below `lib/modules/RELEASE/kernel`. */
const modulePatterns = [
  'arch/*/crypto/*',
  'arch/*/kvm/*',
  'crypto/*',
  'drivers/block/virtio_blk.ko*',
  'drivers/char/hw_random/*',
  'drivers/crypto/ccp/*',
  'drivers/block/loop.ko*',
  'drivers/char/virtio_console.ko*',
  'drivers/net/tun.ko*',
  'drivers/net/virtio_net.ko*',
  'drivers/vhost/*',
  'drivers/virtio/*',
  'fs/9p/*',
  'fs/ext4/*',
  'fs/fscache/*',
  'fs/fuse/*',
  'fs/jbd2/*',
  'fs/mbcache.ko*',
  'fs/netfs/*',
  'fs/overlayfs/*',
  'lib/*',
  'virt/*',
  'net/9p/*',
  'net/vmw_vsock/*',
];

/** What init needs to mount the disk. */
const bootModules = ['virtio_blk', 'ext4', 'crc32c_generic'];

/** Returns the image for this machine's architecture, building it first if its inputs changed. Building takes root. */
export async function debianImage(): Promise<DebianImage> {
  await tinyImage();
  const ready = await findImage();
  if (ready !== undefined) return ready;
  mkdirSync(cache, { recursive: true });
  await promisify(execFile)('flock', [path.join(cache, 'lock'), process.execPath, import.meta.filename]);
  const built = await findImage();
  if (built === undefined) throw new Error(`images/debian: the build left no image in ${cache}`);
  return built;
}

async function findImage(): Promise<DebianImage | undefined> {
  const { kernel, release } = await tinyImage();
  const dir = path.join(cache, await inputsHash());
  if (!existsSync(dir)) return undefined;
  return { dir, kernel, release, initramfs: path.join(dir, 'initramfs'), disk: path.join(dir, 'disk') };
}

async function inputsHash(): Promise<string> {
  const hash = createHash('sha256').update((await tinyImage()).dir);
  for (const file of ['image.ts', 'mmdebstrap.ts', 'init', 'control.service'])
    hash.update(readFileSync(path.join(here, file)));
  return hash.digest('hex').slice(0, 16);
}

async function build(): Promise<string> {
  const target = path.join(cache, await inputsHash());
  if (existsSync(target)) return target;
  if (process.getuid?.() !== 0) throw new Error('images/debian: building needs root, for the owners of the files');
  const work = mkdtempSync(path.join(cache, 'build-'));
  try {
    const out = path.join(work, 'out');
    const root = path.join(work, 'root');
    mkdirSync(out);
    installDebian(root, packages, ['/usr/share/doc/*', '/usr/share/locale/*', '/usr/share/man/*']);
    addKernelModules(root, (await tinyImage()).release);
    addControl(root);
    configure(root);
    await makeInitramfs(root, work, path.join(out, 'initramfs'));
    const disk = path.join(out, 'disk');
    run('mke2fs', ['-q', '-t', 'ext4', '-L', 'root', '-E', 'lazy_itable_init=1', '-d', root, disk, '4G']);
    renameSync(out, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return target;
}

function addKernelModules(root: string, release: string): void {
  const [deb] = globSync(path.join(tiny, `../../.cache/tiny/packages-${process.arch}/linux-image-*.deb`));
  if (deb === undefined) throw new Error("images/debian: the tiny guest's kernel package is gone; delete .cache/tiny");
  const unpack = 'deb=$1 root=$2; shift 2; dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --wildcards "$@"';
  const patterns = modulePatterns.map((pattern) => `./lib/modules/*/kernel/${pattern}`);
  const usr = path.join(root, 'usr');
  run('sh', ['-c', unpack, 'sh', deb, usr, './lib/modules/*/modules.*', ...patterns]);
  run('depmod', ['-b', root, release]);
}

/** The tiny guest's control service, which runs commands for the host, as a unit. */
function addControl(root: string): void {
  const flags = ['-static', '-O2', '-Wall', '-Wextra', '-Werror', '-D_GNU_SOURCE', '-s'];
  run('gcc', [...flags, '-o', path.join(root, 'usr/local/sbin/control'), path.join(tiny, 'control.c')]);
  copyFileSync(path.join(here, 'control.service'), path.join(root, 'etc/systemd/system/control.service'));
}

function configure(root: string): void {
  writeFileSync(path.join(root, 'etc/hostname'), 'debian\n');
  writeFileSync(path.join(root, 'etc/fstab'), '/dev/vda / ext4 defaults 0 1\n');
  // A root login on the console, without a password: nobody else reaches it.
  run('chroot', [root, 'passwd', '--delete', 'root']);
  const off = [
    'apt-daily.timer',
    'apt-daily-upgrade.timer',
    'dpkg-db-backup.timer',
    'e2scrub_all.timer',
    'fstrim.timer',
  ];
  run('systemctl', ['--root', root, 'mask', ...off, 'systemd-firstboot.service', 'e2scrub_reap.service']);
  run('systemctl', ['--root', root, 'enable', 'control.service']);
}

/** The tiny guest's, and behind it, in an archive of its own, an init that goes on to the disk. */
async function makeInitramfs(root: string, work: string, to: string): Promise<void> {
  const { release, initramfs } = await tinyImage();
  const more = path.join(work, 'initramfs');
  const order = new Set<string>();
  for (const module of bootModules) {
    const lines = run('modprobe', ['-d', root, '-S', release, '--show-depends', module]).split('\n');
    for (const line of lines) {
      const file = /^insmod (\S+)/.exec(line)?.[1];
      if (file !== undefined) order.add(path.relative(root, file));
    }
  }
  for (const file of order) {
    mkdirSync(path.join(more, path.dirname(file)), { recursive: true });
    copyFileSync(path.join(root, file), path.join(more, file));
  }
  mkdirSync(path.join(more, 'etc'));
  writeFileSync(path.join(more, 'etc/modules.disk'), [...order].map((file) => `/${file}\n`).join(''));
  copyFileSync(path.join(here, 'init'), path.join(more, 'debian-init'));
  chmodSync(path.join(more, 'debian-init'), 0o755);
  const names = run('find', ['.'], { cwd: more }).split('\n').filter(Boolean).toSorted().join('\n');
  const archive = path.join(work, 'archive');
  run('cpio', ['--quiet', '-o', '-H', 'newc', '--owner=0:0', '-F', archive], { cwd: more, input: names });
  copyFileSync(initramfs, to);
  appendFileSync(to, readFileSync(archive));
}

if (import.meta.main) {
  mkdirSync(cache, { recursive: true });
  console.log(await build());
}
