/** What a manager asks of a host: the calls of `HostPort`. */
import * as z from 'zod';
import {
  type Attachment,
  type AuditCheck,
  type AuditEvent,
  type AuditLink,
  type GuestInside,
  type HostStatus,
  latestMs,
  type PolicyComparison,
  type SeenEntry,
  type TreeCommit,
  type TreeEntry,
} from '../records/index.ts';
import type { AuditRecord, Explanation } from '../tree/index.ts';
import { Bytes } from './calls.ts';
import { FileProblemMessage } from './uplink-error.ts';

const whole = z.int().nonnegative();
const time = whole.max(latestMs);
/** Of a file system or a clock: also before the epoch, and between milliseconds. */
const instant = z.number().min(-latestMs).max(latestMs);
const nothing = z.null();
const text = z.string();
const path = z.string().max(8 * 1024);

const vm = z.strictObject({ id: z.string().max(64), name: z.string().max(64) });
const once = z.strictObject({ id: z.string().max(64), isRepeat: z.boolean() }).optional();
const by = z.string().optional();
const ofVm = <S extends z.ZodRawShape>(shape: S) => z.strictObject({ vm, ...shape });

const moment = { epoch: whole, revision: whole };
const TreeAnswer = z.object(moment);

const treeEntry = {
  path,
  kind: z.enum(['file', 'directory', 'symlink']),
  madeBy: z.enum(['outside', 'guest']),
  sizeBytes: whole,
  dataRevision: whole,
  revision: whole,
  uid: whole,
  gid: whole,
  mode: whole,
  mtimeMs: instant,
  worldReadable: z.boolean(),
  burned: z.boolean(),
  rule: text,
  owner: text.optional(),
  group: text.optional(),
  acl: text.optional(),
  changedMs: z.number().optional(),
};
const Entry = z.object(treeEntry) satisfies z.ZodType<TreeEntry>;

const Edit = z.discriminatedUnion('op', [
  z.strictObject({ op: z.literal('put'), path, bytes: Bytes }),
  z.strictObject({ op: z.literal('directory'), path }),
  z.strictObject({ op: z.literal('symlink'), path, target: path }),
  z.strictObject({ op: z.literal('remove'), path, recursive: z.boolean() }),
]);
const Condition = z.union([
  z.strictObject({ path, exists: z.boolean() }),
  z.strictObject({ path, dataRevision: whole }),
]);

const Commit = z.object({
  ...moment,
  changes: z.array(z.object({ path, what: z.enum(['created', 'changed', 'attributes', 'removed']) })),
  policyChanged: z.boolean(),
}) satisfies z.ZodType<TreeCommit>;

const Caller = z.strictObject({
  uid: whole,
  gid: whole,
  pid: whole,
  groups: z.array(whole).optional(),
  program: path.optional(),
  unit: path.optional(),
});

const verdict = z.object({ allowed: z.boolean(), because: text, rule: text.optional() });
const ExplanationMessage = z
  .object({
    path,
    type: z.enum(['directory', 'file', 'symlink']),
    madeBy: z.enum(['outside', 'guest']),
    uid: whole,
    gid: whole,
    mode: whole,
    shownMode: whole,
    read: verdict,
    write: verdict,
    search: verdict,
    stoppedAt: text.optional(),
    hidden: z.boolean(),
    rule: text,
    keys: z.array(z.object({ key: text, value: text, rule: text })),
  })
  // Absent on the wire where it is undefined.
  .transform(({ stoppedAt, ...rest }) => ({ ...rest, stoppedAt })) satisfies z.ZodType<Explanation>;

const page = { path, after: path.optional(), limit: z.int().positive() };
const right = z.enum(['see', 'read', 'write', 'search']);
const kind = treeEntry.kind;
const Seen = z
  .object({
    path,
    kind,
    madeBy: treeEntry.madeBy,
    uid: whole,
    gid: whole,
    mode: whole,
    may: z.array(right),
    read: verdict,
    write: verdict,
    search: verdict,
    stoppedAt: text.optional(),
    rule: text,
  })
  .transform(({ stoppedAt, ...rest }) => ({ ...rest, stoppedAt })) satisfies z.ZodType<SeenEntry>;

