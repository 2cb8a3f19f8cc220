/**
 * What managers and hosts tell each other through the region's store, and what managers keep in the global one. Values
 * are JSON. A record is decoded by its schema; keys that a newer version wrote are kept, so that an older one that writes
 * the record again loses nothing.
 *
 * | store | key | written by | holds |
 * |---|---|---|---|
 * | region | `vm/NAME` | managers | `VmRecord`: what is wished for |
 * | region | `seed/NAME` | managers | the spec of the VM's first tree, as text; the host loads it before the first boot, and removes it |
 * | region | `vmstatus/NAME` | the host | `VmStatusRecord`: what is |
 * | region | `boot/NAME/N` | the host | `BootRecord`, N with 10 digits |
 * | region | `token/NAME` | the host | `TokenKept`: this boot's token of the metadata server, as a hash, and the boot's secret; removed with the VM |
 * | region | `indexed/NAME` | managers | under which keys the global store knows the VM |
 * | region | `uid/N`, `hostuid/HOST/N`, `imageuse/NAME/VERSION/VM`, `imageremoval/NAME/VERSION` | managers | who has it; `uid/N` of the host of `porthole up` |
 * | region | `host/NAME` | managers | `HostRecord`: a host, and whether VMs may be placed there |
 * | region | `hostlive/NAME` | the manager that the host is connected to | `HostLiveRecord`, under a lease: who has none is not given VMs |
 * | region | `hostuse/NAME` | managers | `HostUseRecord`: what is taken of it; changed in the transactions that make and free its VMs |
 * | region | `hostvm/HOST/VM` | managers | `HostVmRecord`: which VMs are assigned to it |
 * | region | `hostlease/HOST` | the manager that the host is connected to | `HostLeaseRecord`, under the lease that it says: who has none has no VM running that may start elsewhere |
 * | region | `hostlost/HOST` | managers | `HostLostRecord`: its lease had run out; goes in the transaction that grants it another |
 * | region | `lostvm/HOST/VM` | managers | which VMs say that they are lost with it |
 * | region | `hostleft/HOST/VM` | managers; the host removes it | `HostLeftRecord`: a VM that was taken from it, all of which it deletes |
 * | region | `authority` | managers | certificate and key that sign those of hosts and managers (`src/uplink`) |
 * | region | `hosttoken/ID` | managers | a key with which a host enrols |
 * | region | `drain/HOST` | managers | `DrainRecord`: it is being emptied |
 * | region | `storage` | the manager that has the region's network disks | `StorageRecord`: that there are some, and which |
 * | region | `diskexport/NAME` | that manager | `DiskExportRecord`: where the VM's network disk is, for which epoch; there as long as the disk is |
 * | region | `hostmark/HOST/SLOT` | managers, for the host | which of its commits was the last in a slot |
 * | region | `apart/GROUP/HOST` | managers | the VM that wants no other of its account, with the same label, beside it; GROUP is a hash of these |
 * | region | `tree/VMID/…` | the host | the tree |
 * | region | `operation/ID`, `idempotency/…`, `outbox/…`, `rotation` | managers | |
 * | region | `batch/ID`, `batchitem/ID/VM` | managers | `BatchRecord`, `BatchItemRecord`: a request about many VMs |
 * | region | `batchcancel/ID` | managers | that no more of its VMs are to be asked for |
 * | region | `batchrun/ID` | managers | which of them sees to it, under a lease: another takes over |
 * | region | `opening/KIND/ACCOUNT/N` | managers | the operation that is one of so many of an account at once |
 * | region | `account/NAME` | managers | `AccountRecord`, as the global store has it |
 * | region | `key/ID` | managers | `KeyCopyRecord`: the key as the global store has it, or that it was revoked |
 * | region | `session/HASH` | managers | `SessionRecord`: a page of the console that is signed in; HASH is SHA-256 of its id, in hex |
 * | region | `slot/ACCOUNT/TYPE/N` | managers | the VM that takes this one of an account's VMs of the type |
 * | region | `regionimage/NAME/VERSION` | managers | `ImageRecord`: the region has its bytes, as `ImagePort` has them |
 * | region | `imageadd/NAME/VERSION` | managers | `ImageAddRecord`: the operation that brings it to the region |
 * | region | `imagerun/NAME/VERSION` | managers | that one of them is at it, under a lease: another ends what it leaves |
 * | region | `imagecancel/ID` | managers | that the operation which brings an image is to end, wherever it runs |
 * | global | `imageclaim/NAME/VERSION` | managers | the region and the operation that are about to add it |
 * | region | `prefixes` | managers | `PrefixesRecord`: which addresses the region has to give |
 * | region | `address/ipv4/HEX`, `address/ipv6/HEX`, `address/udp/HEX/PORT` | managers | the VM that has it, or had it until lately: then under a lease |
 * | global | `key/ID`, `image/NAME/VERSION`, `index/vm/…`, `outboxread/REGION` | managers | |
 * | global | `account/NAME`, `region/NAME` | managers | `AccountRecord`, `RegionRecord` |
 * | global | `leaving/ACCOUNT/REGION` | managers of that region | `LeavingRecord`: what it has of an account that is to be deleted |
 *
 * **A host's side of it.** It acts on `vm/` as it stands, whatever it missed in between, and writes the `generation` that
 * it has acted on into `vmstatus/` together with how that went. A `desired` of `deleted`: it stops the VM, removes disks,
 * tree and all else it has, and writes the status `deleted`; then the manager removes every record.
 */
