/** OpenStack's metadata service (docs.openstack.org/nova/latest/user/metadata.html). */
import { type Facade, type FacadeTree, listing, replyOf } from './facade.ts';
import { notAllowed, notFound, plain, type Reply, type Request } from './reply.ts';
import { isLeaf } from './virtual-tree.ts';

const versions = [
  '2012-08-10',
  '2013-04-04',
  '2013-10-17',
  '2015-10-15',
  '2016-06-30',
  '2016-10-06',
  '2017-02-22',
  '2018-08-27',
  '2020-10-14',
  'latest',
] as const;

export const openstackFacade = (tree: FacadeTree): Facade => {
  const read = (request: Request, names: readonly string[]): Reply => {
    const found = tree.find(names);
    if (found === undefined) return notFound;
    if (!isLeaf(found)) return plain(listing(found).join('\n'));
    if (request.endsInSlash) return notFound;
    const type = names.at(-1)!.endsWith('.json') ? 'application/json' : 'text/plain; charset=utf-8';
    return replyOf(tree.value(found), (bytes) => plain(bytes, { 'content-type': type }));
  };
  return {
    name: 'openstack',
    answer: (request) => {
      const [base, version, ...names] = request.names;
      if (base !== 'openstack') return undefined;
      if (request.method !== 'GET' && request.method !== 'HEAD') return notAllowed('GET, HEAD');
      if (version === undefined) return plain(versions.join('\n'));
      return versions.some((known) => known === version) ? read(request, names) : notFound;
    },
  };
};
