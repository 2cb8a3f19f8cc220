/** EC2's instance metadata service, version 2 (docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html). */
import type { Facade, FacadeTree } from './facade.ts';
import { listing, replyOf } from './facade.ts';
import { publicKeyNames } from './facade-paths.ts';
import { failure, notAllowed, notFound, plain, type Reply, type Request } from './reply.ts';
import { parseTtl, type SessionTokens, sessionLimits } from './session-token.ts';
import { isLeaf } from './virtual-tree.ts';

const versions = ['1.0', '2009-04-04', '2016-09-02', '2018-09-24', '2021-03-23', 'latest'] as const;

/** The second spelling is Firecracker's. */
const ttlHeaders = ['x-aws-ec2-metadata-token-ttl-seconds', 'x-metadata-token-ttl-seconds'] as const;
const tokenHeaders = ['x-aws-ec2-metadata-token', 'x-metadata-token'] as const;

const headerOf = (request: Request, names: readonly string[]): string | undefined =>
  names.map((name) => request.header(name)).find((value) => value !== undefined);

export interface Ec2Options {
  readonly tree: FacadeTree;
  readonly sessions: SessionTokens;
  /** Answers requests without a session token. */
  readonly allowV1: boolean;
  /** Told of each request that came without a valid token. */
  readonly onRefused: () => void;
}

export const ec2Facade = ({ tree, sessions, allowV1, onRefused }: Ec2Options): Facade => {
  const token = (request: Request, version: string): Reply => {
    if (request.method !== 'PUT') return notAllowed('PUT');
    // Amazon's answer, and meant so: clients ask under "latest" only.
    if (version !== 'latest') return failure(403);
    const asked = headerOf(request, ttlHeaders);
    const ttlSeconds = parseTtl(asked);
    if (ttlSeconds === undefined) {
      const range = `${sessionLimits.minTtlSeconds} to ${sessionLimits.maxTtlSeconds}`;
      return failure(400, `the header ${ttlHeaders[0]} must be a number of seconds from ${range}`);
    }
    return plain(sessions.issue(ttlSeconds), { [ttlHeaders[0]]: String(ttlSeconds) });
  };

  const mayRead = (request: Request): boolean => {
    const given = headerOf(request, tokenHeaders);
    return given === undefined ? allowV1 : sessions.isValid(given);
  };

  const read = (request: Request, names: readonly string[]): Reply => {
    const found = tree.find(names);
    if (found === undefined) return notFound;
    if (isLeaf(found)) {
      return request.endsInSlash ? notFound : replyOf(tree.value(found), (bytes) => plain(bytes));
    }
    const isOf = (path: string): boolean => names.join('/') === path;
    if (isOf('meta-data/public-keys')) return plain(publicKeyNames(tree.view).join('\n'));
    const entries = listing(found);
    // The top of a version is listed without slashes there.
    return plain((names.length === 0 ? entries.map((name) => name.replace('/', '')) : entries).join('\n'));
  };

  return {
    name: 'ec2',
    answer: (request) => {
      const [version, ...names] = request.names;
      if (version !== undefined && !versions.some((known) => known === version)) return undefined;
      if (version !== undefined && names.join('/') === 'api/token') return token(request, version);
      if (request.method !== 'GET' && request.method !== 'HEAD') return notAllowed('GET, HEAD');
      if (!mayRead(request)) {
        onRefused();
        return failure(401);
      }
      return version === undefined ? plain(versions.join('\n')) : read(request, names);
    },
  };
};