import { z } from 'zod';

/** A DNS label: it is part of paths, socket names and unit names. */
export const vmNamePattern = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** `lost`: managers say so of one whose host was not heard of for as long as its lease. */
export const vmStatuses = [
  'creating',
  'starting',
  'running',
  'stopping',
  'stopped',
  'failed',
  'lost',
  'compromised',
] as const;
export type VmStatus = (typeof vmStatuses)[number];

/** Of the last year with four digits: what is later has no time in words, and nobody means it. */
export const latestMs = 253_402_300_799_999;
const millis = z.int().nonnegative().max(latestMs);
const vmName = z.string().regex(vmNamePattern);
const vmId = z.string().regex(/^i-[0-9a-f]{17}$/);

/** Sizes that a VM can have. `attached` has none: others start it. */
export const vmTypes = {
  nano: { vcpus: 1, memoryMiB: 256 },
  micro: { vcpus: 1, memoryMiB: 512 },
  small: { vcpus: 1, memoryMiB: 1024 },
  medium: { vcpus: 2, memoryMiB: 2048 },
  large: { vcpus: 2, memoryMiB: 4096 },
  xlarge: { vcpus: 4, memoryMiB: 8192 },
} as const;
export type VmType = keyof typeof vmTypes;

export const PortForward = z.looseObject({
  protocol: z.enum(['tcp', 'udp']),
  hostAddress: z.string(),
  hostPort: z.int().min(1).max(65535),
  guestPort: z.int().min(1).max(65535),
});

export const Network = z.discriminatedUnion('mode', [
  z.looseObject({ mode: z.literal('none') }),
  /** `isolated`: nothing gets out but answers through the forwards. */
  z.looseObject({ mode: z.literal('user'), forwards: z.array(PortForward), isolated: z.boolean().optional() }),
  /** A tap device of this name that exists. */
  z.looseObject({ mode: z.literal('tap'), device: z.string() }),
  /** A tap device of its own with addresses of the region; `udpPorts`: how many ports of the region's shared address. */
  z.looseObject({ mode: z.literal('routed'), udpPorts: z.int().nonnegative().optional() }),
]);

