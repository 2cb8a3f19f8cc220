import { createRoute, z } from '@hono/zod-openapi';
import {
  binaryBody,
  body,
  changing,
  eventStream,
  Flag,
  IdempotencyHeaders,
  json,
  problems,
  Revision,
  StreamHeaders,
  security,
  Time,
  VmParams,
  yaml,
  yamlBody,
} from './common.ts';

export const EntryShape = z
  .object({
    path: z.string(),
    kind: z.enum(['file', 'directory', 'symlink']),
    madeBy: z.enum(['outside', 'guest']),
    sizeBytes: z.int(),
    dataRevision: Revision,
    revision: Revision,
    uid: z.int(),
    gid: z.int(),
    mode: z.string().openapi({ example: '0440' }),
    modifiedAt: Time,
    worldReadable: z.boolean().openapi({ description: 'Every program in the guest may read it.' }),
    burned: z.boolean().openapi({ description: 'A `once` value that was read.' }),
    rule: z.string(),
    owner: z.string().optional().openapi({ description: 'Name of the uid, where the policy gives one.' }),
    group: z.string().optional(),
    acl: z.string().optional().openapi({
      description: 'What the ACL has beyond the mode.',
      example: 'user:1000:r--,group::r--,mask::r--',
    }),
    changedAt: Time.optional().openapi({ description: 'Of the last change of anything.' }),
  })
  .openapi('TreeEntry');

export const ValueShape = {
  text: z.string().optional().openapi({ description: 'The value of a file that is UTF-8.' }),
  base64: z.string().optional().openapi({ description: 'The value of any other file.' }),
  target: z.string().optional().openapi({ description: 'Where a symlink points.' }),
};

export const DirectoryShape = z
  .object({ revision: Revision, entries: z.array(EntryShape), more: z.boolean() })
  .openapi('Directory');

export const TreeShape = z
  .object({
    revision: Revision,
    entries: z.array(
      z.object({
        ...EntryShape.shape,
        ...ValueShape,
        withheld: z.boolean().optional().openapi({ description: 'A value that your role may not read.' }),
      }),
    ),
  })
  .openapi('Tree');

export const EditResultShape = z
  .object({
    revision: Revision,
    changes: z.int(),
    dataRevision: Revision.optional().openapi({ description: 'After a PUT: the one to give in `If-Match`.' }),
    notApplied: z.array(z.string()).openapi({
      description:
        'Connected replicas that had not applied it after 2 s. When empty, a program that opens the file now sees it.',
    }),
  })
  .openapi('EditResult');

const pathParam = z.string().openapi({
  param: { name: 'path', in: 'path' },
  description:
    'Names with "/" between them, each percent-encoded as UTF-8. ".", ".." and empty names are refused; the root is an empty path.',
  example: 'secrets/db-password',
});
export const MetadataParams = z.object({ ...VmParams.shape, path: pathParam });
const path = '/v1/vms/{name}/metadata/{path}';

export const MetadataQuery = z.strictObject({
  view: z.enum(['value', 'stat', 'below', 'tree']).default('value').openapi({
    description:
      'value: the bytes of a file, or the entries of a directory. stat: what is known of it, without the value. below: that of it and of all below it, a directory before what is in it, in pages. tree: it and all below it, with values, at one revision.',
  }),
  after: z.string().max(4096).optional().openapi({
    description: 'Of a directory: the entries after this name. With the view `below`: those after this absolute path.',
  }),
  limit: z.coerce.number().int().min(1).max(1000).default(1000),
});

export const readMetadata = createRoute({
  operationId: 'readMetadata',
  method: 'get',
  path,
  tags: ['Metadata'],
  summary: 'Read a file or a directory',
  description:
    'A file’s bytes come as they are; `ETag` is its data revision. `Porthole-Kind` says what it is. A viewer reads only what every program in the guest may read.',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: {
    params: MetadataParams,
    query: MetadataQuery,
    headers: z.object({ 'if-none-match': z.string().max(256).optional() }),
  },
  responses: {
    200: {
      description: 'The value, the directory, or what the view says.',
      content: {
        'application/octet-stream': { schema: z.string().openapi({ format: 'binary' }) },
        'application/json': { schema: z.union([DirectoryShape, EntryShape, TreeShape]) },
      },
    },
    304: { description: 'The value is still the one of `If-None-Match`.' },
    ...problems('VM_NOT_FOUND', 'PATH_NOT_FOUND', 'NOT_DIRECTORY', 'BAD_PATH', 'BURNED', 'TOO_LARGE'),
  },
});

