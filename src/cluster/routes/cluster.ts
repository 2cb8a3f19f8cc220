import { createRoute, z } from '@hono/zod-openapi';
import { vmTypes } from '../../records/index.ts';
import { isSafeAddress } from '../safe-address.ts';
import { body, changing, Flag, IdempotencyHeaders, json, problems, security, Time, VmName } from './common.ts';
import { Labels } from './new-vm.ts';
import { OperationShape } from './vms.ts';

/** Names of accounts, regions and hosts are DNS labels, as those of VMs. */
const Name = VmName;

const named = <K extends string>(kind: K) =>
  z.object({ [kind]: Name.openapi({ param: { name: kind, in: 'path' } }) } as {
    [P in K]: typeof Name;
  });

// Accounts

const Quotas = z
  .record(Name, z.partialRecord(z.enum([...Object.keys(vmTypes), 'attached']), z.int().min(0).max(1_000_000)))
  .openapi('Quotas', {
    description: 'How many VMs there may be at most, by region and type; what is not named has no limit.',
    example: { eu: { small: 20 } },
  });

export const AccountShape = z
  .object({
    name: z.string(),
    state: z.enum(['active', 'leaving']).openapi({ description: 'leaving: it is being deleted.' }),
    quotas: z.record(z.string(), z.record(z.string(), z.int())),
    mayUseHostNetworks: z.boolean().optional(),
    createdAt: Time,
  })
  .openapi('Account');

const AccountParams = named('account');

export const listAccounts = createRoute({
  operationId: 'listAccounts',
  method: 'get',
  path: '/v1/accounts',
  tags: ['Accounts'],
  summary: 'List accounts',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  responses: { 200: json(z.object({ accounts: z.array(AccountShape) }), 'All of them.'), ...problems() },
});

export const createAccount = createRoute({
  operationId: 'createAccount',
  method: 'post',
  path: '/v1/accounts',
  tags: ['Accounts'],
  summary: 'Create an account',
  description: 'Make its first key with `account` in `POST /v1/keys`.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          name: Name,
          quotas: Quotas.default({}),
          mayUseHostNetworks: z.boolean().optional().openapi({
            description:
              'Its VMs may have tap devices, libvirt domains, and ports at any address of their hosts, and reach what hosts reach. The account `default` always may.',
          }),
        })
        .openapi('CreateAccount'),
    ),
  },
  responses: { 201: json(AccountShape, 'The account.'), ...problems('NAME_TAKEN', ...changing) },
});

export const getAccount = createRoute({
  operationId: 'getAccount',
  method: 'get',
  path: '/v1/accounts/{account}',
  tags: ['Accounts'],
  summary: 'Show an account',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: { params: AccountParams },
  responses: { 200: json(AccountShape, 'The account.'), ...problems('NOT_FOUND') },
});

export const setQuotas = createRoute({
  operationId: 'setQuotas',
  method: 'put',
  path: '/v1/accounts/{account}/quotas',
  tags: ['Accounts'],
  summary: 'Set the quotas of an account',
  description:
    'In place of those it has. Each region goes by them from when it has heard of them; VMs that are there already stay.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: { params: AccountParams, headers: IdempotencyHeaders, body: body(Quotas) },
  responses: { 200: json(AccountShape, 'The account.'), ...problems('NOT_FOUND', 'CONFLICT', ...changing) },
});

export const deleteAccount = createRoute({
  operationId: 'deleteAccount',
  method: 'delete',
  path: '/v1/accounts/{account}',
  tags: ['Accounts'],
  summary: 'Delete an account that owns no VMs and no images, and its keys',
  description: 'Asks every region: while one is cut off, an account cannot be deleted.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: { params: AccountParams, headers: IdempotencyHeaders },
  responses: {
    204: { description: 'It is gone.' },
    ...problems('NOT_FOUND', 'IN_USE', 'WRONG_STATE', 'CONFLICT', ...changing),
  },
});

// Regions

