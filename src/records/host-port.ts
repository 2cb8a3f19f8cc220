/**
 * What a manager asks of the host that has a VM. The host satisfies it structurally and imports nothing of this room.
 * Everything here is plain data, an iterable of plain data, or an `AbortSignal`, so that the same calls can go over mutual
 * TLS later. Starting, stopping and deleting are not here: the manager writes them into the region's store as what is
 * wished for (`src/records`), the host brings them about and reports in `vmstatus/NAME`.
 *
 * A refusal is an `Error` with a `code` of `HostErrorCode`; its message says what was tried and what to do, and never
 * quotes a value of the tree. Anything else that is thrown is a bug, or the reason of an aborted signal.
 */
import type { AuditRecord, Caller, Explanation } from '../tree/index.ts';

export type HostErrorCode =
  /** The host has no such VM, or has another one of that name by now. */
  | 'HOST_NO_VM'
  | 'HOST_NOT_FOUND'
  | 'HOST_NOT_DIRECTORY'
  | 'HOST_IS_DIRECTORY'
  | 'HOST_NOT_EMPTY'
  /** A condition of the edit did not hold; `condition` is its index. */
  | 'HOST_CONDITION_UNMET'
  /** A value, name, path or tree over a limit. */
  | 'HOST_TOO_LARGE'
  /** Text, a path or a request that makes no sense; with `problems` for YAML. */
  | 'HOST_INVALID'
  /** A `once` value that was read: nobody has it any more. */
  | 'HOST_BURNED'
  /** History before `oldestRevision` is gone: read again, then watch from what was read. */
  | 'HOST_COMPACTED'
  /** Not now: the VM has the wrong state for it (input to the console of a VM that is stopped). */
  | 'HOST_WRONG_STATE'
  /** The host can't be reached, or it or its disk can't do it at present. */
  | 'HOST_UNAVAILABLE'
  | 'HOST_FULL'
  /** This host is not set up for it. */
  | 'HOST_UNSUPPORTED';

/** The shape of a refusal. */
export interface HostError extends Error {
  readonly code: HostErrorCode;
  readonly problems?: readonly FileProblem[] | undefined;
  readonly condition?: number | undefined;
  readonly oldestRevision?: number | undefined;
}

export interface ShowOptions extends CallOptions {
  /**
   * Who is shown the values: each that not every program in the guest may read is recorded in the audit before it is given,
   * and HOST_UNAVAILABLE when that can't be. Undefined: nobody is.
   */
  readonly by: string | undefined;
}

/** Both, so that a VM that was made anew under a name is not taken for the one before. */
export interface VmRef {
  readonly id: string;
  readonly name: string;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

/** A change that is to happen once, however often it is asked for. */
export interface Once {
  /** No other request has the same: at most 64 characters of `A-Z a-z 0-9 . _ -`. */
  readonly id: string;
  /**
   * It was asked for before, and may have happened. If so it does not happen again, whatever conditions it has, and the answer
   * is that of then.
   */
  readonly isRepeat: boolean;
}

export interface ChangeOptions extends CallOptions {
  /** Undefined: it happens each time. */
  readonly once?: Once | undefined;
}

export interface HostPort {
  /** Answers at once; each call on it is HOST_NO_VM when the VM is not, or no longer, there. */
  tree(vm: VmRef): TreePort;
  console(vm: VmRef): ConsolePort;

  /**
   * What is wrong with a spec (`porthole: 1`, `metadata`, `policy`, …) before a VM is made from it. A `file:` value is a
   * problem here and in `import`: through one, whoever may use the API could read the host's files.
   */
  checkSpec(text: string, options?: CallOptions): Promise<readonly FileProblem[]>;

  /** What a machine that others start needs to have this VM's device. */
  attachment(vm: VmRef, machine: AttachedMachine, options?: CallOptions): Promise<Attachment>;
  /** Tells of a boot of an attached VM. HOST_WRONG_STATE for a VM whose boots are the host's own. */
  boot(vm: VmRef, options?: ChangeOptions): Promise<Boot>;
  statistics(vm: VmRef, options?: CallOptions): Promise<Statistics>;
  /** What the agent in the guest says of its inside. HOST_UNAVAILABLE when it can't be recorded who was shown that. */
  inside(vm: VmRef, options: ShowOptions): Promise<GuestInside>;
  /**
   * Has a new device process take the place of the one that serves the VM, under a running guest. Resolves when it serves.
   * HOST_WRONG_STATE when none serves, or it can't hand over; HOST_UNAVAILABLE when none serves in time.
   */
  renewDevice(vm: VmRef, options?: CallOptions): Promise<DeviceVersion>;