/** Which addresses a region has for its VMs. */
export const PrefixesRecord = z.looseObject({
  /** As `10.20.0.0/16`, `fd00:20::/64`. */
  ipv4: z.array(z.string()),
  ipv6: z.array(z.string()),
  /** Ports of one address that all VMs share. */
  udp: z.looseObject({ address: z.string(), first: z.int(), last: z.int() }).optional(),
  /** Resolvers that VMs are told of. */
  dns: z.array(z.string()),
});
export type PrefixesRecord = z.infer<typeof PrefixesRecord>;

/** What a VM was given of them with its creation. */
export const AddressesRecord = z.looseObject({
  ipv4: z.string().optional(),
  ipv6: z.string().optional(),
  udp: z.looseObject({ address: z.string(), ports: z.array(z.int()) }).optional(),
  dns: z.array(z.string()),
  /** Keys of the region's store that say so. */
  keys: z.array(z.string()),
});
export type AddressesRecord = z.infer<typeof AddressesRecord>;

export const metadataWays = ['network', 'vsock', 'serial', 'socket'] as const;

/** Whose APIs a metadata server speaks: `facadeNames` of `src/imds`. */
export const metadataClouds = ['ec2', 'gce', 'openstack', 'nocloud'] as const;

/** The HTTP server for a VM's sole use. */
export const MetadataServerRecord = z.looseObject({
  /**
   * How its guest reaches it: `network`, 169.254.169.254 port 80 on its network; `vsock`, port 80 of CID 2; `serial`, the
   * virtio-serial port org.porthole.metadata; `socket`, unix sockets for relays.
   */
  ways: z.array(z.enum(metadataWays)),
  /** How many hops an answer over a tap device may travel. */
  hopLimit: z.int().min(1).max(255).optional(),
  /** EC2's first version is answered too. */
  imdsV1: z.boolean().optional(),
  /** The clouds whose APIs it speaks; undefined: all. */
  facades: z.array(z.string()).optional(),
});
export type MetadataServerRecord = z.infer<typeof MetadataServerRecord>;
export type MetadataWayName = (typeof metadataWays)[number];

/** vCPUs, memory and disk: of a host, or what a VM takes of them. */
export const Resources = z.looseObject({
  vcpus: z.int().nonnegative(),
  memoryMiB: z.int().nonnegative(),
  diskBytes: z.int().nonnegative(),
});
export type Resources = z.infer<typeof Resources>;

/** The host of `porthole up`, where all VMs are that name none. */
export const ownHost = 'local';

export const HostRecord = z.looseObject({
  name: vmName,
  /** Of this enrolment: a host that comes back under a name is not the one before. */
  id: z.string(),
  /** What VMs may take of it together; missing: as much as they like, as on the one host of `porthole up`. */
  capacity: Resources.optional(),
  labels: z.record(z.string(), z.string()),
  /** No VM is placed there any more. */
  cordoned: z.boolean(),
  /** It is being emptied: cordoned, and its VMs are to leave. */
  draining: z.boolean(),
  /** uids to give to its VMs, one each; missing: everything runs as the daemon's user. */
  uids: z.looseObject({ first: z.int().positive(), count: z.int().positive() }).optional(),
  /** It has had a lease: one that has none is not heard of. Missing: it is of before there were leases. */
  leases: z.boolean().optional(),
  /** Which certificate is its own now, where it is connected by one. */
  certificateId: z.string().optional(),
  addedAtMs: millis,
});
export type HostRecord = z.infer<typeof HostRecord>;

export const HostLiveRecord = z.looseObject({
  /** Of its `HostRecord`. */
  id: z.string(),
  /** Who holds its connection. */
  manager: z.string(),
  sinceMs: millis,
  version: z.string().optional(),
});
export type HostLiveRecord = z.infer<typeof HostLiveRecord>;

/** What all its VMs take. A transaction that changes it has a condition on it, so that no two overcommit the host. */
export const HostUseRecord = z.looseObject({ ...Resources.shape, vms: z.int().nonnegative() });
export type HostUseRecord = z.infer<typeof HostUseRecord>;

export const HostVmRecord = z.looseObject({ id: vmId });
export type HostVmRecord = z.infer<typeof HostVmRecord>;

