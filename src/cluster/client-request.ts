/**
 * What a request of the API is made of, for programs of ours and for the console in a browser: nothing of Node, and nothing of
 * the definition when it runs. Its types come from the definition of the routes, to which the compiler holds the methods and
 * paths of the table.
 */
import type { RouteConfig, z } from '@hono/zod-openapi';
import type * as routes from './routes/index.ts';

type Module = typeof routes;
type Routes = {
  [K in keyof Module as Module[K] extends RouteConfig
    ? K extends Module[K]['operationId']
      ? K
      : never
    : never]: Module[K];
};
export type OperationId = keyof Routes;

const table: { readonly [K in OperationId]: readonly [Routes[K]['method'], Routes[K]['path']] } = {
  createVm: ['post', '/v1/vms'],
  listVms: ['get', '/v1/vms'],
  actOnVms: ['post', '/v1/vm-actions'],
  countVms: ['get', '/v1/counts'],
  getVm: ['get', '/v1/vms/{name}'],
  startVm: ['post', '/v1/vms/{name}/start'],
  stopVm: ['post', '/v1/vms/{name}/stop'],
  rebootVm: ['post', '/v1/vms/{name}/reboot'],
  deleteVm: ['delete', '/v1/vms/{name}'],
  getStatistics: ['get', '/v1/vms/{name}/statistics'],
  getTop: ['get', '/v1/vms/{name}/top'],
  renewDevice: ['post', '/v1/vms/{name}/device/renew'],
  getAttachment: ['get', '/v1/vms/{name}/attachment'],
  tellBoot: ['post', '/v1/vms/{name}/boots'],
  getConsole: ['get', '/v1/vms/{name}/console'],
  streamConsole: ['get', '/v1/vms/{name}/console/stream'],
  writeConsole: ['post', '/v1/vms/{name}/console/input'],
  readMetadata: ['get', '/v1/vms/{name}/metadata/{path}'],
  writeMetadata: ['put', '/v1/vms/{name}/metadata/{path}'],
  removeMetadata: ['delete', '/v1/vms/{name}/metadata/{path}'],
  editMetadata: ['post', '/v1/vms/{name}/transactions'],
  exportSpec: ['get', '/v1/vms/{name}/spec'],
  importSpec: ['put', '/v1/vms/{name}/spec'],
  watchMetadata: ['get', '/v1/vms/{name}/changes'],
  getPolicy: ['get', '/v1/vms/{name}/policy'],
  setPolicy: ['put', '/v1/vms/{name}/policy'],
  explainPolicy: ['get', '/v1/vms/{name}/policy/explain'],
  listOperations: ['get', '/v1/operations'],
  getOperation: ['get', '/v1/operations/{id}'],
  watchOperation: ['get', '/v1/operations/{id}/events'],
  listOperationVms: ['get', '/v1/operations/{id}/vms'],
  cancelOperation: ['post', '/v1/operations/{id}/cancel'],
  followEvents: ['get', '/v1/events'],
  queryAudit: ['get', '/v1/audit'],
  followAudit: ['get', '/v1/audit/stream'],
  checkAudit: ['get', '/v1/hosts/{host}/audit/check'],
  listImages: ['get', '/v1/images'],
  uploadFile: ['post', '/v1/uploads'],
  resumeUpload: ['patch', '/v1/uploads/{upload}'],
  findUpload: ['get', '/v1/uploads/{upload}'],
  addImage: ['post', '/v1/images'],
  getImage: ['get', '/v1/images/{image}/{version}'],
  removeImage: ['delete', '/v1/images/{image}/{version}'],
  copyImage: ['post', '/v1/images/{image}/{version}/copy'],
  readImageBlob: ['get', '/v1/images/{image}/{version}/blobs/{digest}'],
  listKeys: ['get', '/v1/keys'],
  createKey: ['post', '/v1/keys'],
  revokeKey: ['delete', '/v1/keys/{id}'],
  listAccounts: ['get', '/v1/accounts'],
  createAccount: ['post', '/v1/accounts'],
  getAccount: ['get', '/v1/accounts/{account}'],
  setQuotas: ['put', '/v1/accounts/{account}/quotas'],
  deleteAccount: ['delete', '/v1/accounts/{account}'],
  listRegions: ['get', '/v1/regions'],
  getRegion: ['get', '/v1/regions/{region}'],
  setRegion: ['put', '/v1/regions/{region}'],
  removeRegion: ['delete', '/v1/regions/{region}'],
  getPrefixes: ['get', '/v1/prefixes'],
  setPrefixes: ['put', '/v1/prefixes'],
  listHosts: ['get', '/v1/hosts'],
  showHost: ['get', '/v1/hosts/{host}'],
  changeHost: ['patch', '/v1/hosts/{host}'],
  drainHost: ['post', '/v1/hosts/{host}/drain'],
  removeHost: ['delete', '/v1/hosts/{host}'],
  createJoinKey: ['post', '/v1/join-keys'],
  listJoinKeys: ['get', '/v1/join-keys'],
  revokeJoinKey: ['delete', '/v1/join-keys/{id}'],
  createBackup: ['post', '/v1/store/backup'],
  rotateKeys: ['post', '/v1/store/rotate'],
  whoAmI: ['get', '/v1/self'],
  createSession: ['post', '/v1/session'],
  getSession: ['get', '/v1/session'],
  endSession: ['delete', '/v1/session'],
  getHost: ['get', '/v1/host'],
  getHealth: ['get', '/healthz'],
  getMetrics: ['get', '/metrics'],
  getDocument: ['get', '/openapi.json'],
  getDocsPage: ['get', '/docs'],
};

