/** Boots the Debian image in QEMU and runs commands in it, as `Guest` does in the tiny one. For tests with systemd. */
import { Guest } from '../tiny/guest.ts';
import { debianImage } from './image.ts';

export interface DebianGuestOptions {
  /** Memory as QEMU writes it; `2G` unless given. */
  readonly memory?: string;
  /** Virtual CPUs; 2 unless given. */
  readonly cpus?: number;
  /** Directories of this machine, read-only at `/mnt/TAG`. */
  readonly shares?: readonly { readonly tag: string; readonly path: string }[];
  readonly signal?: AbortSignal;
}

/** Resolves once systemd says that the system is up; nothing that is written on its disk outlives it. */
export async function startDebian({
  memory = '2G',
  cpus = 2,
  shares = [],
  signal,
}: DebianGuestOptions = {}): Promise<Guest> {
  const image = await debianImage();
  const guest = await Guest.start({
    image,
    memory,
    cpus,
    shares,
    // Node's code is large.
    translatedMiB: 512,
    kernelArgs: ['rdinit=/debian-init', 'systemd.show_status=no', 'net.ifnames=0', 'selinux=0'],
    qemuArgs: ['-drive', `file=${image.disk},format=raw,if=virtio,snapshot=on`],
    bootTimeoutMs: 300_000,
    ...(signal !== undefined && { signal }),
  });
  try {
    await guest.run('systemctl is-system-running --wait', { timeoutMs: 300_000 });
    for (const { tag } of shares) {
      const options = 'trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose';
      await guest.sh(`mkdir -p /mnt/${tag} && mount -t 9p -o ${options} ${tag} /mnt/${tag}`);
    }
    return guest;
  } catch (error) {
    await guest[Symbol.asyncDispose]();
    throw error;
  }
}
