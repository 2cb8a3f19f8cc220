/** GCE's metadata server (cloud.google.com/compute/docs/metadata/querying-metadata). */
import { EACCES, EDQUOT, EINVAL, ENOENT, ENOSPC, EPERM } from '../wire/index.ts';
import { type Facade, type FacadeTree, listing, replyOf } from './facade.ts';
import { hasGuestAttributes } from './facade-paths.ts';
import type { GuestAttributes } from './guest-attributes.ts';
import { failure, notAllowed, notFound, plain, type Reply, type Request } from './reply.ts';
import { type Directory, isLeaf, type Leaf } from './virtual-tree.ts';

export interface GceOptions {
  readonly tree: FacadeTree;
  readonly attributes: GuestAttributes;
  readonly onRefused: () => void;
}

export const gceLimits = {
  /** Requests that wait for a change at once. */
  waiters: 64,
  /** A waiter that names no time is answered with what is there after this one. */
  waitSeconds: 300,
  attributeBytes: 256 * 1024,
} as const;

const BASE = ['computeMetadata', 'v1'] as const;
const flavor = { 'metadata-flavor': 'Google', server: 'Metadata Server for VM' } as const;
const decoder = new TextDecoder();

/** What is asked for, from the query. Undefined: it makes no sense. */
interface Asked {
  readonly recursive: boolean;
  readonly alt: 'json' | 'text' | undefined;
  readonly waits: boolean;
  readonly lastEtag: string | undefined;
  readonly timeoutSeconds: number;
}

export const parseAsked = (query: ReadonlyMap<string, string>): Asked | undefined => {
  const flag = (key: string): boolean | undefined => {
    const value = query.get(key)?.toLowerCase();
    if (value === undefined || value === 'false') return false;
    return value === 'true' || value === '' ? true : undefined;
  };
  const recursive = flag('recursive');
  const waits = flag('wait_for_change');
  const alt = query.get('alt')?.toLowerCase();
  const timeout = query.get('timeout_sec') ?? String(gceLimits.waitSeconds);
  if (recursive === undefined || waits === undefined || !/^\d{1,6}$/.test(timeout)) return undefined;
  if (alt !== undefined && alt !== 'json' && alt !== 'text') return undefined;
  const timeoutSeconds = Math.min(Number(timeout), gceLimits.waitSeconds);
  return { recursive, alt, waits, lastEtag: query.get('last_etag'), timeoutSeconds };
};

/** Directories that are arrays in JSON, and those whose names are people's and stay as they are. */
const arrays = new Set(['network-interfaces', 'access-configs']);
const verbatim = new Set(['attributes', 'guest-attributes']);