/** Operations that take an Idempotency-Key. A PUT without a condition may be repeated without one. */
const withKey: ReadonlySet<OperationId> = new Set([
  'createVm',
  'actOnVms',
  'startVm',
  'stopVm',
  'rebootVm',
  'deleteVm',
  'renewDevice',
  'tellBoot',
  'writeMetadata',
  'removeMetadata',
  'editMetadata',
  'importSpec',
  'setPolicy',
  'addImage',
  'copyImage',
  'createKey',
  'removeImage',
  'revokeKey',
  'createAccount',
  'deleteAccount',
  'removeRegion',
  'changeHost',
  'drainHost',
  'removeHost',
  'createJoinKey',
  'revokeJoinKey',
  'rotateKeys',
  'cancelOperation',
] satisfies OperationId[]);

type RequestPart<R, K extends string> = R extends { request: Record<K, infer S extends z.ZodType> }
  ? z.input<S>
  : object;
type JsonBody<R> = R extends {
  request: { body: { content: { 'application/json': { schema: infer S extends z.ZodType } } } };
}
  ? z.input<S>
  : never;
type JsonAt<R, S extends number> = R extends {
  responses: Record<S, { content: { 'application/json': { schema: infer Z extends z.ZodType } } }>;
}
  ? z.output<Z>
  : never;

/** What an operation answers as JSON. */
export type ResultOf<K extends OperationId> = JsonAt<Routes[K], 200> | JsonAt<Routes[K], 201> | JsonAt<Routes[K], 202>;

export interface Input<K extends OperationId> {
  readonly params?: RequestPart<Routes[K], 'params'>;
  readonly query?: Partial<RequestPart<Routes[K], 'query'>>;
  readonly headers?: Partial<RequestPart<Routes[K], 'headers'>>;
  /** An object goes as JSON, a text as YAML, bytes as they are. */
  readonly body?: JsonBody<Routes[K]> | string | Uint8Array;
  readonly signal?: AbortSignal;
}

export const prepare = <K extends OperationId>(operation: K, { params, query, headers, body, signal }: Input<K>) => {
  const [method, template] = table[operation];
  const values = (params ?? {}) as Readonly<Record<string, string>>;
  const path = template.replaceAll(/\{(\w+)\}/g, (_, name: string) =>
    name === 'path'
      ? (values[name] ?? '').split('/').filter(Boolean).map(encodeURIComponent).join('/')
      : encodeURIComponent(values[name] ?? ''),
  );
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries((query ?? {}) as Record<string, unknown>))
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined) search.append(name, String(one));
  const isPlain = body === undefined || typeof body === 'string' || body instanceof Uint8Array;
  const bytes = body === undefined ? undefined : bytesOf(body);
  const hasCondition = Object.keys(headers ?? {}).some((name) => name.startsWith('if-'));
  const takesKey = withKey.has(operation) && (method !== 'put' || hasCondition);
  const type = isPlain
    ? typeof body === 'string'
      ? 'application/yaml'
      : 'application/octet-stream'
    : 'application/json';
  return {
    method: method.toUpperCase(),
    path: search.size === 0 ? path : `${path}?${search.toString()}`,
    headers: {
      ...(bytes && { 'content-type': type }),
      ...(takesKey && { 'idempotency-key': crypto.randomUUID() }),
      ...Object.fromEntries(Object.entries(headers ?? {}).filter(([, value]) => value !== undefined)),
    } as Record<string, string>,
    body: bytes,
    signal,
    mayRepeat: takesKey || method === 'get' || (method === 'put' && !hasCondition),
  };
};

const bytesOf = (body: string | Uint8Array | object): Uint8Array => {
  if (body instanceof Uint8Array) return body;
  return new TextEncoder().encode(typeof body === 'string' ? body : JSON.stringify(body));
};