const conditionHeaders = {
  'if-match': z
    .string()
    .max(256)
    .optional()
    .openapi({ description: 'The data revision that it must have, quoted; or `*`: it must exist.' }),
  'if-none-match': z.enum(['*']).optional().openapi({ description: '`*`: it must not exist.' }),
};

const edited = [
  'VM_NOT_FOUND',
  'PATH_NOT_FOUND',
  'NOT_DIRECTORY',
  'IS_DIRECTORY',
  'NOT_EMPTY',
  'BAD_PATH',
  'BAD_SPEC',
  'PRECONDITION_FAILED',
] as const;

export const WriteQuery = z.strictObject({
  kind: z.enum(['file', 'directory', 'symlink']).default('file').openapi({
    description: 'symlink: the body is its target. directory: there is no body.',
  }),
});

export const writeMetadata = createRoute({
  operationId: 'writeMetadata',
  method: 'put',
  path,
  tags: ['Metadata'],
  summary: 'Write a file',
  description:
    'The body is the value, as it is. Missing directories are made. Answers when the write is durable and every connected replica has applied it, 2 s later at most.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: MetadataParams,
    query: WriteQuery,
    headers: z.object({ ...conditionHeaders, ...IdempotencyHeaders.shape }),
    body: binaryBody,
  },
  responses: { 200: json(EditResultShape, 'Written.'), ...problems(...edited, ...changing) },
});

export const RemoveQuery = z.strictObject({ recursive: Flag });

export const removeMetadata = createRoute({
  operationId: 'removeMetadata',
  method: 'delete',
  path,
  tags: ['Metadata'],
  summary: 'Remove a file or a directory',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: MetadataParams,
    query: RemoveQuery,
    headers: z.object({ 'if-match': conditionHeaders['if-match'], ...IdempotencyHeaders.shape }),
  },
  responses: { 200: json(EditResultShape, 'Removed.'), ...problems(...edited, ...changing) },
});

export const TreePath = z.string().max(4096).openapi({ description: 'Absolute: `/secrets/db`.' });

export const TransactionShape = z
  .strictObject({
    conditions: z
      .array(
        z.union([
          z.strictObject({ path: TreePath, exists: z.boolean() }),
          z.strictObject({ path: TreePath, dataRevision: Revision }),
        ]),
      )
      .max(1000)
      .default([]),
    edits: z
      .array(
        z.discriminatedUnion('op', [
          z.strictObject({
            op: z.literal('put'),
            path: TreePath,
            text: z.string().optional(),
            base64: z.base64().optional(),
          }),
          z.strictObject({ op: z.literal('directory'), path: TreePath }),
          z.strictObject({ op: z.literal('symlink'), path: TreePath, target: z.string().min(1).max(4095) }),
          z.strictObject({ op: z.literal('remove'), path: TreePath, recursive: z.boolean().default(false) }),
        ]),
      )
      .min(1)
      .max(1000),
  })
  .superRefine(({ edits }, context) => {
    for (const [i, edit] of edits.entries())
      if (edit.op === 'put' && (edit.text === undefined) === (edit.base64 === undefined))
        context.addIssue({ code: 'custom', path: ['edits', i], message: 'give either text or base64' });
  })
  .openapi('Transaction');

export const editMetadata = createRoute({
  operationId: 'editMetadata',
  method: 'post',
  path: '/v1/vms/{name}/transactions',
  tags: ['Metadata'],
  summary: 'Change many paths at once, or none',
  description: 'All edits are one commit when all conditions hold; a guest sees all of them or none.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, headers: IdempotencyHeaders, body: body(TransactionShape) },
  responses: { 200: json(EditResultShape, 'Committed.'), ...problems(...edited, ...changing) },
});

export const Warnings = z.array(
  z.object({ line: z.int(), column: z.int(), path: z.string(), what: z.string(), fix: z.string() }),
);

export const exportSpec = createRoute({
  operationId: 'exportSpec',
  method: 'get',
  path: '/v1/vms/{name}/spec',
  tags: ['Metadata'],
  summary: 'Export metadata and policy as YAML',
  description: 'What `importSpec` reads back. It has every secret of the VM. `ETag` is the tree’s revision.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: { params: VmParams },
  responses: { 200: yaml('A spec.'), ...problems('VM_NOT_FOUND', 'TOO_LARGE') },
});

export const ImportResultShape = z
  .object({ revision: Revision, changes: z.int(), warnings: Warnings, notApplied: z.array(z.string()) })
  .openapi('ImportResult');

/** Of what replaces all of something. */
const WholeHeaders = z.object({ 'if-match': z.string().max(256).optional(), ...IdempotencyHeaders.shape });