/** A host's lease, which managers grant and keep alive when it asks. */
export const HostLeaseRecord = z.looseObject({
  /** Another with each lease that was granted after the last had run out. */
  id: z.string().regex(/^[0-9a-f]{16}$/),
  /** Of the host's `HostRecord`. */
  host: z.string(),
  /** Which boot of which machine has it: no other goes on with it. */
  machine: z.string(),
  /** In the region's store. */
  leaseId: z.int(),
  seconds: z.int().positive(),
});
export type HostLeaseRecord = z.infer<typeof HostLeaseRecord>;

/** VMs are moved under a condition on it, once it has been there for a while. */
export const HostLostRecord = z.looseObject({ sinceMs: millis });
export type HostLostRecord = z.infer<typeof HostLostRecord>;

export const HostLeftRecord = z.looseObject({
  id: vmId,
  /** Which of its lives is left there: that of this epoch, or of one before. */
  epoch: z.int().positive(),
  uid: z.int().positive().optional(),
});
export type HostLeftRecord = z.infer<typeof HostLeftRecord>;

export const DiskExportRecord = z.looseObject({
  id: vmId,
  epoch: z.int().positive(),
  address: z.string(),
  port: z.int().positive(),
  /** Pre-shared for TLS, in hex. */
  key: z.string(),
});
export type DiskExportRecord = z.infer<typeof DiskExportRecord>;

/** Under which operation. */
export const DrainRecord = z.looseObject({ operation: z.string() });
export type DrainRecord = z.infer<typeof DrainRecord>;

export const drainPrefix = 'drain/';
export const drainKey = (host: string): string => `${drainPrefix}${host}`;

/** The directory that has the region's network disks, by `NetworkDisks.id`. */
export const StorageRecord = z.looseObject({ id: z.string().optional() });
export type StorageRecord = z.infer<typeof StorageRecord>;

export const storageKey = 'storage';
export const diskExportPrefix = 'diskexport/';
export const diskExportKey = (vm: string): string => `${diskExportPrefix}${vm}`;

export const hostLeasePrefix = 'hostlease/';
export const hostLeaseKey = (host: string): string => `${hostLeasePrefix}${host}`;
export const hostLostPrefix = 'hostlost/';
export const hostLostKey = (host: string): string => `${hostLostPrefix}${host}`;
export const lostVmPrefix = 'lostvm/';
export const lostVmsOf = (host: string): string => `${lostVmPrefix}${host}/`;
export const lostVmKey = (host: string, vm: string): string => `${lostVmsOf(host)}${vm}`;
export const hostLeftPrefix = (host: string): string => `hostleft/${host}/`;
export const hostLeftKey = (host: string, vm: string): string => `${hostLeftPrefix(host)}${vm}`;

export const hostKey = (host: string): string => `host/${host}`;
export const hostLiveKey = (host: string): string => `hostlive/${host}`;
export const hostUseKey = (host: string): string => `hostuse/${host}`;
export const hostVmPrefix = (host: string): string => `hostvm/${host}/`;
export const hostVmKey = (host: string, vm: string): string => `${hostVmPrefix(host)}${vm}`;
/** Of `ownHost`, names and state are those of before there were several hosts. */
export const hostUidPrefix = (host: string): string => (host === ownHost ? 'uid/' : `hostuid/${host}/`);
export const hostUidKey = (host: string, uid: number): string =>
  `${hostUidPrefix(host)}${String(uid).padStart(10, '0')}`;

/** Where a region's managers are reached by those of other regions. */
export const RegionRecord = z.looseObject({
  name: vmName,
  /** URLs: `https://…`. */
  addresses: z.array(z.string()),
  /** PEM: who signs its managers' certificates; missing: one that this machine trusts. */
  authority: z.string().optional(),
  addedAtMs: millis,
});
export type RegionRecord = z.infer<typeof RegionRecord>;

/** Everything belongs to an account; this one is there from the start, and its admins administer the cluster. */
export const defaultAccount = 'default';