export const RegionShape = z
  .object({
    name: z.string(),
    isHere: z.boolean().openapi({ description: 'Whoever answers you is of it.' }),
    addresses: z.array(z.string()).openapi({ description: 'Where its managers are reached.' }),
    authority: z.string().optional(),
    addedAt: Time,
  })
  .openapi('Region');

const RegionParams = named('region');

export const listRegions = createRoute({
  operationId: 'listRegions',
  method: 'get',
  path: '/v1/regions',
  tags: ['Regions'],
  summary: 'List regions',
  'x-access': 'viewer',
  'x-scope': 'self',
  security,
  responses: { 200: json(z.object({ regions: z.array(RegionShape) }), 'All of them.'), ...problems() },
});

export const getRegion = createRoute({
  operationId: 'getRegion',
  method: 'get',
  path: '/v1/regions/{region}',
  tags: ['Regions'],
  summary: 'Show a region',
  'x-access': 'viewer',
  'x-scope': 'self',
  security,
  request: { params: RegionParams },
  responses: { 200: json(RegionShape, 'The region.'), ...problems('NOT_FOUND') },
});

export const setRegion = createRoute({
  operationId: 'setRegion',
  method: 'put',
  path: '/v1/regions/{region}',
  tags: ['Regions'],
  summary: 'Say where a region’s managers are reached',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    params: RegionParams,
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          addresses: z
            .array(
              z
                .url({ protocol: /^https?$/ })
                .max(1024)
                .refine(isSafeAddress, 'https://, or http:// of an address of the loopback (127.0.0.1, [::1])'),
            )
            .max(32)
            .openapi({ description: 'URLs of its managers.' }),
          authority: z.string().max(65_536).optional().openapi({
            description: 'PEM: who signs their certificates. Default: whom the machine trusts.',
          }),
        })
        .openapi('SetRegion'),
    ),
  },
  responses: { 200: json(RegionShape, 'The region.'), ...problems('CONFLICT', ...changing) },
});

export const removeRegion = createRoute({
  operationId: 'removeRegion',
  method: 'delete',
  path: '/v1/regions/{region}',
  tags: ['Regions'],
  summary: 'Forget a region that has no VMs and no images, or that is lost',
  description:
    'With `lost`, VMs and images of it are forgotten too. Only for a region whose stores are gone: nothing of it may run any more.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    params: RegionParams,
    query: z.strictObject({ lost: Flag }),
    headers: IdempotencyHeaders,
  },
  responses: {
    204: { description: 'It is forgotten.' },
    ...problems('NOT_FOUND', 'IN_USE', 'WRONG_STATE', 'CONFLICT', ...changing),
  },
});

// What VMs of the region get addresses from

export const PrefixesShape = z
  .strictObject({
    ipv4: z
      .array(z.string().max(18))
      .max(16)
      .default([])
      .openapi({ description: 'IPv4 prefixes, of lengths 8 to 32.', example: ['10.20.0.0/16'] }),
    ipv6: z
      .array(z.string().max(64))
      .max(16)
      .default([])
      .openapi({ description: 'IPv6 prefixes, of lengths 64 to 128.', example: ['fd00:20::/64'] }),
    udp: z
      .strictObject({
        address: z.ipv4().openapi({ format: 'ipv4' }),
        first: z.int().min(1).max(65_535),
        last: z.int().min(1).max(65_535),
      })
      .optional()
      .openapi({ description: 'UDP ports of one address that all VMs share, both ends included.' }),
    dns: z
      .array(z.union([z.ipv4(), z.ipv6()]).openapi({ type: 'string' }))
      .max(4)
      .default([])
      .openapi({ description: 'Resolvers that VMs are told of by DHCP.' }),
  })
  .openapi('Prefixes');

export const getPrefixes = createRoute({
  operationId: 'getPrefixes',
  method: 'get',
  path: '/v1/prefixes',
  tags: ['Regions'],
  summary: 'Show which addresses the region gives to VMs',
  'x-access': 'viewer',
  'x-scope': 'cluster',
  security,
  responses: { 200: json(PrefixesShape, 'Its prefixes.'), ...problems() },
});