  /** Newest first where `newestFirst`, else in order of time. Never a value of a tree. */
  audit(query: AuditQuery, options?: CallOptions): Promise<AuditPage>;
  /**
   * Checks the chain of the log, some megabytes of it, from the record after a link that was seen before (which must still be as
   * it was), or from the oldest on.
   */
  checkAudit(after: AuditLink | undefined, options?: CallOptions): Promise<AuditCheck>;
  /**
   * Every record that matches after `after` (default: from now on), in order, none lost, none twice. Resolves when it has
   * begun; HOST_COMPACTED then, or thrown by the iteration when the consumer was too slow.
   */
  followAudit(filter: AuditFilter, options: AuditFollowOptions): Promise<AsyncIterable<AuditEvent>>;

  status(options?: CallOptions): Promise<HostStatus>;
}

// The tree of one VM.

/** What an entry of `TreePort.walk` counts for beside its value. */
export const walkedEntryBytes = 256;

/**
 * Paths are absolute and normalised: `/`, `/secrets/db`. Revisions rise by commits of this tree and may be compared only
 * within one `epoch`, which rises when the store was restored from a backup.
 */
export interface TreePort {
  /** HOST_NOT_FOUND, HOST_NOT_DIRECTORY. */
  stat(path: string, options?: CallOptions): Promise<TreeAnswer & { readonly entry: TreeEntry }>;
  /** Entries of a directory in order of their names (by UTF-16 code units), from the one after `after` on. */
  list(
    path: string,
    options?: CallOptions & { readonly after?: string | undefined; readonly limit?: number | undefined },
  ): Promise<TreeAnswer & { readonly entries: readonly TreeEntry[]; readonly more: boolean }>;
  /**
   * The value of a file or the target of a symlink. Reading from outside burns nothing. HOST_IS_DIRECTORY, HOST_BURNED.
   */
  read(
    path: string,
    options: ShowOptions,
  ): Promise<TreeAnswer & { readonly entry: TreeEntry; readonly bytes: Uint8Array }>;
  /**
   * A path and all below it, at one revision, parents before children, values included but those that are burned.
   * HOST_TOO_LARGE when the values have more than `mostBytes` together, where each entry counts for `walkedEntryBytes` more.
   */
  walk(
    path: string,
    options: ShowOptions & { readonly mostBytes: number },
  ): Promise<TreeAnswer & { readonly entries: readonly (TreeEntry & { readonly bytes?: Uint8Array | undefined })[] }>;

  /**
   * All edits in order as one commit when all conditions hold, which are those of the tree before it; else nothing.
   * Resolves when it is durable, with the data revisions that it gave or found at the paths (in the answer to a repeat: if there
   * is one path). HOST_CONDITION_UNMET, HOST_NOT_FOUND, HOST_NOT_DIRECTORY, HOST_IS_DIRECTORY, HOST_NOT_EMPTY, HOST_TOO_LARGE,
   * HOST_INVALID, HOST_FULL, HOST_UNAVAILABLE.
   */
  edit(
    edits: readonly TreeEdit[],
    conditions: readonly TreeCondition[],
    options?: ChangeOptions,
  ): Promise<TreeAnswer & { readonly changes: number; readonly dataRevisions: ReadonlyMap<string, number> }>;

  /** The whole tree, or what lies below a path, as a spec. */
  export(
    options: ShowOptions & { readonly path?: string | undefined },
  ): Promise<TreeAnswer & { readonly text: string }>;
  /**
   * Makes the outside's part of the tree, and the policy, what the spec says; what guests made stays.
   * HOST_INVALID with `problems`; HOST_CONDITION_UNMET when the outside's part, but for
   * what the host itself keeps current, was changed after `ifRevision`.
   */
  import(
    text: string,
    options?: ChangeOptions & { readonly ifRevision?: number | undefined },
  ): Promise<TreeAnswer & { readonly changes: number; readonly warnings: readonly FileProblem[] }>;

