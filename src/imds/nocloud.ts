/** NoCloud over HTTP: `ds=nocloud;s=http://ADDRESS/nocloud/` (docs.cloud-init.io/en/latest/reference/datasources/nocloud.html). */
import { type Facade, type FacadeTree, listing, replyOf } from './facade.ts';
import { notAllowed, notFound, plain } from './reply.ts';
import { isLeaf } from './virtual-tree.ts';

export const nocloudFacade = (tree: FacadeTree): Facade => ({
  name: 'nocloud',
  answer: (request) => {
    const [base, ...names] = request.names;
    if (base !== 'nocloud') return undefined;
    if (request.method !== 'GET' && request.method !== 'HEAD') return notAllowed('GET, HEAD');
    const found = tree.find(names);
    if (found === undefined) return notFound;
    if (!isLeaf(found)) return plain(listing(found).join('\n'));
    return request.endsInSlash ? notFound : replyOf(tree.value(found), (bytes) => plain(bytes));
  },
});