export const importSpec = createRoute({
  operationId: 'importSpec',
  method: 'put',
  path: '/v1/vms/{name}/spec',
  tags: ['Metadata'],
  summary: 'Make metadata and policy what a spec says',
  description:
    'One commit. What guests made stays. `If-Match`: the tree’s revision, as of `exportSpec`. A `file:` value is refused: give the value itself.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    headers: WholeHeaders,
    body: yamlBody,
  },
  responses: {
    200: json(ImportResultShape, 'Loaded.'),
    ...problems('VM_NOT_FOUND', 'BAD_SPEC', 'PRECONDITION_FAILED', ...changing),
  },
});

export const watchMetadata = createRoute({
  operationId: 'watchMetadata',
  method: 'get',
  path: '/v1/vms/{name}/changes',
  tags: ['Metadata'],
  summary: 'Follow what changes in the tree',
  description:
    'Server-sent events, ids being revisions: `start` first, then a `commit` for each commit that changed something at or below `path`; `at` says that nothing there changed up to its revision. Values are not in it. After a break: `Last-Event-ID`. COMPACTED, as an answer or as an event `gone`: read anew, then follow from what was read.',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    headers: StreamHeaders,
    query: z.strictObject({
      path: TreePath.default('/'),
      from: Revision.optional().openapi({ description: 'Follow what came after this revision; default: now.' }),
    }),
  },
  responses: {
    200: eventStream('Until the client closes it.'),
    ...problems('VM_NOT_FOUND', 'BAD_PATH', 'COMPACTED', 'BAD_SPEC'),
  },
});

export const getPolicy = createRoute({
  operationId: 'getPolicy',
  method: 'get',
  path: '/v1/vms/{name}/policy',
  tags: ['Policy'],
  summary: 'The policy as YAML',
  description:
    'The sections `users`, `groups`, `policy`, `quota` and `ninep` of a spec. `ETag` is the revision of their last change.',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: { params: VmParams },
  responses: { 200: yaml('The policy.'), ...problems('VM_NOT_FOUND') },
});

export const setPolicy = createRoute({
  operationId: 'setPolicy',
  method: 'put',
  path: '/v1/vms/{name}/policy',
  tags: ['Policy'],
  summary: 'Set the policy',
  description: 'Replaces all of it. A mistake changes nothing, and is told with its line.',
  'x-access': 'operator',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    headers: WholeHeaders,
    body: yamlBody,
  },
  responses: {
    200: json(
      z.object({ revision: Revision, policyRevision: Revision, warnings: Warnings, notApplied: z.array(z.string()) }),
      'Set.',
    ),
    ...problems('VM_NOT_FOUND', 'BAD_SPEC', 'PRECONDITION_FAILED', ...changing),
  },
});

export const UserId = z.coerce.number().int().min(0).max(0xffff_fffe);

export const FurtherGroups = z
  .union([UserId.transform((one) => [one]), z.array(UserId).max(64)])
  .default([])
  .openapi({ type: 'array', items: { type: 'integer' }, description: 'Further groups.' });

export const VerdictShape = z.object({
  allowed: z.boolean(),
  because: z.string(),
  rule: z.string().optional().openapi({ description: 'Where that is written; absent where no rule says it.' }),
});

export const explainPolicy = createRoute({
  operationId: 'explainPolicy',
  method: 'get',
  path: '/v1/vms/{name}/policy/explain',
  tags: ['Policy'],
  summary: 'What a caller may do with a path, and by which rule',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: {
    params: VmParams,
    query: z.strictObject({
      path: TreePath,
      uid: UserId,
      gid: UserId.optional().openapi({ description: 'Default: the uid.' }),
      group: FurtherGroups,
    }),
  },
  responses: {
    200: json(
      z
        .object({
          revision: Revision,
          path: z.string(),
          type: z.enum(['directory', 'file', 'symlink']),
          madeBy: z.enum(['outside', 'guest']),
          uid: z.int(),
          gid: z.int(),
          mode: z.string(),
          shownMode: z.string(),
          read: VerdictShape,
          write: VerdictShape,
          search: VerdictShape,
          stoppedAt: z
            .string()
            .optional()
            .openapi({ description: 'The first directory on the way that may not be searched.' }),
          hidden: z.boolean(),
          rule: z.string(),
          keys: z.array(z.object({ key: z.string(), value: z.string(), rule: z.string() })),
        })
        .openapi('Explanation'),
      'The decision, and why.',
    ),
    ...problems('VM_NOT_FOUND', 'PATH_NOT_FOUND', 'NOT_DIRECTORY', 'BAD_PATH'),
  },
});