  /** The sections `users`, `groups`, `policy`, `quota`, `ninep` of a spec, as YAML. `policyRevision`: of their last change. */
  policy(options?: CallOptions): Promise<TreeAnswer & { readonly text: string; readonly policyRevision: number }>;
  /** As `import`, for these sections alone. `ifRevision` is compared with the `policyRevision`. */
  setPolicy(
    text: string,
    options?: ChangeOptions & { readonly ifRevision?: number | undefined },
  ): Promise<TreeAnswer & { readonly policyRevision: number; readonly warnings: readonly FileProblem[] }>;
  /** What the policy decides for a caller who comes by virtiofs. Leaves no record in the audit. */
  explain(
    caller: Caller,
    path: string,
    options?: CallOptions,
  ): Promise<TreeAnswer & { readonly explanation: Explanation }>;

  /**
   * Every commit from revision `from` on (default: the next one) that changed something at or below `path`, in order. One
   * without changes says that there was nothing up to its revision.
   * Resolves when it has begun: the answer's revision is the last one before what `commits` tells. HOST_COMPACTED then, or
   * thrown by the iteration when the consumer was too slow; HOST_NO_VM when the VM is deleted; HOST_INVALID when `from` lies
   * more than one ahead.
   */
  watch(
    path: string,
    options: CallOptions & { readonly from?: number | undefined },
  ): Promise<TreeAnswer & { readonly commits: AsyncIterable<TreeCommit> }>;