export const AccountRecord = z.looseObject({
  name: vmName,
  /** `leaving`: it is to be deleted, and nothing is made for it any more. */
  state: z.enum(['active', 'leaving']),
  /** At most so many VMs, by region and type; what is not named has no limit. */
  quotas: z.record(z.string(), z.record(z.string(), z.int().nonnegative())),
  /** Its VMs may have tap devices, libvirt domains, and ports at any address of their hosts, and reach what hosts reach. */
  mayUseHostNetworks: z.boolean().optional(),
  createdAtMs: millis,
});
export type AccountRecord = z.infer<typeof AccountRecord>;

/** An account's VMs of a region, told when the region makes no more of them. */
/** `images`: that are on their way there, and in no other record yet. */
export const LeavingRecord = z.looseObject({
  vms: z.int().nonnegative(),
  images: z.int().nonnegative().default(0),
  atRevision: z.int().nonnegative(),
});
export type LeavingRecord = z.infer<typeof LeavingRecord>;

/** Without an account or an opening: of a manager of before. */
export const ImageAddRecord = z.looseObject({
  operation: z.string(),
  account: z.string().optional(),
  /** Goes with it. */
  opening: z.string().optional(),
});
export type ImageAddRecord = z.infer<typeof ImageAddRecord>;

export const accountKey = (account: string): string => `account/${account}`;
export const regionKey = (region: string): string => `region/${region}`;

export const VmRecord = z.looseObject({
  id: vmId,
  name: vmName,
  account: z.string(),
  /** `attached`: served, but started by others. */
  kind: z.enum(['managed', 'attached']),
  /** A name of `vmTypes`, or `attached`. */
  type: z.string(),
  vcpus: z.int().nonnegative(),
  memoryMiB: z.int().nonnegative(),
  image: z.looseObject({ name: z.string(), version: z.string(), digest: z.string() }).optional(),
  /** Size of the first disk, an overlay of the image; undefined: as large as the image. */
  diskBytes: z.int().positive().optional(),
  network: Network,
  /** Of a VM with a routed network. */
  addresses: AddressesRecord.optional(),
  labels: z.record(z.string(), z.string()),
  /** After an end that nobody asked for: `on-failure` when it was a failure (QEMU died, the guest panicked). */
  restart: z.enum(['always', 'on-failure', 'never']),
  desired: z.enum(['running', 'stopped', 'deleted']),
  /** Rises with every request to start, stop, reboot or delete. */
  generation: z.int().positive(),
  /** The generation of the last request to reboot, 0 when there was none: the host boots once for each. */
  rebootGeneration: z.int().nonnegative(),
  /** How long a stop waits for the guest before QEMU is ended; 0: at once. */
  stopGraceSeconds: z.int().nonnegative(),
  /** What a request to stop or reboot said instead, for itself alone. */
  grace: z.looseObject({ generation: z.int().positive(), seconds: z.int().nonnegative() }).optional(),
  /** Whether it has a console that speaks 9P as well. */
  ninep: z.boolean().optional(),
  /** Whether it has a vsock device to the host, with 9P on a port. */
  vsock: z.boolean().optional(),
  metadataServer: MetadataServerRecord.optional(),
  /** Of an attached VM: the libvirt domain of this host whose boots are its boots. */
  libvirtDomain: z.string().optional(),
  /** Of the device process and QEMU; undefined where everything runs as the daemon's user. */
  uid: z.int().positive().optional(),
  /** The host that it was assigned to. Missing in records of before there were several: `ownHost`. */
  host: vmName.optional(),
  /** What it takes of its host, from its creation until it is gone. Missing: nothing. */
  takes: Resources.optional(),
  /** Where its first disk is. Missing: on its host. */
  disk: z.enum(['local', 'network']).optional(),
  /** What was asked of its host, for when it goes to another. Missing: nothing. */
  placement: z
    .looseObject({
      strategy: z.enum(['spread', 'pack']),
      hostLabels: z.array(z.string()),
      apart: z.string().optional(),
    })
    .optional(),
  /** What becomes of it when its host is lost: it waits for that host, or another starts it. Missing: `here`. */
  restartWhere: z.enum(['here', 'elsewhere']).optional(),
  /** Nothing that it has on its host's disk needs to be kept. */
  stateless: z.boolean().optional(),
  /** Rises whenever it goes to another host. Missing: 1. */
  epoch: z.int().positive().optional(),
  /** Hosts that it has left, the last ones: what they recorded of it then is believed. Missing: none is known. */
  stays: z.array(z.looseObject({ host: vmName, fromMs: millis, untilMs: millis })).optional(),
  /** It is stopped, at this generation, in order to go to another host; then it is to run there, or to be as it was: off. */
  moving: z.looseObject({ generation: z.int().positive(), runs: z.boolean() }).optional(),
  /** Its host has not been heard of for as long as its lease, and it is not started elsewhere. */
  lost: z.looseObject({ sinceMs: millis, reason: z.string() }).optional(),
  /** Keys of the region's store that are its own, and go with it: of its quota, of its distance from others. */
  holds: z.array(z.string()).optional(),
  createdAtMs: millis,
});
export type VmRecord = z.infer<typeof VmRecord>;