const ids = z.array(whole).optional();
const names = z.array(text).optional();
const Compared = z.object({
  ...moment,
  warnings: z.array(FileProblemMessage),
  callers: z.array(
    z.object({ uids: ids, gids: ids, programs: names, units: names, names: z.array(text) }).transform((one) => ({
      uids: one.uids,
      gids: one.gids,
      programs: one.programs,
      units: one.units,
      names: one.names,
    })),
  ),
  callersLeftOut: whole,
  entries: z.array(
    z.object({
      path,
      kind,
      changes: z.array(z.object({ callers: z.array(whole), gained: z.array(right), lost: z.array(right) })),
    }),
  ),
  more: z.boolean(),
}) satisfies z.ZodType<PolicyComparison>;

const Machine = z.strictObject({
  memoryMiB: whole,
  vcpus: whole,
  disk: path.optional(),
  diskFormat: z.enum(['qcow2', 'raw']).optional(),
  kernel: path.optional(),
  initrd: path.optional(),
  kernelArguments: text.optional(),
});

const words = z.array(text);
const AttachmentMessage = z.object({
  socketPath: path,
  tag: text,
  qemu: words,
  cloudHypervisor: words,
  libvirtXml: text,
  libvirtDomain: text,
  mount: text,
  vsock: z
    .object({
      hostPath: path,
      qemu: words,
      mount: text,
      ofOthers: z.object({
        socketPath: path,
        cloudHypervisor: words,
        firecracker: z.object({ guest_cid: whole, uds_path: path }),
        mount: text,
      }),
    })
    .exactOptional(),
  metadataServer: z
    .object({
      serial: z.object({ socketPath: path, qemu: words, libvirtXml: text }).exactOptional(),
      vsock: z.object({ socketPath: path, port: whole }).exactOptional(),
      sockets: z.object({ any: path, privileged: path }).exactOptional(),
    })
    .exactOptional(),
  ninep: z.object({ socketPath: path, qemu: words, libvirtXml: text, mount: text }).exactOptional(),
}) satisfies z.ZodType<Attachment>;

const DeviceVersion = z.object({ version: text, outdated: z.boolean() });

const room = { totalBytes: z.number(), freeBytes: z.number() };
const Inside = z.object({
  status: z
    .object({
      at: text,
      uptimeSeconds: z.number(),
      load: z.tuple([z.number(), z.number(), z.number()]),
      memory: z.object({ totalBytes: z.number(), availableBytes: z.number() }),
      swap: z.object(room),
      disks: z.array(z.object({ mount: text, ...room })),
      agent: z.object({ version: text, pid: z.number(), startedAt: text }),
    })
    .exactOptional(),
  statusAgeMs: z.number().exactOptional(),
  processes: z
    .array(
      z.object({
        pid: z.number(),
        user: text,
        uid: z.number(),
        command: text,
        cpuPercent: z.number(),
        memoryBytes: z.number(),
        state: text,
      }),
    )
    .exactOptional(),
  processesAgeMs: z.number().exactOptional(),
  problems: words,
}) satisfies z.ZodType<GuestInside>;

const auditFilter = {
  account: z.string().max(64).optional(),
  vms: z.strictObject({ names: z.array(text), prefixes: z.array(text) }).optional(),
  vm: z.string().max(64).optional(),
  path: path.optional(),
  uid: whole.optional(),
  operation: text.optional(),
  verdict: z.enum(['allowed', 'denied']).optional(),
};
const AuditRecordMessage = z.object({
  timeMs: time,
  vm: z.string().max(64),
  way: text,
  operation: text,
  path: text,
  uid: whole,
  gid: whole,
  pid: whole,
  program: text.optional(),
  by: text.optional(),
  revision: whole,
  verdict: z.enum(['allowed', 'denied']),
  rule: text,
  errno: text.optional(),
  dropped: whole.optional(),
  droppedOthers: whole.optional(),
  bootId: text.optional(),
}) satisfies z.ZodType<AuditRecord>;
const Event = z.object({
  id: z.string().regex(/^\d{1,15}$/),
  atMs: time,
  record: AuditRecordMessage,
}) satisfies z.ZodType<AuditEvent>;

const Link = z.object({ sequence: whole, chain: z.string().regex(/^[0-9a-f]{64}$/) }) satisfies z.ZodType<AuditLink>;
const Check = z.object({
  records: whole,
  problems: z.array(z.object({ file: text, line: whole, what: text })),
  last: Link,
  isEnd: z.boolean(),
}) satisfies z.ZodType<AuditCheck>;