  /**
   * Waits until every replica that is connected has applied a revision, at most `timeoutMs`.
   * @returns names of the replicas that have not; none when no replica is connected
   */
  applied(revision: number, options: CallOptions & { readonly timeoutMs: number }): Promise<readonly string[]>;
}

/** Of what moment an answer is. */
export interface TreeAnswer {
  readonly epoch: number;
  readonly revision: number;
}

export interface TreeEntry {
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'symlink';
  readonly madeBy: 'outside' | 'guest';
  readonly sizeBytes: number;
  /** Revision of the last change of the bytes (or of a directory's entries), and of anything. */
  readonly dataRevision: number;
  readonly revision: number;
  readonly uid: number;
  readonly gid: number;
  /** Permission bits, 0 to 07777. */
  readonly mode: number;
  readonly mtimeMs: number;
  /** Whether every program in the guest may read it: mode and rule show no secret. */
  readonly worldReadable: boolean;
  /** A `once` value that was read. */
  readonly burned: boolean;
  /** The most specific rule, or `default`. */
  readonly rule: string;
}

/** Edits from outside. Missing directories above a `put`, `directory` or `symlink` are made. */
export type TreeEdit =
  | { readonly op: 'put'; readonly path: string; readonly bytes: Uint8Array }
  | { readonly op: 'directory'; readonly path: string }
  | { readonly op: 'symlink'; readonly path: string; readonly target: string }
  /** HOST_NOT_FOUND when it is not there; HOST_NOT_EMPTY for a directory with entries unless `recursive`. */
  | { readonly op: 'remove'; readonly path: string; readonly recursive: boolean };

/** The path exists or does not; or its `dataRevision` is the one given (so it exists). */
export type TreeCondition =
  | { readonly path: string; readonly exists: boolean }
  | { readonly path: string; readonly dataRevision: number };

export interface TreeCommit {
  readonly epoch: number;
  readonly revision: number;
  readonly changes: readonly {
    readonly path: string;
    readonly what: 'created' | 'changed' | 'attributes' | 'removed';
  }[];
  readonly policyChanged: boolean;
}

/** A mistake in a YAML text. Lines and columns are 1-based; 0 where it is about the whole. Never quotes a value. */
export interface FileProblem {
  readonly severity: 'error' | 'warning';
  readonly line: number;
  readonly column: number;
  /** Where in the document: `policy[2].mode`. */
  readonly path: string;
  readonly what: string;
  readonly fix: string;
}

// The console of one VM.

/** Offsets count the console's bytes since the VM was made; the log keeps the newest, from `start` on. */
export interface ConsolePort {
  /** From `offset`, or the last `tailBytes`, at most `mostBytes`. What lies before `start` is left out. */
  log(
    options: CallOptions & {
      readonly offset?: number | undefined;
      readonly tailBytes?: number | undefined;
      readonly mostBytes: number;
    },
  ): Promise<ConsoleLog>;
  /**
   * The log from `offset` on (default: its end), then what comes, over boots and restarts. Pieces follow each other without
   * a gap but where the log had let go of bytes before they were read. Resolves when it has begun.
   */
  stream(
    options: CallOptions & { readonly offset?: number | undefined },
  ): Promise<{ readonly offset: number; readonly pieces: AsyncIterable<ConsolePiece> }>;
  /** HOST_WRONG_STATE when the VM does not run. */
  write(bytes: Uint8Array, options?: CallOptions): Promise<void>;
}

export interface ConsoleLog {
  /** Of the first byte that is kept, of the first byte here, and after the last that was written. */
  readonly start: number;
  readonly offset: number;
  readonly end: number;
  readonly bytes: Uint8Array;
}

export interface ConsolePiece {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

// Around a VM.

/** What is printed is for a machine like this. Paths are absolute, on this host. */
export interface AttachedMachine {
  readonly memoryMiB: number;
  readonly vcpus: number;
  readonly disk?: string | undefined;
  readonly diskFormat?: 'qcow2' | 'raw' | undefined;
  /** Booted directly, without firmware. */
  readonly kernel?: string | undefined;
  readonly initrd?: string | undefined;
  readonly kernelArguments?: string | undefined;
}

export interface Attachment {
  readonly socketPath: string;
  readonly tag: string;
  /** What follows `qemu-system-…`, one argument each, and the same for Cloud Hypervisor. */
  readonly qemu: readonly string[];
  readonly cloudHypervisor: readonly string[];
  /** What belongs into a libvirt domain: two elements, each in its place. */
  readonly libvirtXml: string;
  /** A whole domain with nothing in it that it could do without. */
  readonly libvirtDomain: string;
  /** The line that mounts it in the guest. */
  readonly mount: string;
  /** The vsock device, of a VM that has one: what it needs of QEMU beside the others. */
  readonly vsock?: {
    /** Where programs of the host reach the guest; `PATH_PORT` is where those of the guest reach the host. */
    readonly hostPath: string;
    readonly qemu: readonly string[];
    readonly mount: string;
    /**
     * Of a monitor that has a vsock device of its own, at a path that it is given here as an example: a link `PATH_564` must lead
     * to `socketPath`. `firecracker` is the body of its `PUT /vsock`.
     */
    readonly ofOthers: {
      readonly socketPath: string;
      readonly cloudHypervisor: readonly string[];
      readonly firecracker: { readonly guest_cid: number; readonly uds_path: string };
      readonly mount: string;
    };
  };
  /** Of a VM with a metadata server, by the ways that it was given. */
  readonly metadataServer?: {
    /** The virtio-serial port: what it needs beside the others. */
    readonly serial?: {
      readonly socketPath: string;
      readonly qemu: readonly string[];
      readonly libvirtXml: string;
    };
    /** Port of CID 2. With another monitor's vsock device, its `PATH_PORT` must lead to the socket. */
    readonly vsock?: { readonly socketPath: string; readonly port: number };
    /** For relays of what any program of the guest may open, and of what only its root may. */
    readonly sockets?: { readonly any: string; readonly privileged: string };
  };
  /** The console that speaks 9P, of a VM that has one: what it needs beside the others. */
  readonly ninep?: {
    readonly socketPath: string;
    readonly qemu: readonly string[];
    /** A console's elements, which belong into `<devices>`. */
    readonly libvirtXml: string;
    readonly mount: string;
  };
}

export interface Boot {
  readonly bootId: string;
  /** Counts the VM's boots, from 1. */
  readonly number: number;
}

/** What the device process of a VM runs. */
export interface DeviceVersion {
  /** As `0.1.0+1a2b3c4d5e6f`; `unknown` of one that does not say so. */
  readonly version: string;
  /** A new one would run something else. */
  readonly outdated: boolean;
}

/** Counters since the VM was made unless named otherwise; names are `snake_case` with their unit, as in Prometheus. */
export interface Statistics {
  readonly atMs: number;
  readonly values: Readonly<Record<string, number>>;
}

/** As its agent says: data of a stranger, in this shape and with printable text, and nothing more. */
export interface GuestStatus {
  readonly at: string;
  readonly uptimeSeconds: number;
  readonly load: readonly [number, number, number];
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number };
  readonly swap: { readonly totalBytes: number; readonly freeBytes: number };
  readonly disks: readonly { readonly mount: string; readonly totalBytes: number; readonly freeBytes: number }[];
  readonly agent: { readonly version: string; readonly pid: number; readonly startedAt: string };
}

export interface GuestProcess {
  readonly pid: number;
  readonly user: string;
  readonly uid: number;
  readonly command: string;
  readonly cpuPercent: number;
  readonly memoryBytes: number;
  readonly state: string;
}

/** What is there of it. Ages are by the host's clock, from when it was written. */
export interface GuestInside {
  readonly status?: GuestStatus;
  readonly statusAgeMs?: number;
  readonly processes?: readonly GuestProcess[];
  readonly processesAgeMs?: number;
  /** In words: files that are there and make no sense. */
  readonly problems: readonly string[];
}

// Audit.

export interface AuditFilter {
  /** Records of VMs of this account only. */
  readonly account?: string | undefined;
  /** Of those that have one of these names, or one that begins so. */
  readonly vms?: { readonly names: readonly string[]; readonly prefixes: readonly string[] } | undefined;
  readonly vm?: string | undefined;
  /** A path and all below it. */
  readonly path?: string | undefined;
  readonly uid?: number | undefined;
  readonly operation?: string | undefined;
  readonly verdict?: 'allowed' | 'denied' | undefined;
}

export interface AuditQuery extends AuditFilter {
  /** Inclusive and exclusive, milliseconds since the epoch. */
  readonly fromMs?: number | undefined;
  readonly untilMs?: number | undefined;
  readonly newestFirst?: boolean | undefined;
  /** Where to begin; default: at the end that `newestFirst` says. */
  readonly after?: AuditPlace | undefined;
  readonly limit: number;
}

/**
 * A place in the log of one host, from which it is read on in the order that is asked for: beyond the record of this number, or
 * beyond all that were kept at this moment.
 */
export interface AuditPlace {
  readonly atMs: number;
  readonly sequence?: number | undefined;
}

export interface AuditFollowOptions extends CallOptions {
  /** `id` of the last record that was seen. */
  readonly after?: string | undefined;
}

export interface AuditEvent {
  /** The record's number at its host, in digits. */
  readonly id: string;
  /** When its host kept it: rises with the number, which the record's own time need not. */
  readonly atMs: number;
  readonly record: AuditRecord & { readonly bootId?: string | undefined };
}

export interface AuditPage {
  readonly events: readonly AuditEvent[];
  /** How far the log was looked through; undefined on the last page. */
  readonly next: { readonly atMs: number; readonly sequence: number } | undefined;
}

/** A record of a host's log, and the hash over it and all before it. */
export interface AuditLink {
  readonly sequence: number;
  /** 64 hex digits. */
  readonly chain: string;
}

/** What was found of a part of a host's log. */
export interface AuditCheck {
  /** How many were checked. */
  readonly records: number;
  readonly problems: readonly AuditProblem[];
  /** The last that was checked. */
  readonly last: AuditLink;
  /** There is nothing after it. */
  readonly isEnd: boolean;
}

export interface AuditProblem {
  /** Name of the segment; '' where it is about none. */
  readonly file: string;
  /** 1-based; 0 where it is about none. */
  readonly line: number;
  readonly what: string;
}

// The machine.

export interface Progress {
  /** What is being done, in words. */
  readonly step: string;
  readonly done: number;
  /** Undefined while it is not known. */
  readonly total?: number | undefined;
}

export interface ProgressOptions extends CallOptions {
  readonly progress: (progress: Progress) => void;
}

/** Of all metadata servers of a host, since its daemon started. */
export interface MetadataTotals {
  readonly requests: number;
  /** By reason. */
  readonly rejected: Readonly<Record<string, number>>;
}

export interface HostStatus {
  readonly name: string;
  readonly version: string;
  readonly startedAtMs: number;
  readonly accelerator: 'kvm' | 'tcg';
  readonly cpus: number;
  readonly memoryBytes: number;
  readonly freeMemoryBytes: number;
  readonly diskBytes: number;
  readonly freeDiskBytes: number;
  /** Where this is a manager whose hosts are elsewhere: how many of them are connected, and summed up here. */
  readonly hosts?: number | undefined;
  /** Why something does not work as it should, in words; empty when all is well. */
  readonly warnings: readonly string[];
  /** What device processes run that are started now. */
  readonly deviceVersion: string;
  /** The process that holds what outlives device processes. */
  readonly keeper: DeviceVersion;
  readonly metadataServers: MetadataTotals;
  readonly vms: readonly {
    readonly name: string;
    /** Undefined while none serves it. */
    readonly deviceVersion?: string | undefined;
    /** Replicas of its tree that are connected. */
    readonly replicas: number;
    readonly outdated: boolean;
  }[];
}
