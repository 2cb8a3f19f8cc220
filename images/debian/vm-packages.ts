/** The packages of the disk that `recipe.ts` makes, in a directory. */
import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { installDebian, run } from './mmdebstrap.ts';

/** What a machine has beyond Debian's essential packages. */
const packages = [
  'acl',
  'attr',
  'ca-certificates',
  // Makes the first partition as large as the disk.
  'cloud-guest-utils',
  'cloud-init',
  'curl',
  'dbus',
  'fdisk',
  'iproute2',
  'iputils-ping',
  'kmod',
  'less',
  // What our executables need of Debian.
  'libatomic1',
  'libpam-systemd',
  'linux-image-cloud-amd64',
  'nano',
  'openssh-server',
  'procps',
  'sudo',
  'systemd-resolved',
  'systemd-sysv',
  'udev',
  // The boot loader's code; nothing installs it onto a disk here.
  'grub-pc-bin',
  'grub-common',
];

/** `archive` keeps what comes of them for the next time. */
export function installPackages(root: string, archive: string | undefined): void {
  if (archive !== undefined && existsSync(archive)) {
    mkdirSync(root);
    run('tar', ['-xpf', archive, '--xattrs', '--numeric-owner', '-C', root]);
    return;
  }
  installDebian(root, packages);
  if (archive === undefined) return;
  run('tar', ['-cf', `${archive}.part`, '--xattrs', '--numeric-owner', '-C', root, '.']);
  renameSync(`${archive}.part`, archive);
}
