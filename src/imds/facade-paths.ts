/** Which paths of the tree feed which path of which cloud's API: a row each. `docs/facades.md` is made from it. */
import { createHash } from 'node:crypto';
import { type AnonymousView, isDirectory } from '../tree/index.ts';
import { ENOENT } from '../wire/index.ts';
import { bytesAt, type FacadeName, type FacadeRow, file, made, textAt, textsIn } from './facade-row.ts';

const ID = '/instance/id';
const HOSTNAME = ['/instance/hostname', '/instance/name'] as const;
const IPV4 = '/network/ipv4';
const MAC = '/network/mac';
const ZONE = '/instance/zone';
const REGION = '/instance/region';
const KEYS = '/user/ssh-keys';
const USER_DATA = '/cloud-init/user-data';
const VENDOR_DATA = '/cloud-init/vendor-data';
const NETWORK_CONFIG = '/cloud-init/network-config';

/** Lines of `/user/ssh-keys`, or of the files in it if it is a directory, with a name each. */
const sshKeys = (view: AnonymousView): (readonly [name: string, key: string])[] => {
  const text = textAt(view, KEYS);
  const texts = text === undefined ? Object.values(textsIn(view, KEYS)) : [text];
  const keys = texts.flatMap((text) => text.split('\n')).filter((line) => /^(ssh|ecdsa|sk)-/.test(line));
  return keys.map((key, index) => [key.split(/\s+/)[2]?.replaceAll(/[^\w.@-]/g, '_') ?? `key-${index}`, key.trim()]);
};

const json = (value: unknown): string => JSON.stringify(value, undefined, 2);

const regionOf = (view: AnonymousView): string | undefined =>
  textAt(view, REGION) ?? textAt(view, ZONE)?.replace(/-?[a-z]$/, '');

const macLower = (view: AnonymousView): string | undefined => textAt(view, MAC)?.toLowerCase();

const byMac = {
  wilds: (view: AnonymousView): readonly string[] => {
    const mac = macLower(view);
    return mac !== undefined && /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(mac) ? [mac] : [];
  },
};

/** EC2, below each version. */
const ec2: readonly FacadeRow[] = [
  file('meta-data/instance-id', ID),
  file('meta-data/ami-id', '/instance/image'),
  made('meta-data/ami-launch-index', [ID], '`0`', () => '0'),
  file('meta-data/hostname', HOSTNAME),
  file('meta-data/local-hostname', HOSTNAME),
  file('meta-data/public-hostname', '/network/public-hostname'),
  file('meta-data/instance-type', '/instance/type'),
  file('meta-data/instance-life-cycle', '/instance/life-cycle'),
  file('meta-data/local-ipv4', IPV4),
  file('meta-data/public-ipv4', '/network/public-ipv4'),
  file('meta-data/ipv6', '/network/ipv6'),
  file('meta-data/mac', MAC),
  file('meta-data/placement/availability-zone', ZONE),
  made(
    'meta-data/placement/region',
    [REGION, ZONE],
    'the zone less its last letter where there is no region',
    regionOf,
  ),
  made('meta-data/services/domain', [ID], '`amazonaws.com`', () => 'amazonaws.com'),
  made('meta-data/services/partition', [ID], '`aws`', () => 'aws'),
  file('meta-data/security-groups', '/network/security-groups'),
  file('meta-data/reservation-id', '/instance/reservation-id'),
  file('meta-data/tags/instance/{tag}', '/instance/tags/{tag}'),
  made(
    'meta-data/public-keys/{key}/openssh-key',
    [KEYS],
    'the lines, or those of all files of the directory; `{key}` counts from 0',
    (view, wild) => sshKeys(view)[Number(wild)]?.[1],
    { wilds: (view) => sshKeys(view).map((_, index) => String(index)) },
  ),
  file('meta-data/iam/security-credentials/{role}', '/secrets/credentials/ec2/{role}'),
  file('meta-data/spot/instance-action', '/instance/instance-action'),
  made('meta-data/network/interfaces/macs/{mac}/mac', [MAC], 'in lower case', macLower, byMac),
  made('meta-data/network/interfaces/macs/{mac}/device-number', [MAC], '`0`', () => '0', byMac),
  file('meta-data/network/interfaces/macs/{mac}/local-ipv4s', IPV4, byMac),
  file('meta-data/network/interfaces/macs/{mac}/public-ipv4s', '/network/public-ipv4', byMac),
  file('meta-data/network/interfaces/macs/{mac}/ipv6s', '/network/ipv6', byMac),
  file('meta-data/network/interfaces/macs/{mac}/subnet-ipv4-cidr-block', '/network/subnet', byMac),
  made(
    'dynamic/instance-identity/document',
    [ID],
    'a JSON object of id, image, type, zone, region, account and address; not signed',
    (view) =>
      json({
        instanceId: textAt(view, ID) ?? null,
        imageId: textAt(view, '/instance/image') ?? null,
        instanceType: textAt(view, '/instance/type') ?? null,
        availabilityZone: textAt(view, ZONE) ?? null,
        region: regionOf(view) ?? null,
        accountId: textAt(view, '/instance/account') ?? null,
        privateIp: textAt(view, IPV4) ?? null,
        architecture: textAt(view, '/instance/architecture') ?? 'x86_64',
        version: '2017-09-30',
      }),
  ),
  file('user-data', USER_DATA),
];

