/** What the native API takes and answers, as schemas: they check what comes in, and the OpenAPI document is made of them. */
import * as z from 'zod';

const MAX_ID = 0xffff_fffe;
const id = z.int().min(0).max(MAX_ID);
const whole = z.int().min(0);
const permissionBits = z.int().min(0).max(0o7777);

export const Caller = z
  .strictObject({
    uid: id,
    gid: id,
    pid: z.int().min(0).max(0x7fff_ffff),
    groups: z.array(id).max(1024).optional().describe('Supplementary groups.'),
    program: z.string().startsWith('/').max(4096).optional().describe('Absolute path of the executable, as proved.'),
    unit: z.string().min(1).max(256).optional().describe('systemd unit, as proved.'),
  })
  .describe('Who asks, in the guest. The server decides by it.');

/** An inode number, or an absolute path, whose every name is looked up in the caller's name. */
const Place = z.union([z.int().min(1), z.string().startsWith('/').max(16_384)]);

const base64 = (maxBytes: number) =>
  z
    .base64()
    .max(Math.ceil(maxBytes / 3) * 4)
    .describe(`Base64 of at most ${maxBytes} bytes.`);
const Bytes = base64(1024 * 1024);

const Name = z.string().min(1).max(255);
const Sequence = z
  .int()
  .min(1)
  .optional()
  .describe('Counts up in each boot. A change that comes again with its number has its effect once.');

const of = { caller: Caller, node: Place };
const inside = { caller: Caller, directory: Place, name: Name, sequence: Sequence };

export const inputs = {
  claim: z.strictObject({ nonce: z.string().max(128).describe('22 to 128 of A-Z, a-z, 0-9, "_" and "-".') }),
  nothing: z.strictObject({}),
  applied: z.strictObject({ stream: z.int().min(1), revision: whole }),
  of: z.strictObject(of),
  open: z.strictObject({ ...of, access: z.enum(['read', 'write', 'read-write']) }),
  read: z.strictObject({
    ...of,
    offset: whole,
    size: z
      .int()
      .min(0)
      .max(1024 * 1024),
  }),
  attribute: z.strictObject({ ...of, name: Name }),
  write: z.strictObject({
    ...of,
    sequence: Sequence,
    offset: whole,
    bytes: Bytes,
    append: z.boolean().default(false),
    truncate: z
      .boolean()
      .default(false)
      .describe('The truncation of an O_TRUNC open takes effect first, in the same commit.'),
    opened: z
      .boolean()
      .default(false)
      .describe('The caller has it open for writing, and was allowed to when it opened it.'),
  }),
  truncate: z.strictObject({ ...of, sequence: Sequence, size: whole, opened: z.boolean().default(false) }),
  create: z.strictObject({ ...inside, mode: permissionBits, umask: permissionBits.default(0) }),
  symlink: z.strictObject({ ...inside, target: z.string().min(1).max(4095) }),
  entry: z.strictObject(inside),
  rename: z.strictObject({
    ...inside,
    toDirectory: Place,
    toName: Name,
    exchange: z.boolean().default(false),
    noReplace: z.boolean().default(false),
  }),
  setattr: z.strictObject({
    ...of,
    sequence: Sequence,
    mode: permissionBits.optional(),
    uid: id.optional(),
    gid: id.optional(),
    atime: z.union([z.literal('now'), z.tuple([z.int(), whole.max(999_999_999)])]).optional(),
    mtime: z.union([z.literal('now'), z.tuple([z.int(), whole.max(999_999_999)])]).optional(),
  }),
  setxattr: z.strictObject({
    ...of,
    sequence: Sequence,
    name: Name,
    bytes: base64(64 * 1024),
    flags: z.int().min(0).max(3).default(0),
  }),
  removexattr: z.strictObject({ ...of, sequence: Sequence, name: Name }),
  forget: z.strictObject({ node: z.int().min(1) }),
} as const;

const Time = z.tuple([z.int(), whole]).describe('Seconds since 1970, and nanoseconds.');
const AclEntries = z.array(z.tuple([id, z.int().min(0).max(7)]));
const Acl = z.object({
  userObj: z.int(),
  groupObj: z.int(),
  other: z.int(),
  mask: z.int().describe('-1: none.'),
  users: AclEntries,
  groups: AclEntries,
});

export const NodeOut = z.object({
  ino: z.int(),
  parent: z.int().describe('0: it has lost its name, and lives on while somebody has it open.'),
  name: z.string(),
  lastPath: z.string().optional(),
  madeBy: z.enum(['outside', 'guest']),
  mode: z.int().describe('Type and permission bits, as decisions use them.'),
  uid: z.int(),
  gid: z.int(),
  acl: Acl.optional(),
  defaultAcl: Acl.optional(),
  nlink: z.int(),
  size: z.int(),
  bytes: z.string().optional().describe('Base64, of what everybody may read at any time; a link has its target.'),
  burned: z.boolean().optional(),
  dataRevision: z.int(),
  revision: z.int(),
  atime: Time,
  mtime: Time,
  ctime: Time,
});

const Usage = z.object({ bytes: z.int(), nodes: z.int() });
const PolicyOut = z
  .record(z.string(), z.unknown())
  .describe('Rules, users, groups and quota, as the tree was made with.');

export const outputs = {
  nothing: z.object({}),
  token: z.object({ token: z.string(), boot: z.string() }),
  tree: z.object({
    boot: z.string(),
    revision: z.int(),
    policy: PolicyOut,
    usage: Usage,
    nodes: z.array(NodeOut),
  }),
  line: z.object({
    revision: z.int(),
    heartbeat: z.literal(true).optional().describe('Nothing else is in this line.'),
    put: z.array(NodeOut).optional(),
    remove: z.array(z.int()).optional(),
    policy: PolicyOut.optional(),
    changes: z.array(z.object({ ino: z.int(), path: z.string(), what: z.string() })).optional(),
    usage: Usage.optional(),
  }),
  node: z.object({ node: NodeOut }),
  entries: z.object({ entries: z.array(z.object({ name: z.string(), ino: z.int(), type: z.int() })) }),
  opened: z.object({
    node: NodeOut,
    bytes: z
      .string()
      .optional()
      .describe('Base64 of all of it. Missing where it was opened for writing alone, and for `once`.'),
    once: z.literal(true).optional().describe('Reading it burns it: ask `read`.'),
  }),
  bytes: z.object({ bytes: z.string() }),
  outcome: z.object({ revision: z.int(), ino: z.int().describe('Of what was made, else 0.') }),
  refusal: z.object({ errno: z.string().describe('By name: `EACCES`.') }),
} as const;
