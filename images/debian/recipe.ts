/**
 * `porthole image build debian`: a Debian disk that boots by itself, with the metadata mounted, and made into a machine by
 * cloud-init and that metadata. Run as `node images/debian/recipe.ts DIRECTORY` it leaves `disk.qcow2` there. Building takes
 * root, and some minutes. PORTHOLE_DEBIAN_PACKAGES names an archive in which what comes of the packages is kept for the next
 * time: for tests, an image should have new ones.
 */
import {
  chmodSync,
  closeSync,
  copyFileSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import { run } from './mmdebstrap.ts';
import { installPackages } from './vm-packages.ts';

const files = path.join(import.meta.dirname, 'vm');
const checkout = path.join(import.meta.dirname, '../..');

const sector = 512;
/** Where the one partition begins; before it is room for the boot loader. */
const partitionSector = 2048;
/** A disk made from it may be larger. */
const diskMiB = 8 * 1024;
const grubModules = 'biosdisk part_msdos ext2 normal linux configfile search search_label serial terminal echo'.split(
  ' ',
);

function build(directory: string): void {
  if (process.arch !== 'x64') throw new Error('images/debian: there is a boot loader for x86-64 only');
  if (process.getuid?.() !== 0) throw new Error('images/debian: building needs root, for the owners of the files');
  const work = mkdtempSync(path.join(directory, 'work-'));
  try {
    const root = path.join(work, 'root');
    installPackages(root, process.env['PORTHOLE_DEBIAN_PACKAGES']);
    configure(root);
    addAgent(root, work);
    const disk = path.join(work, 'disk');
    const offset = partitionSector * sector;
    makeBootable(root, disk);
    const options = ['-E', `offset=${offset},lazy_itable_init=1`, '-d', root, disk, `${diskMiB - offset / 1024 ** 2}M`];
    run('mke2fs', ['-q', '-F', '-t', 'ext4', '-L', 'root', ...options]);
    run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', disk, path.join(directory, 'disk.qcow2')]);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  const image = { kind: 'disk', disk: 'disk.qcow2', format: 'qcow2' };
  writeFileSync(path.join(directory, 'image.json'), JSON.stringify(image));
}

function install(file: string, to: string, mode = 0o644): void {
  mkdirSync(path.dirname(to), { recursive: true });
  copyFileSync(file, to);
  chmodSync(to, mode);
}

function configure(root: string): void {
  const inRoot = (name: string): string => path.join(root, name);
  const put = (file: string, to: string): void => install(path.join(files, file), inRoot(to));
  writeFileSync(inRoot('etc/hostname'), 'debian\n');
  writeFileSync(inRoot('etc/fstab'), 'LABEL=root / ext4 defaults 0 1\n');
  // Made anew by each machine.
  writeFileSync(inRoot('etc/machine-id'), '');
  for (const unit of readdirSync(files).filter((name) => /\.(mount|service)$/.test(name))) {
    put(unit, `etc/systemd/system/${unit}`);
    run('systemctl', ['--root', root, 'enable', unit]);
  }
  put('ethernet.network', 'etc/systemd/network/ethernet.network');
  put('wait-online.conf', 'etc/systemd/system/systemd-networkd-wait-online.service.d/porthole.conf');
  put('after-metadata.conf', 'etc/systemd/system/cloud-init-local.service.d/porthole.conf');
  put('cloud.cfg', 'etc/cloud/cloud.cfg.d/90_porthole.cfg');
  put('ds-identify.cfg', 'etc/cloud/ds-identify.cfg');
  mkdirSync(inRoot('var/lib/cloud/seed'), { recursive: true });
  symlinkSync('/run/metadata/cloud-init', inRoot('var/lib/cloud/seed/nocloud'));
  // Each machine has its own, which cloud-init makes.
  for (const key of globSync('etc/ssh/ssh_host_*', { cwd: root })) rmSync(inRoot(key));
  run('systemctl', ['--root', root, 'enable', 'systemd-networkd', 'systemd-resolved']);
  // It looks for LVM's snapshots, of which there are none.
  run('systemctl', ['--root', root, 'mask', 'e2scrub_reap.service']);
  rmSync(inRoot('etc/resolv.conf'), { force: true });
  symlinkSync('../run/systemd/resolve/stub-resolv.conf', inRoot('etc/resolv.conf'));
  // Root is logged in on the console, which only operators reach; with an empty password everybody's su(1) would be root's.
  put('autologin.conf', 'etc/systemd/system/serial-getty@.service.d/porthole.conf');
  run('chroot', [root, 'passwd', '--quiet', '--lock', 'root']);
  put('grub.cfg', 'boot/grub/grub.cfg');
}

/** The agent as this checkout has it, for machines without a device for the metadata. */
function addAgent(root: string, work: string): void {
  const built = path.join(work, 'dist');
  run(process.execPath, [path.join(checkout, 'scripts/build.ts'), '--output', built]);
  const unit = path.join(root, 'etc/systemd/system/porthole-agent.service');
  install(path.join(built, 'porthole-agent'), path.join(root, 'usr/bin/porthole-agent'), 0o755);
  install(path.join(checkout, 'systemd/porthole-agent.service'), unit);
  install(path.join(files, 'agent.conf'), `${unit}.d/porthole.conf`);
  install(path.join(files, 'find-server'), path.join(root, 'usr/lib/porthole/find-server'), 0o755);
  run('systemctl', ['--root', root, 'enable', 'porthole-agent.service']);
}

/** Writes a disk's first sectors: GRUB's boot sector, the table with one partition, GRUB itself. Takes its tools from `root`. */
function makeBootable(root: string, disk: string): void {
  const grub = 'usr/lib/grub/i386-pc';
  const prefix = '(hd0,msdos1)/boot/grub';
  run('chroot', [root, 'grub-mkimage', '-O', 'i386-pc', '-o', '/core.img', '-p', prefix, ...grubModules]);
  const core = readFileSync(path.join(root, 'core.img'));
  rmSync(path.join(root, 'core.img'));
  if (core.length > (partitionSector - 1) * sector) throw new Error('images/debian: GRUB is too large for its place');
  const first = Buffer.alloc(sector);
  // The rest of it is the disk's signature and the table. GRUB's own default is that its next part begins in sector 1.
  readFileSync(path.join(root, grub, 'boot.img')).copy(first, 0, 0, 440);
  first.set([0x80, 0xff, 0xff, 0xff, 0x83, 0xff, 0xff, 0xff], 446);
  first.writeUInt32LE(partitionSector, 454);
  first.writeUInt32LE((diskMiB * 1024 * 1024) / sector - partitionSector, 458);
  first.writeUInt16LE(0xaa55, 510);
  const fd = openSync(disk, 'wx', 0o600);
  writeSync(fd, first, 0, first.length, 0);
  writeSync(fd, core, 0, core.length, sector);
  closeSync(fd);
}

const [, , directory] = process.argv;
if (directory === undefined) throw new Error('usage: node images/debian/recipe.ts DIRECTORY');
build(directory);
