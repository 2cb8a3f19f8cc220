/** What the definitions of all routes share. One definition yields validation, the OpenAPI document and the client's types. */
import { z } from '@hono/zod-openapi';
import { roles, vmNamePattern } from '../../records/index.ts';
import { type ProblemCode, ProblemSchema, problemCodes } from '../problem.ts';

/** Who may use a route: these and all above. `none`: without a key. */
export type Access = 'admin' | 'operator' | 'viewer' | 'none';

/**
 * What a route is about, for keys that may touch certain VMs only and for accounts beside the first. self: whoever calls. vm:
 * the VM in its path. vms: VMs, of which its handler leaves out those that the key is not for. account: other things of the
 * account. cluster: what is no account's, for the account that has the cluster.
 */
export type Scope = 'self' | 'vm' | 'vms' | 'account' | 'cluster';

export const Role = z.enum(roles).openapi('Role', {
  description:
    'admin: everything. operator: VMs, metadata, policy, consoles, audit. viewer: reads what shows no secret and changes nothing.',
});

export const Time = z.iso.datetime().openapi({ example: '2026-05-01T12:00:00.000Z' });

/** Of a tree: `EPOCH.REVISION`. */
export const revisionPattern = /^(\d{1,10})\.(\d{1,15})$/;
export const Revision = z.string().regex(revisionPattern).openapi('Revision', {
  description: 'A moment of one VM’s tree. Opaque: compare for equality only.',
  example: '1.42',
});

export const VmName = z.string().regex(vmNamePattern, 'a DNS label: a-z, 0-9 and "-", at most 63, no "-" at its ends');
export const VmParams = z.object({ name: VmName.openapi({ param: { name: 'name', in: 'path' }, example: 'web-1' }) });

const maxPage = 500;
export const PageQuery = {
  limit: z.coerce.number().int().min(1).max(maxPage).default(100).openapi({ description: 'At most so many entries.' }),
  cursor: z.string().max(2048).optional().openapi({
    description: '`next` of the page before. Bound to the moment of the first page and to its filters.',
  }),
};
export const Next = z.string().optional().openapi({ description: 'The cursor of the next page; missing on the last.' });

/** A query flag: `?recursive=true`. */
export const Flag = z
  .enum(['true', 'false'])
  .default('false')
  .transform((value) => value === 'true');

export const IdempotencyHeaders = z.object({
  'idempotency-key': z
    .string()
    .regex(/^[\x21-\x7e]{1,255}$/, '1 to 255 visible ASCII characters')
    .optional()
    .openapi({
      description:
        'The request has its effect once: a repeat with the same key and body within a day gets the first answer again, with `Idempotent-Replay: true`.',
    }),
});

export const StreamHeaders = z.object({
  'last-event-id': z.string().max(128).optional().openapi({ description: 'Goes on after this event.' }),
});

export const json = <S extends z.ZodType>(schema: S, description: string) => ({
  description,
  content: { 'application/json': { schema } },
});

export const body = <S extends z.ZodType>(schema: S) => ({
  required: true,
  content: { 'application/json': { schema } },
});

export const yamlBody = {
  required: true,
  content: {
    'application/yaml': { schema: z.string().openapi({ description: 'YAML, as `docs/spec-file.md` says.' }) },
  },
} as const;

export const binaryBody = {
  required: true,
  content: { 'application/octet-stream': { schema: z.string().openapi({ format: 'binary' }) } },
} as const;

export const yaml = (description: string) => ({
  description,
  content: { 'application/yaml': { schema: z.string() } },
});

export const bytes = (description: string) => ({
  description,
  content: { 'application/octet-stream': { schema: z.string().openapi({ format: 'binary' }) } },
});

export const eventStream = (description: string) => ({
  description,
  content: { 'text/event-stream': { schema: z.string() } },
});

/** Problems that every route with a key can answer. */
const always: readonly ProblemCode[] = [
  'BAD_REQUEST',
  'NO_KEY',
  'BAD_KEY',
  'FORBIDDEN',
  'BAD_ORIGIN',
  'BAD_HOST',
  'TOO_MANY_REQUESTS',
  'INTERNAL',
  'UNAVAILABLE',
];
/** And those that change something. */
export const changing = [
  'TOO_LARGE',
  'IDEMPOTENCY_MISMATCH',
  'IDEMPOTENCY_BUSY',
  'FULL',
  'WRONG_MEDIA_TYPE',
] as const satisfies ProblemCode[];

type ProblemResponse = {
  description: string;
  content: { 'application/problem+json': { schema: typeof ProblemSchema } };
};

/** Responses by status, each telling the codes that come with it. */
export const problems = (...codes: readonly ProblemCode[]): Record<number, ProblemResponse> => {
  const byStatus = new Map<number, ProblemCode[]>();
  for (const code of new Set([...always, ...codes])) {
    const [status] = problemCodes[code];
    byStatus.set(status, [...(byStatus.get(status) ?? []), code]);
  }
  return Object.fromEntries(
    [...byStatus].map(([status, of]) => [
      status,
      {
        description: of.map((code) => `${code}: ${problemCodes[code][1]}.`).join(' '),
        content: { 'application/problem+json': { schema: ProblemSchema } },
      },
    ]),
  );
};

export const security = [{ key: [] }];
