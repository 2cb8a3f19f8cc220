/** This machine as one that runs VMs: what `porthole up` and `porthole host` share. */
import { existsSync, readFileSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { claimUids, Host, type HostLease, type ImageSource, leftOvers, type UidRange } from '../host/index.ts';
import type { Bgp } from '../network/index.ts';
import { copyPart, isReadableByAll } from '../parts/index.ts';
import { type AcceleratorFound, findAccelerator, findLauncher } from '../qemu/index.ts';
import type { Store } from '../store/index.ts';
import { readTls, type TlsFiles } from './tls-files.ts';

export interface MachineOptions {
  readonly stateDirectory: string;
  readonly runDirectory: string;
  /** Members may connect to the devices of VMs that others start. */
  readonly attachGid?: number | undefined;
  /** Metadata servers of VMs on tap devices are reached by HTTPS too. */
  readonly metadataTls?: TlsFiles | undefined;
  /** Of the libvirt whose domains attached VMs may name; `qemu:///system` unless given. */
  readonly libvirtUri?: string | undefined;
  /** How routes to its VMs get to other hosts; undefined: somebody else sees to that. */
  readonly bgp?: Bgp | undefined;
  /** VMs run as users of their own, whose uids start here, or where this machine has room; undefined: all as this user. */
  readonly uidBase?: number | 'free' | undefined;
  readonly auditDays: number;
  readonly auditBytes: number;
  /** Bytes a second that what one VM's guest writes may come to in the store; undefined: as fast as it can. */
  readonly guestWriteRate?: number | undefined;
  /** Replaces device processes and a keeper of another version that it finds. Default: it does. */
  readonly renews?: boolean;
  readonly version: string;
  readonly onTrouble: (vm: string | undefined, what: string) => void;
}

export interface MachineFacts {
  readonly accelerator: string;
  /** Why it is not KVM. */
  readonly acceleratorReason: string;
  readonly units: 'systemd' | 'session';
  readonly ownUsers: boolean;
}

export interface Machine {
  readonly facts: MachineFacts;
  /** The uids of its VMs, from now on; undefined: all run as this user. Error with words for people. */
  claim(): UidRange | undefined;
  /** After `claim`: who may read images, and the user who converts them. */
  readonly imageUsers: { readonly gid: number | undefined; readonly sandboxUid: number | undefined };
  /** After `claim`. Tells of what runs here and the store knows nothing of. StoreError. */
  open(region: Store, imageSource: ImageSource, as?: HostIdentity): Promise<Host>;
}

/** As a region has it. */
export interface HostIdentity {
  readonly name: string;
  readonly lease: HostLease;
}

/** uids of VMs that a host gives out at most. */
const uidCount = 50_000;

/** Both directories are there. Error with words for people. */
export const prepareMachine = async (options: MachineOptions): Promise<Machine> => {
  const { stateDirectory, runDirectory, uidBase, metadataTls, version, onTrouble } = options;
  const ownUsers = uidBase !== undefined;
  if (ownUsers) for (const directory of [stateDirectory, runDirectory]) mustBeReachable(directory);
  const [launcher, accelerator] = await Promise.all([findLauncher(), acceleratorOf(runDirectory, version)]);
  let uids: UidRange | undefined;
  return {
    facts: {
      accelerator: accelerator.accelerator,
      acceleratorReason: accelerator.reason,
      units: launcher.kind,
      ownUsers,
    },
    get imageUsers() {
      return imageUsersOf(uids);
    },
    claim: () => {
      if (ownUsers) uids = claimed(stateDirectory, uidBase === 'free' ? undefined : uidBase);
      return uids;
    },
    open: async (region, imageSource, as) => {
      for (const { vm, what } of await leftOvers(region, runDirectory)) onTrouble(vm, what);
      return Host.open({
        region,
        ...as,
        imageSource,
        stateDirectory,
        runDirectory,
        launcher,
        accelerator,
        imageGid: imageUsersOf(uids).gid,
        deviceRoot:
          ownUsers && !isReadableByAll('device') ? copyPart('device', join(stateDirectory, 'program')) : undefined,
        attachGid: options.attachGid,
        metadataTls: metadataTls && readTls(metadataTls),
        libvirtUri: options.libvirtUri,
        bgp: options.bgp,
        guestWriteRate: options.guestWriteRate,
        version,
        renews: options.renews ?? true,
        audit: { keepDays: options.auditDays, mostBytes: options.auditBytes },
        onTrouble,
      });
    },
  };
};

/** For VMs; behind them are the group of images, and the user who converts them. */
const claimed = (stateDirectory: string, first: number | undefined): UidRange => {
  const { first: from } = claimUids({ first, count: uidCount + 2, stateDirectory: realpathSync(stateDirectory) });
  return { first: from, count: uidCount };
};

const imageUsersOf = (uids: UidRange | undefined): Machine['imageUsers'] => ({
  gid: uids && uids.first + uids.count,
  sandboxUid: uids && uids.first + uids.count + 1,
});

const acceleratorRecord = z.object({
  accelerator: z.enum(['kvm', 'tcg']),
  reason: z.string(),
  groups: z.array(z.int().nonnegative()),
  version: z.string(),
});

/**
 * Found out by booting a guest, which takes a second or more, and remembered until the machine starts anew (and the run
 * directory is empty): a daemon that is started again is waited for.
 */
const acceleratorOf = async (runDirectory: string, version: string): Promise<AcceleratorFound> => {
  const file = join(runDirectory, 'accelerator.json');
  if (existsSync(file)) {
    const known = acceleratorRecord.safeParse(JSON.parse(readFileSync(file, 'utf8')));
    if (known.success && known.data.version === version) return known.data;
  }
  const found = await findAccelerator();
  writeFileSync(file, JSON.stringify({ ...found, version }), { mode: 0o600 });
  return found;
};

/** For users who are not this one: those of VMs, and who converts images. Error with words for people. */
export const mustBeReachable = (directory: string): void => {
  for (let at = directory; at !== dirname(at); at = dirname(at)) {
    if ((statSync(at).mode & 0o001) !== 0) continue;
    throw new Error(
      `VMs run, and images are converted, as users of their own, who cannot get to "${directory}": "${at}" may not be searched by all; give a directory elsewhere, or run: chmod o+x '${at}'`,
    );
  }
};