export const epochOf = ({ epoch }: Pick<VmRecord, 'epoch'>): number => epoch ?? 1;

/** The same VM, on the same stay at a host. */
export const isSameStay = (a: Pick<VmRecord, 'id' | 'epoch'>, b: Pick<VmRecord, 'id' | 'epoch'>): boolean =>
  a.id === b.id && epochOf(a) === epochOf(b);

/** How long the latest request leaves the guest to stop by itself. */
export const graceSecondsOf = ({ generation, grace, stopGraceSeconds }: VmRecord): number =>
  grace?.generation === generation ? grace.seconds : stopGraceSeconds;

/** `compromised`: somebody was refused before its first use, and nobody has one any more. */
export const tokenStates = ['unclaimed', 'claimed', 'used', 'returned', 'compromised'] as const;

export const TokenKept = z.looseObject({
  vmId,
  boot: z.string(),
  /** What follows is as `TokenRecord` of `src/imds` has it. */
  secret: z.string(),
  state: z.enum(['unclaimed', 'claimed', 'used', 'returned']),
  nonceHash: z.string(),
  tokenHash: z.string(),
  issue: z.int().nonnegative(),
  claimedAtMs: millis.optional(),
  usedAtMs: millis.optional(),
  compromised: z.boolean().optional(),
  untold: z.object({ boot: z.string(), channel: z.string(), atMs: millis }).optional(),
});
export type TokenKept = z.infer<typeof TokenKept>;

export const VmStatusRecord = z.looseObject({
  /** Of the VM that it is about: a status of another id is stale. */
  id: vmId,
  status: z.enum([...vmStatuses, 'deleted']),
  /** In words, for people: why it failed or stopped, what it waits for; '' when there is nothing to say. */
  reason: z.string(),
  sinceMs: millis,
  /** The generation of `VmRecord` that this is the result of. */
  generation: z.int().nonnegative(),
  /** Whether what the generation asked for was done, is under way, or failed (then `reason` says why). */
  outcome: z.enum(['done', 'underway', 'failed']),
  bootId: z.string().optional(),
  bootNumber: z.int().nonnegative(),
  addresses: z.array(z.string()),
  /** What the device process runs that serves it now, and whether a new one would run something else. */
  deviceVersion: z.string().optional(),
  deviceOutdated: z.boolean().optional(),
  /** How far the token of the last boot is, of a VM with a metadata server. */
  token: z
    .looseObject({
      state: z.enum(tokenStates),
      claimedAtMs: millis.optional(),
      usedAtMs: millis.optional(),
    })
    .optional(),
});
export type VmStatusRecord = z.infer<typeof VmStatusRecord>;

