/** What the policy means all over a tree, for one caller or for everybody; as it is, or as it would be. */
import { createRoute, z } from '@hono/zod-openapi';
import { json, problems, Revision, security, VmParams, yamlBody } from './common.ts';
import { EntryShape, FurtherGroups, TreePath, UserId, VerdictShape, Warnings } from './metadata.ts';

const page = {
  path: TreePath.default('/').openapi({ description: 'This, and all below it.' }),
  after: TreePath.optional().openapi({ description: 'What comes after this path: the last one of the page before.' }),
  limit: z.coerce.number().int().min(1).max(1000).default(1000),
};

const name = z.string().min(1).max(4096).optional();
const ViewQuery = z.strictObject({
  ...page,
  uid: UserId,
  gid: UserId.optional().openapi({ description: 'Default: the uid.' }),
  group: FurtherGroups,
  program: name.openapi({
    description:
      'Absolute path of the executable, as an agent proves it; without one, rules that name programs refuse.',
  }),
  unit: name.openapi({ description: 'systemd unit, likewise.' }),
});

const Rights = z.array(z.enum(['see', 'read', 'write', 'search'])).openapi({
  description: 'Of a directory, read is to list it, write to create and remove in it, search to pass through it.',
});

const more = z.boolean().openapi({ description: 'There are more after the last one of these.' });

export const PolicyViewShape = z
  .object({
    revision: Revision,
    entries: z.array(
      z.object({
        path: z.string(),
        kind: EntryShape.shape.kind,
        madeBy: EntryShape.shape.madeBy,
        uid: z.int(),
        gid: z.int(),
        mode: EntryShape.shape.mode,
        may: Rights.openapi({ description: 'What the caller may do, the way to it included.' }),
        read: VerdictShape,
        write: VerdictShape,
        search: VerdictShape,
        stoppedAt: z
          .string()
          .optional()
          .openapi({ description: 'The first directory on the way that the caller may not search.' }),
        rule: z.string(),
      }),
    ),
    more,
    warnings: Warnings,
  })
  .openapi('PolicyView');

const viewed = json(PolicyViewShape, 'A page, as of now; pages of one revision belong together.');
const refused = ['VM_NOT_FOUND', 'PATH_NOT_FOUND', 'NOT_DIRECTORY', 'BAD_PATH'] as const;
/** Of a policy in the body. */
const refusedToo = [...refused, 'BAD_SPEC', 'TOO_LARGE', 'WRONG_MEDIA_TYPE'] as const;

export const viewPolicy = createRoute({
  operationId: 'viewPolicy',
  method: 'get',
  path: '/v1/vms/{name}/policy/view',
  tags: ['Policy'],
  summary: 'What a caller may do all over the tree, and by which rules',
  description: 'Without values. The audit is not told.',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, query: ViewQuery },
  responses: { 200: viewed, ...problems(...refused) },
});

export const previewView = createRoute({
  operationId: 'previewView',
  method: 'post',
  path: '/v1/vms/{name}/policy/view',
  tags: ['Policy'],
  summary: 'What a caller could do all over the tree under another policy',
  description:
    'As `viewPolicy`, under the policy of the body, which is not set. Mistakes are told as `setPolicy` tells them.',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, query: ViewQuery, body: yamlBody },
  responses: { 200: viewed, ...problems(...refusedToo) },
});

export const PolicyPreviewShape = z
  .object({
    revision: Revision,
    warnings: Warnings,
    callers: z
      .array(
        z.object({
          uids: z.array(z.int()).optional().openapi({ description: 'Absent: any uid of which nothing is said.' }),
          gids: z.array(z.int()).optional().openapi({ description: 'Is in one of these groups, as the guest says.' }),
          programs: z.array(z.string()).optional().openapi({ description: 'Runs one of these, as an agent proves.' }),
          units: z.array(z.string()).optional(),
          names: z.array(z.string()).openapi({ description: 'Of these uids and gids, where a policy gives them.' }),
        }),
      )
      .openapi({
        description:
          'Everybody whom one of the two policies tells apart from others, and who owns what guests made: whoever is in one class may do the same. Who is in several groups may do what one of them may.',
      }),
    callersLeftOut: z.int().openapi({ description: 'Classes that were not compared, of more than 256.' }),
    entries: z.array(
      z.object({
        path: z.string(),
        kind: EntryShape.shape.kind,
        changes: z.array(
          z.object({
            callers: z.array(z.int()).openapi({ description: 'Indexes of `callers`.' }),
            gained: Rights,
            lost: Rights,
          }),
        ),
      }),
    ),
    more,
  })
  .openapi('PolicyPreview');

export const previewPolicy = createRoute({
  operationId: 'previewPolicy',
  method: 'post',
  path: '/v1/vms/{name}/policy/preview',
  tags: ['Policy'],
  summary: 'Who would gain or lose what by another policy',
  description:
    'Compares the policy of the body, which is not set, with the one that is, over the tree as it is and at this moment (`from`, `until`). Paths where nothing would change are left out. Mistakes are told as `setPolicy` tells them.',
  'x-access': 'viewer',
  'x-scope': 'vm',
  security,
  request: { params: VmParams, query: z.strictObject(page), body: yamlBody },
  responses: {
    200: json(PolicyPreviewShape, 'The difference.'),
    ...problems(...refusedToo),
  },
});
