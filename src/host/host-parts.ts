/** What a host is given, and what of it all its VMs share. */
import type { Bgp, HostNetwork } from '../network/index.ts';
import type { Accelerator, Launcher } from '../qemu/index.ts';
import type { Store } from '../store/index.ts';
import type { AuditStore } from './audit-store.ts';
import type { DomainWatch } from './domain-watch.ts';
import type { HostLease } from './host-lease.ts';
import type { ImageCache, ImageSource } from './image-cache.ts';
import type { KeeperUnit } from './keeper-unit.ts';

/** What all VMs of a host share. */
export interface HostParts {
  readonly store: Store;
  readonly stateDirectory: string;
  readonly runDirectory: string;
  readonly launcher: Launcher;
  readonly accelerator: { readonly accelerator: Accelerator; readonly groups: readonly number[] };
  readonly images: ImageCache;
  /** The group that may read images; undefined where everything runs as this user. */
  readonly imageGid: number | undefined;
  readonly audit: AuditStore;
  /** The group that may connect to the devices of VMs that others start. */
  readonly attachGid: number | undefined;
  /** PEM. Metadata servers on tap devices are reached by HTTPS too. */
  readonly metadataTls?: { readonly cert: string; readonly key: string } | undefined;
  /** The libvirt of this host, for VMs that have a domain there. */
  readonly domains: DomainWatch;
  readonly keeper: KeeperUnit;
  readonly network: HostNetwork;
  /** Under which VMs run that may start elsewhere; undefined: none can here. */
  readonly lease?: HostLease | undefined;
  readonly version: string;
  /** What device processes run that are started now. */
  readonly deviceBuild: string;
  /** Where device processes find what they run; undefined: here. */
  readonly deviceRoot: URL | undefined;
  /** One of another version was found, and can be replaced. */
  readonly onOutdated: (vm: string) => void;
  readonly onTrouble: (vm: string, what: string) => void;
}

type Made =
  | 'audit'
  | 'images'
  | 'store'
  | 'domains'
  | 'keeper'
  | 'network'
  | 'deviceBuild'
  | 'onOutdated'
  | 'onTrouble';

export interface HostOptions extends Omit<HostParts, Made> {
  readonly region: Store;
  /** Device processes and a keeper of another version that are found are replaced, by and by. */
  readonly renews: boolean;
  readonly name?: string;
  readonly imageSource: ImageSource;
  readonly audit: { readonly keepDays: number; readonly mostBytes: number };
  /** Bytes a second that what one VM's guest writes may come to in the store; undefined: as fast as it can. */
  readonly guestWriteRate?: number | undefined;
  /** Of the libvirt whose domains attached VMs may name; `qemu:///system` unless given. */
  readonly libvirtUri?: string | undefined;
  /** How routes to its VMs get to other hosts. */
  readonly bgp?: Bgp | undefined;
  readonly onTrouble: (vm: string | undefined, what: string) => void;
}