export const BootRecord = z.looseObject({
  bootId: z.string(),
  number: z.int().positive(),
  atMs: millis,
  /** Why it was started, and why it ended. */
  reason: z.string(),
  endedAtMs: millis.optional(),
  endReason: z.string().optional(),
  /** The request that told of it, where one did. */
  request: z.string().optional(),
});
export type BootRecord = z.infer<typeof BootRecord>;

/** VMs of these names, and those whose names begin so. */
export const VmScopeRecord = z.looseObject({ names: z.array(z.string()), prefixes: z.array(z.string()) });

export const operationStates = ['pending', 'running', 'succeeded', 'failed', 'cancelled'] as const;

export const OperationRecord = z.looseObject({
  id: z.string(),
  account: z.string(),
  kind: z.enum([
    'vm.create',
    'vm.start',
    'vm.stop',
    'vm.reboot',
    'vm.delete',
    'vms.create',
    'vms.start',
    'vms.stop',
    'vms.reboot',
    'vms.delete',
    'image.add',
    'image.copy',
    'image.migrate',
    'image.remove',
    'key.rotate',
    'host.drain',
  ]),
  /** What it is about: a VM's name and id, an image, or which keys. */
  target: z.looseObject({ name: z.string(), id: z.string().optional(), version: z.string().optional() }),
  /** Of the VM's record, for an operation that the host brings about. */
  generation: z.int().nonnegative().optional(),
  state: z.enum(operationStates),
  step: z.string(),
  done: z.number().nonnegative(),
  total: z.number().nonnegative().optional(),
  /** Of many VMs: how many of those that are done failed. */
  failed: z.number().nonnegative().optional(),
  /** The VMs that the key was for by which it was asked. */
  only: VmScopeRecord.optional(),
  error: z.looseObject({ code: z.string(), detail: z.string() }).optional(),
  createdAtMs: millis,
  finishedAtMs: millis.optional(),
  /** Who runs it, for work that a manager does itself: what another start of the manager left is failed. */
  runner: z.string().optional(),
});
export type OperationRecord = z.infer<typeof OperationRecord>;

export const batchActions = ['create', 'start', 'stop', 'reboot', 'delete'] as const;

/** A request about many VMs that is under way, under the id of its operation. Whoever holds `batchrun/ID` sees to it. */
export const BatchRecord = z.looseObject({
  operation: z.string(),
  account: z.string(),
  action: z.enum(batchActions),
  only: VmScopeRecord.optional(),
  /** The key that goes with it: it is one of so many of the account. Missing: of a manager of before. */
  opening: z.string().optional(),
  /** Of `create`: what is asked for, as the manager that was asked has it; names and spec with placeholders. */
  create: z.looseObject({ wish: z.record(z.string(), z.unknown()), count: z.int(), firstIndex: z.int() }).optional(),
  /** Of the others: which VMs. Looked for once: what matches later is none of it. */
  select: z
    .looseObject({
      names: z.array(z.string()).optional(),
      namePrefix: z.string(),
      labels: z.array(z.string()),
      status: z.enum(vmStatuses).optional(),
      type: z.string().optional(),
      graceSeconds: z.int().nonnegative().optional(),
      isListed: z.boolean(),
    })
    .optional(),
});
export type BatchRecord = z.infer<typeof BatchRecord>;

export const batchItemStates = ['waiting', 'asked', 'done', 'failed', 'cancelled'] as const;

/** One VM of a batch: there from when it was found or asked for. */
export const BatchItemRecord = z.looseObject({
  name: z.string(),
  /** Of the VM that was meant: another may have its name by now. Missing before it is asked for, of one that is to be made. */
  id: vmId.optional(),
  state: z.enum(batchItemStates),
  operation: z.string().optional(),
  error: z.looseObject({ code: z.string(), detail: z.string() }).optional(),
});
export type BatchItemRecord = z.infer<typeof BatchItemRecord>;