/** A number that stands for an id that is none: GCE's ids are 64-bit numbers. */
const numberOf = (id: string): string => {
  if (/^[1-9]\d{0,18}$/.test(id)) return id;
  return (createHash('sha256').update(id).digest().readBigUInt64BE() >> 1n).toString();
};

const PROJECT_NUMBER = '/cluster/numeric-project-id';

const project = (view: AnonymousView): string => textAt(view, PROJECT_NUMBER) ?? '0';

/** GCE, below `/computeMetadata/v1`. */
const gce: readonly FacadeRow[] = [
  made(
    'instance/id',
    [ID],
    'as it is if it is a number, else a number made from it',
    (view) => {
      const id = textAt(view, ID);
      return id === undefined ? undefined : numberOf(id);
    },
    { raw: true },
  ),
  file('instance/name', ['/instance/name', '/instance/hostname']),
  file('instance/hostname', HOSTNAME),
  file('instance/description', '/instance/description'),
  made(
    'instance/zone',
    [ZONE],
    '`projects/NUMBER/zones/ZONE`',
    (view) => {
      const zone = textAt(view, ZONE);
      return zone === undefined ? undefined : `projects/${project(view)}/zones/${zone}`;
    },
    { also: [PROJECT_NUMBER] },
  ),
  made(
    'instance/machine-type',
    ['/instance/type'],
    '`projects/NUMBER/machineTypes/TYPE`',
    (view) => {
      const type = textAt(view, '/instance/type');
      return type === undefined ? undefined : `projects/${project(view)}/machineTypes/${type}`;
    },
    { also: [PROJECT_NUMBER] },
  ),
  made('instance/image', ['/instance/image'], 'as it is', (view) => textAt(view, '/instance/image')),
  file('instance/attributes/{attribute}', '/instance/attributes/{attribute}'),
  file('instance/attributes/user-data', USER_DATA),
  made(
    'instance/attributes/ssh-keys',
    [KEYS],
    '`NAME:KEY` for each key, where `/user/name` has a name',
    (view) => {
      const name = textAt(view, '/user/name');
      const keys = sshKeys(view);
      return name === undefined || keys.length === 0 ? undefined : keys.map(([, key]) => `${name}:${key}`).join('\n');
    },
    { also: ['/user/name'] },
  ),
  file('instance/network-interfaces/0/ip', IPV4),
  file('instance/network-interfaces/0/mac', MAC),
  file('instance/network-interfaces/0/gateway', '/network/gateway'),
  file('instance/network-interfaces/0/subnetmask', '/network/netmask'),
  file('instance/network-interfaces/0/network', '/network/name'),
  file('instance/network-interfaces/0/access-configs/0/external-ip', '/network/public-ipv4'),
  file('instance/network-interfaces/0/ipv6s', '/network/ipv6'),
  file('instance/service-accounts/{account}/email', '/secrets/credentials/gce/{account}/email'),
  file('instance/service-accounts/{account}/scopes', '/secrets/credentials/gce/{account}/scopes'),
  file('instance/service-accounts/{account}/token', '/secrets/credentials/gce/{account}/token', { aside: true }),
  file('instance/maintenance-event', '/instance/maintenance-event'),
  made('instance/scheduling/preemptible', [ID], '`FALSE`', () => 'FALSE'),
  made('instance/virtual-clock/drift-token', [ID], '`0`', () => '0'),
  file('project/project-id', ['/cluster/project-id', '/cluster/name', '/cluster/id']),
  made('project/numeric-project-id', [ID], '`/cluster/numeric-project-id`, or `0`', (view) => numberOrZero(view), {
    raw: true,
    also: [PROJECT_NUMBER],
  }),
  file('project/attributes/{attribute}', '/cluster/attributes/{attribute}'),
];

const numberOrZero = (view: AnonymousView): string => (/^(0|[1-9]\d{0,17})$/.test(project(view)) ? project(view) : '0');

const keysByName = (view: AnonymousView): Record<string, string> => Object.fromEntries(sshKeys(view));

const networkData = (view: AnonymousView): string => {
  const mac = macLower(view);
  const address = textAt(view, IPV4);
  const netmask = textAt(view, '/network/netmask');
  const gateway = textAt(view, '/network/gateway');
  const link = { id: 'eth0', type: 'phy', ...(mac !== undefined && { ethernet_mac_address: mac }) };
  const base = { id: 'network0', link: 'eth0', network_id: 'network0' };
  const network =
    address === undefined || netmask === undefined
      ? { ...base, type: 'ipv4_dhcp' }
      : {
          ...base,
          type: 'ipv4',
          ip_address: address,
          netmask,
          routes: gateway === undefined ? [] : [{ network: '0.0.0.0', netmask: '0.0.0.0', gateway }],
        };
  return json({ links: [link], networks: [network], services: [] });
};