const camelCase = (name: string): string =>
  name.replaceAll(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

export const gceFacade = ({ tree, attributes, onRefused }: GceOptions): Facade => {
  let waiting = 0;

  const valueAsJson = (leaf: Leaf): string | undefined => {
    const value = tree.value(leaf);
    if (typeof value === 'number') return undefined;
    const text = decoder.decode(value);
    if (leaf.row.raw === true) return text;
    if (leaf.row.path.endsWith('/scopes')) return JSON.stringify(text.split(/\s+/).filter((scope) => scope !== ''));
    return JSON.stringify(text);
  };

  const asJson = (directory: Directory, name: string | undefined, keeps = false): string => {
    const isArray = name !== undefined && arrays.has(name);
    const keepsNames = keeps || (name !== undefined && verbatim.has(name));
    const parts: string[] = [];
    for (const [key, child] of directory.children) {
      if (isLeaf(child) && child.row.aside === true) continue;
      const value = isLeaf(child) ? valueAsJson(child) : asJson(child, key, keepsNames);
      if (value === undefined) continue;
      parts.push(isArray ? value : `${JSON.stringify(keepsNames ? key : camelCase(key))}:${value}`);
    }
    return isArray ? `[${parts.join(',')}]` : `{${parts.join(',')}}`;
  };

  const asLines = (directory: Directory, path: string): string[] =>
    [...directory.children].flatMap(([name, child]) => {
      if (!isLeaf(child)) return asLines(child, `${path}${name}/`);
      const value = child.row.aside === true ? ENOENT : tree.value(child);
      return typeof value === 'number' ? [] : [`${path}${name} ${decoder.decode(value)}`];
    });

  const show = (found: Directory | Leaf, { names, endsInSlash }: Request, { recursive, alt }: Asked): Reply => {
    const headers = { ...flavor, etag: tree.fingerprint(found) };
    const json = (body: string): Reply => plain(body, { ...headers, 'content-type': 'application/json' });
    const text = (body: string | Uint8Array): Reply => plain(body, { ...headers, 'content-type': 'application/text' });
    if (isLeaf(found)) {
      if (endsInSlash) return withFlavor(notFound);
      return replyOf(tree.value(found), (bytes) =>
        alt === 'json'
          ? json(found.row.raw === true ? decoder.decode(bytes) : JSON.stringify(decoder.decode(bytes)))
          : text(bytes),
      );
    }
    if (!recursive)
      return text(
        listing(found)
          .map((name) => `${name}\n`)
          .join(''),
      );
    if (alt === 'text')
      return text(
        asLines(found, '')
          .map((line) => `${line}\n`)
          .join(''),
      );
    return json(asJson(found, names.at(-1)));
  };

  const answerChange = (request: Request, names: readonly string[], asked: Asked): Promise<Reply> => {
    const { view } = tree;
    const now = (): Reply => {
      const found = tree.find(names);
      return found === undefined ? withFlavor(notFound) : show(found, request, asked);
    };
    const first = tree.find(names);
    if (first === undefined) return Promise.resolve(withFlavor(notFound));
    const known = asked.lastEtag ?? tree.fingerprint(first);
    if (tree.fingerprint(first) !== known || asked.timeoutSeconds === 0) return Promise.resolve(now());
    if (waiting >= gceLimits.waiters)
      return Promise.resolve(failure(503, 'too many requests wait for changes', { ...flavor, 'retry-after': '5' }));
    waiting++;
    request.waits();
    return new Promise((resolve) => {
      const end = (): void => {
        waiting--;
        stop();
        clearTimeout(timer);
        request.signal.removeEventListener('abort', end);
        resolve(now());
      };
      const stop = view.onChange(() => {
        const found = tree.find(names);
        if (found === undefined || tree.fingerprint(found) !== known) end();
      });
      const timer = setTimeout(end, asked.timeoutSeconds * 1000);
      request.signal.addEventListener('abort', end, { once: true });
    });
  };

  const write = async (request: Request, names: readonly string[]): Promise<Reply> => {
    const [namespace, key] = names;
    if (names.length !== 2) return withFlavor(failure(400, 'a guest attribute has two names: a namespace and a key'));
    if (!hasGuestAttributes(tree.view))
      return withFlavor(failure(403, 'guest attributes are off: the attribute enable-guest-attributes is not TRUE'));
    const errno =
      request.method === 'DELETE'
        ? await attributes.delete(namespace!, key!)
        : await attributes.put(namespace!, key!, await request.body(gceLimits.attributeBytes));
    return withFlavor(replyToWrite(errno));
  };

  const answer = (request: Request): Reply | Promise<Reply> => {
    const names = request.names.slice(BASE.length);
    const isWrite = request.method === 'PUT' || request.method === 'DELETE';
    if (isWrite && names[0] === 'instance' && names[1] === 'guest-attributes') return write(request, names.slice(2));
    if (request.method !== 'GET' && request.method !== 'HEAD') return withFlavor(notAllowed('GET, HEAD'));
    const asked = parseAsked(request.query);
    if (asked === undefined) return withFlavor(failure(400, 'the query makes no sense'));
    if (asked.waits) return answerChange(request, names, asked);
    const found = tree.find(names);
    return found === undefined ? withFlavor(notFound) : show(found, request, asked);
  };

  return {
    name: 'gce',
    answer: (request) => {
      const { names } = request;
      const isGoogle = request.header('metadata-flavor') === 'Google';
      // Clients that look where they are ask for "/" and look at the header of the answer.
      if (names.length === 0) return isGoogle ? plain('computeMetadata/\n', flavor) : undefined;
      if (names[0] !== BASE[0]) return undefined;
      if (!isGoogle && request.header('x-google-metadata-request')?.toLowerCase() !== 'true') {
        onRefused();
        return withFlavor(failure(403, 'the header Metadata-Flavor: Google is missing'));
      }
      if (names.length === 1) return plain('v1/\n', flavor);
      return names[1] === BASE[1] ? answer(request) : withFlavor(notFound);
    },
  };
};

const withFlavor = (reply: Reply): Reply => ({ ...reply, headers: { ...reply.headers, ...flavor } });

const replyToWrite = (errno: number): Reply => {
  switch (errno) {
    case 0:
      return plain('');
    case ENOENT:
      return notFound;
    case EINVAL:
      return failure(400, 'a name is 1 to 128 of A-Z, a-z, 0-9, "_", "-" and "."');
    case EACCES:
    case EPERM:
      return failure(403, 'the policy does not let this be written');
    case ENOSPC:
    case EDQUOT:
      return failure(403, 'the quota is used up');
    default:
      return failure(503, 'this could not be written now; try again', { 'retry-after': '1' });
  }
};