export const IndexedRecord = z.looseObject({ id: vmId, key: z.string() });
export type IndexedRecord = z.infer<typeof IndexedRecord>;

/** A value of a once-only request: what was asked, and what was answered. */
export const IdempotencyRecord = z.looseObject({
  /** SHA-256 of method, path, condition headers and body, in hex. */
  request: z.string(),
  status: z.int(),
  headers: z.record(z.string(), z.string()),
  body: z.string(),
  /** `begun`: the effect lies outside this store and may or may not have happened. */
  state: z.enum(['begun', 'done']),
  createdAtMs: millis,
});
export type IdempotencyRecord = z.infer<typeof IdempotencyRecord>;

/** What the global store must know of a transaction of the region's. */
export const OutboxRecord = z.looseObject({
  operations: z.array(
    z.discriminatedUnion('type', [
      z.looseObject({ type: z.literal('put'), key: z.string(), value: z.string() }),
      z.looseObject({ type: z.literal('delete'), key: z.string() }),
    ]),
  ),
});
export type OutboxRecord = z.infer<typeof OutboxRecord>;

/** How far the global store has read a region's outbox. */
export const OutboxReadRecord = z.looseObject({
  epoch: z.int(),
  revision: z.int().nonnegative(),
  /** That of the global store; missing where none was restored since. */
  globalEpoch: z.int().optional(),
});
export type OutboxReadRecord = z.infer<typeof OutboxReadRecord>;

export const roles = ['admin', 'operator', 'viewer'] as const;
export type Role = (typeof roles)[number];

export const KeyRecord = z.looseObject({
  id: z.string(),
  account: z.string(),
  name: z.string(),
  role: z.enum(roles),
  /** The only VMs that it may touch: of these names, and whose names begin so. Missing: all of the account. */
  vms: VmScopeRecord.optional(),
  /** SHA-256 of the secret, in hex. */
  secretHash: z.string().regex(/^[0-9a-f]{64}$/),
  createdAtMs: millis,
  expiresAtMs: millis.optional(),
});
export type KeyRecord = z.infer<typeof KeyRecord>;

/** A key in a region, which never goes from `revoked` to `valid`. */
export const KeyCopyRecord = z.discriminatedUnion('state', [
  z.looseObject({ state: z.literal('valid'), key: KeyRecord }),
  z.looseObject({ state: z.literal('revoked'), atMs: millis }),
]);
export type KeyCopyRecord = z.infer<typeof KeyCopyRecord>;

/** Its id is nowhere but in the cookie. It ends at `expiresAtMs`, which use puts off, and with its key. */
export const SessionRecord = z.looseObject({ key: z.string(), createdAtMs: millis, expiresAtMs: millis });
export type SessionRecord = z.infer<typeof SessionRecord>;

/** How long a key may be good with which a host enrols. */
export const longestJoinSeconds = 7 * 24 * 3600;

export const ImageRecord = z.looseObject({
  name: z.string(),
  version: z.string(),
  account: z.string(),
  digest: z.string(),
  sizeBytes: z.int().nonnegative(),
  virtualSizeBytes: z.int().nonnegative(),
  /** Which have its bytes. Missing: of before regions kept images; whoever is asked for it tries. */
  regions: z.array(z.string()).optional(),
  createdAtMs: millis,
});
export type ImageRecord = z.infer<typeof ImageRecord>;

export const encodeRecord = (record: object): Uint8Array => new TextEncoder().encode(JSON.stringify(record));

/** Throws with the key when the value is no such record: another version wrote it, or a bug. */
export const decodeRecord = <S extends z.ZodType>(schema: S, key: string, value: Uint8Array): z.infer<S> => {
  const result = schema.safeParse(JSON.parse(new TextDecoder().decode(value)));
  if (result.success) return result.data;
  const where = result.error.issues.map(({ path, code }) => `${path.join('.')}: ${code}`).join(', ');
  throw new Error(`the record "${key}" of the store is not as this version knows it (${where})`);
};