/** OpenStack, below each version in `/openstack`. */
const openstack: readonly FacadeRow[] = [
  made(
    'meta_data.json',
    [ID],
    'a JSON object: `uuid`, `hostname`, `name`, `availability_zone`, `project_id`, `launch_index`, `public_keys` from `/user/ssh-keys`, `meta` from the files of `/instance/attributes`',
    (view) => {
      const uuid = textAt(view, ID);
      if (uuid === undefined) return undefined;
      const hostname = textAt(view, ...HOSTNAME) ?? uuid;
      return json({
        uuid,
        hostname,
        name: textAt(view, '/instance/name') ?? hostname,
        availability_zone: textAt(view, ZONE) ?? 'nova',
        project_id: textAt(view, '/cluster/project-id', '/cluster/id') ?? null,
        launch_index: 0,
        public_keys: keysByName(view),
        keys: sshKeys(view).map(([name, data]) => ({ name, type: 'ssh', data })),
        meta: textsIn(view, '/instance/attributes'),
        devices: [],
      });
    },
  ),
  made(
    'network_data.json',
    [MAC],
    'a JSON object: one link; its address where `/network/netmask` is there, else DHCP',
    networkData,
  ),
  file('user_data', USER_DATA),
  made('vendor_data.json', [VENDOR_DATA], 'JSON as it is, anything else as `cloud-init`', (view) => {
    const text = textAt(view, VENDOR_DATA);
    if (text === undefined) return undefined;
    return isJson(text) ? text : json({ 'cloud-init': text });
  }),
];

const isJson = (text: string): boolean => {
  try {
    return typeof JSON.parse(text) === 'object';
  } catch {
    return false;
  }
};

/** Where it is not shown, it is empty: cloud-init wants the one, and asks ten seconds long for the other. */
const orEmpty = (path: string, source: string): FacadeRow => ({
  ...file(path, source),
  made: 'as it is; empty where it is not shown',
  isThere: () => true,
  value: (view) => {
    const bytes = bytesAt(view, source);
    return bytes === ENOENT ? new Uint8Array() : bytes;
  },
});

/** NoCloud, as files. */
const nocloud: readonly FacadeRow[] = [
  made(
    'meta-data',
    ['/cloud-init/meta-data', ID],
    '`/cloud-init/meta-data` as it is, else `instance-id`, `local-hostname` and `public-keys` as YAML',
    (view) => {
      const own = textAt(view, '/cloud-init/meta-data');
      if (own !== undefined) return `${own}\n`;
      const id = textAt(view, ID);
      if (id === undefined) return undefined;
      const hostname = textAt(view, ...HOSTNAME);
      const keys = sshKeys(view).map(([, key]) => key);
      // JSON is YAML.
      const lines = [
        `instance-id: ${JSON.stringify(id)}`,
        ...(hostname === undefined ? [] : [`local-hostname: ${JSON.stringify(hostname)}`]),
        ...(keys.length === 0 ? [] : [`public-keys: ${JSON.stringify(keys)}`]),
      ];
      return `${lines.join('\n')}\n`;
    },
  ),
  orEmpty('user-data', USER_DATA),
  orEmpty('vendor-data', VENDOR_DATA),
  file('network-config', NETWORK_CONFIG),
];

export const facadeRows: Readonly<Record<FacadeName, readonly FacadeRow[]>> = { ec2, gce, openstack, nocloud };

/** GCE's guest attributes: names of two levels, as guests wrote them. */
export const guestAttributeRows = (view: AnonymousView): FacadeRow[] => {
  const top = view.find(GUEST_ATTRIBUTES);
  if (top === undefined || !isDirectory(top)) return [];
  return view
    .list(top)
    .filter(([name, node]) => isDirectory(node) && isAttributeName(name))
    .flatMap(([namespace, directory]) =>
      view
        .list(directory)
        .filter(([name, node]) => !isDirectory(node) && isAttributeName(name))
        .map(([name]) =>
          file(`instance/guest-attributes/${namespace}/${name}`, `${GUEST_ATTRIBUTES}/${namespace}/${name}`),
        ),
    );
};

export const GUEST_ATTRIBUTES = '/guest/attributes';

/** Of a namespace or key. */
export const isAttributeName = (name: string): boolean => /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/.test(name);

/** Whether the guest may have guest attributes, as GCE asks of an attribute. */
export const hasGuestAttributes = (view: AnonymousView): boolean =>
  textAt(
    view,
    '/instance/attributes/enable-guest-attributes',
    '/cluster/attributes/enable-guest-attributes',
  )?.toUpperCase() === 'TRUE';

/** Directories that are there although nothing is in them: clients ask again and again for what they know to be there. */
export const standingDirectories: Readonly<Record<FacadeName, readonly string[]>> = {
  ec2: [],
  gce: ['instance/attributes', 'project/attributes'],
  openstack: [],
  nocloud: [],
};

/** What EC2 lists under `public-keys/`. */
export const publicKeyNames = (view: AnonymousView): string[] =>
  sshKeys(view).map(([name], index) => `${index}=${name}`);