const Status = z.object({
  name: text,
  version: text,
  startedAtMs: time,
  accelerator: z.enum(['kvm', 'tcg']),
  cpus: whole,
  memoryBytes: whole,
  freeMemoryBytes: whole,
  diskBytes: whole,
  freeDiskBytes: whole,
  warnings: words,
  deviceVersion: text,
  keeper: DeviceVersion,
  metadataServers: z.object({ requests: whole, rejected: z.record(z.string(), whole) }),
  vms: z.array(z.object({ name: text, deviceVersion: text.optional(), replicas: whole, outdated: z.boolean() })),
}) satisfies z.ZodType<HostStatus>;

const shown = { path, by };

export const hostCalls = {
  treeStat: { args: ofVm({ path }), answer: z.object({ ...moment, entry: Entry }) },
  treeList: {
    args: ofVm({
      path,
      below: z.boolean().optional(),
      after: text.optional(),
      limit: z.int().positive().optional(),
    }),
    answer: z.object({ ...moment, entries: z.array(Entry), more: z.boolean() }),
  },
  treeRead: { args: ofVm(shown), answer: z.object({ ...moment, entry: Entry, bytes: Bytes }) },
  treeWalk: {
    args: ofVm({ ...shown, mostBytes: whole }),
    answer: TreeAnswer,
    item: z.object({ ...treeEntry, bytes: Bytes.optional() }),
  },
  treeEdit: {
    args: ofVm({ edits: z.array(Edit), conditions: z.array(Condition), once }),
    answer: z.object({ ...moment, changes: whole, dataRevisions: z.array(z.tuple([path, whole])) }),
  },
  treeExport: { args: ofVm({ path: path.optional(), by }), answer: z.object({ ...moment, text }) },
  treeImport: {
    args: ofVm({ text, once, ifRevision: whole.optional() }),
    answer: z.object({ ...moment, changes: whole, warnings: z.array(FileProblemMessage) }),
  },
  treePolicy: { args: ofVm({}), answer: z.object({ ...moment, text, policyRevision: whole }) },
  treeSetPolicy: {
    args: ofVm({ text, once, ifRevision: whole.optional() }),
    answer: z.object({ ...moment, policyRevision: whole, warnings: z.array(FileProblemMessage) }),
  },
  treeExplain: {
    args: ofVm({ caller: Caller, path }),
    answer: z.object({ ...moment, explanation: ExplanationMessage }),
  },
  treeView: {
    args: ofVm({ caller: Caller, ...page, policy: text.optional() }),
    answer: z.object({ ...moment, entries: z.array(Seen), more: z.boolean(), warnings: z.array(FileProblemMessage) }),
  },
  treeComparePolicy: { args: ofVm({ policy: text, ...page }), answer: Compared },
  treeWatch: { args: ofVm({ path, from: whole.optional() }), answer: TreeAnswer, item: Commit },
  treeApplied: { args: ofVm({ revision: whole, timeoutMs: whole }), answer: words },
  consoleLog: {
    args: ofVm({ offset: whole.optional(), tailBytes: whole.optional(), mostBytes: whole }),
    answer: z.object({ start: whole, offset: whole, end: whole, bytes: Bytes }),
  },
  consoleStream: {
    args: ofVm({ offset: whole.optional() }),
    answer: z.object({ offset: whole }),
    item: z.object({ offset: whole, bytes: Bytes }),
  },
  consoleWrite: { args: ofVm({ bytes: Bytes }), answer: nothing },
  checkSpec: { args: z.strictObject({ text }), answer: z.array(FileProblemMessage) },
  attachment: { args: ofVm({ machine: Machine }), answer: AttachmentMessage },
  boot: { args: ofVm({ once }), answer: z.object({ bootId: text, number: whole }) },
  statistics: {
    args: ofVm({}),
    answer: z.object({ atMs: instant, values: z.record(z.string(), z.number()) }),
  },
  inside: { args: ofVm({ by }), answer: Inside },
  renewDevice: { args: ofVm({}), answer: DeviceVersion },
  audit: {
    args: z.strictObject({
      ...auditFilter,
      fromMs: z.number().optional(),
      untilMs: z.number().optional(),
      newestFirst: z.boolean().optional(),
      after: z.strictObject({ atMs: z.int(), sequence: whole.optional() }).optional(),
      limit: whole,
    }),
    answer: z
      .object({ events: z.array(Event), next: z.object({ atMs: time, sequence: whole }).optional() })
      .transform(({ events, next }) => ({ events, next })),
  },
  checkAudit: { args: z.strictObject({ after: Link.optional() }), answer: Check },
  followAudit: { args: z.strictObject({ ...auditFilter, after: text.optional() }), answer: nothing, item: Event },
  status: { args: nothing, answer: Status },
} as const;
export type HostCalls = typeof hostCalls;