export const setPrefixes = createRoute({
  operationId: 'setPrefixes',
  method: 'put',
  path: '/v1/prefixes',
  tags: ['Regions'],
  summary: 'Say which addresses the region gives to VMs',
  description: 'In place of those it has. VMs keep what they were given.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: { headers: IdempotencyHeaders, body: body(PrefixesShape) },
  responses: { 200: json(PrefixesShape, 'Its prefixes.'), ...problems('CONFLICT', ...changing) },
});

// Hosts

const ResourcesShape = z.object({ vcpus: z.int(), memoryMiB: z.int(), diskBytes: z.int() });

export const HostRecordShape = z
  .object({
    name: z.string(),
    id: z.string(),
    isConnected: z.boolean(),
    cordoned: z.boolean().openapi({ description: 'No VM is placed there.' }),
    draining: z.boolean().openapi({ description: 'As cordoned, and its VMs are to leave it.' }),
    labels: z.record(z.string(), z.string()),
    capacity: ResourcesShape.optional().openapi({ description: 'What its VMs may take together; missing: no limit.' }),
    taken: z.object({ ...ResourcesShape.shape, vms: z.int() }).openapi({
      description: 'By all VMs that are assigned to it, whether they run or not.',
    }),
    addedAt: Time,
  })
  .openapi('HostRecord');

const HostParams = named('host');

export const listHosts = createRoute({
  operationId: 'listHosts',
  method: 'get',
  path: '/v1/hosts',
  tags: ['Hosts'],
  summary: 'List hosts of the region',
  'x-access': 'viewer',
  'x-scope': 'cluster',
  security,
  responses: { 200: json(z.object({ hosts: z.array(HostRecordShape) }), 'All of them.'), ...problems() },
});

export const showHost = createRoute({
  operationId: 'showHost',
  method: 'get',
  path: '/v1/hosts/{host}',
  tags: ['Hosts'],
  summary: 'Show a host and its VMs',
  'x-access': 'viewer',
  'x-scope': 'cluster',
  security,
  request: { params: HostParams },
  responses: {
    200: json(
      z.object({
        host: HostRecordShape,
        vms: z.array(z.string()).openapi({ description: 'Names, the first 1000 of them.' }),
      }),
      'The host.',
    ),
    ...problems('NOT_FOUND'),
  },
});

export const changeHost = createRoute({
  operationId: 'changeHost',
  method: 'patch',
  path: '/v1/hosts/{host}',
  tags: ['Hosts'],
  summary: 'Cordon, drain or label a host',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: {
    params: HostParams,
    headers: IdempotencyHeaders,
    body: body(
      z
        .strictObject({
          cordoned: z.boolean().optional(),
          draining: z.boolean().optional(),
          labels: Labels.optional().openapi({ description: 'In place of those it has.' }),
        })
        .openapi('ChangeHost'),
    ),
  },
  responses: { 200: json(HostRecordShape, 'The host.'), ...problems('NOT_FOUND', 'CONFLICT', ...changing) },
});

export const drainHost = createRoute({
  operationId: 'drainHost',
  method: 'post',
  path: '/v1/hosts/{host}/drain',
  tags: ['Hosts'],
  summary: 'Have the VMs of a host go to others',
  description:
    'Cordons it. VMs that are stateless or have a network disk are stopped, and started on other hosts; those with a disk there stay, and the operation lists them. To call it off, say `draining: false` of the host.',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: { params: HostParams, headers: IdempotencyHeaders },
  responses: {
    202: json(z.object({ operation: OperationShape }), 'They are leaving.'),
    ...problems('NOT_FOUND', 'WRONG_STATE', 'CONFLICT', ...changing),
  },
});

export const removeHost = createRoute({
  operationId: 'removeHost',
  method: 'delete',
  path: '/v1/hosts/{host}',
  tags: ['Hosts'],
  summary: 'Remove a host that has no VMs',
  'x-access': 'admin',
  'x-scope': 'cluster',
  security,
  request: { params: HostParams, headers: IdempotencyHeaders },
  responses: {
    204: { description: 'It is gone.' },
    ...problems('NOT_FOUND', 'IN_USE', 'WRONG_STATE', 'CONFLICT', ...changing),
  },
});
