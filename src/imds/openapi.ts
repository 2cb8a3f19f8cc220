/** The OpenAPI 3.1 document of the native API, made from its rows. */
import * as z from 'zod';
import { batchInput, nativeRoutes } from './native-routes.ts';
import { inputs, outputs } from './native-schemas.ts';

interface Operation {
  readonly method: 'get' | 'post';
  readonly path: string;
  readonly operationId: string;
  readonly summary: string;
  readonly input?: z.ZodType;
  readonly output: z.ZodType;
  readonly type?: string;
  readonly query?: string;
  /** Status codes beside those that every request can have. */
  readonly others: Readonly<Record<string, string>>;
  readonly isOpen?: true;
}

const decided = { 403: 'EACCES or EPERM.', 404: 'ENOENT or ESTALE.', 409: 'Another errno.', 503: 'EIO, or too busy.' };

/** Every request, those of `nativeRoutes` last. */
export const nativeOperations = (): readonly Operation[] => [
  {
    method: 'post',
    path: '/porthole/v1/token',
    operationId: 'claimToken',
    summary: "Gives out this boot's token, once. Until it is used, the same nonce gets the same token again.",
    input: inputs.claim,
    output: outputs.token,
    others: { 403: 'The channel is none that takes root in the guest.', 409: 'Somebody else has it.' },
    isOpen: true,
  },
  {
    method: 'post',
    path: '/porthole/v1/token/return',
    operationId: 'returnToken',
    summary: 'Hands the token back, before an orderly stop: it is worth nothing then, and may be claimed once more.',
    output: outputs.nothing,
    others: {},
  },
  {
    method: 'get',
    path: '/porthole/v1/tree',
    operationId: 'tree',
    summary: 'All attributes and rules, and the bytes of what everybody may read.',
    output: outputs.tree,
    others: {},
  },
  {
    method: 'get',
    path: '/porthole/v1/watch',
    operationId: 'watch',
    summary:
      'Every commit after a revision, as lines of JSON; a line without changes now and then. Ends with the boot.',
    output: outputs.line,
    type: 'application/x-ndjson',
    query: 'from',
    others: {
      410: 'Compacted: commits after that revision are forgotten. Take the tree again.',
      503: 'Too many streams.',
    },
  },
  {
    method: 'post',
    path: '/porthole/v1/applied',
    operationId: 'applied',
    summary: 'The copy of a stream (`X-Porthole-Stream`) has this revision: who writes outside is answered.',
    input: inputs.applied,
    output: outputs.nothing,
    others: { 404: 'There is no such stream.' },
  },
  {
    method: 'post',
    path: '/porthole/v1/batch',
    operationId: 'batch',
    summary:
      'Several of the requests below, in order, each decided by itself, up to the first that is refused, or until answers come to 2 MiB.',
    input: batchInput,
    output: z.object({ results: z.array(z.record(z.string(), z.unknown())) }),
    others: {},
  },
  ...nativeRoutes.map(
    (route): Operation => ({
      method: 'post',
      path: `/porthole/v1/${route.operationId}`,
      operationId: route.operationId,
      summary: route.summary,
      input: route.input,
      output: route.output,
      others: decided,
    }),
  ),
];

const schemaOf = (schema: z.ZodType, io: 'input' | 'output'): unknown => {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, target: 'draft-2020-12', reused: 'inline' }) as {
    readonly $schema?: string;
  };
  return rest;
};

const common = {
  400: 'The request makes no sense.',
  401: "There is no token, or it is not this boot's.",
  429: 'Too many requests, or bytes of answers.',
} as const;

const build = (): unknown => {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const { method, path, operationId, summary, input, output, type, query, others, isOpen } of nativeOperations()) {
    const refusals = Object.entries({ ...common, ...others });
    paths[path] = {
      [method]: {
        operationId,
        summary,
        ...(isOpen && { security: [] }),
        ...(query !== undefined && {
          parameters: [{ name: query, in: 'query', required: true, schema: { type: 'integer', minimum: 0 } }],
        }),
        ...(input !== undefined && {
          requestBody: { required: true, content: { 'application/json': { schema: schemaOf(input, 'input') } } },
        }),
        responses: {
          200: {
            description: 'As asked.',
            content: { [type ?? 'application/json']: { schema: schemaOf(output, 'output') } },
          },
          ...Object.fromEntries(refusals.map(([status, description]) => [status, { description }])),
        },
      },
    };
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Porthole metadata server', version: '1' },
    security: [{ token: [] }],
    paths,
    components: {
      securitySchemes: { token: { type: 'http', scheme: 'bearer', description: "This boot's token." } },
    },
  };
};

let made: unknown;

export const openApiDocument = (): unknown => (made ??= build());
