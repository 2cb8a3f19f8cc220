/**
 * What a directory needs so that cloud-init's NoCloud data source takes it for its seed: `meta-data` and `user-data`. Where a
 * spec has `/cloud-init` and not these, they are made, of what the NoCloud façade would show.
 */
import { facadeRows } from '../imds/index.ts';
import { AnonymousView, Authority, Replica, type Spec, type SpecEntry } from '../tree/index.ts';

const DIRECTORY = '/cloud-init';
/** What meta-data is made of lies below these. */
const sources = [DIRECTORY, '/instance', '/user'];

const isBelow = (path: string, directory: string): boolean => path === directory || path.startsWith(`${directory}/`);

/**
 * The entries that are to be added; none where `/cloud-init` is not there, or no `/instance/id` that everybody may read. All of
 * it may be read by everybody already, for the rules of the spec are heeded: they hold for what is added as well.
 */
export const seedEntries = ({ entries, policy }: Spec): readonly SpecEntry[] => {
  if (!entries.some(({ path, kind }) => path === DIRECTORY && kind === 'directory')) return [];
  const isThere = (name: string): boolean => entries.some(({ path }) => path === `${DIRECTORY}/${name}`);
  const made: SpecEntry[] = [];
  if (!isThere('meta-data')) {
    const relevant = entries.filter(({ path }) => sources.some((directory) => isBelow(path, directory)));
    const bytes = metaDataOf({ entries: relevant, policy });
    if (bytes === undefined) return [];
    made.push({ path: `${DIRECTORY}/meta-data`, kind: 'file', bytes });
  }
  if (!isThere('user-data')) made.push({ path: `${DIRECTORY}/user-data`, kind: 'file', bytes: new Uint8Array() });
  return made;
};

const metaDataOf = (spec: Spec): Uint8Array | undefined => {
  const row = facadeRows.nocloud.find(({ path }) => path === 'meta-data')!;
  const clock = { wallMs: Date.now, monotonicMs: () => performance.now() };
  // A tree that nobody sees, of a VM that is none.
  const nobody = { vm: '', audit: () => true };
  const authority = new Authority({ ...nobody, wallMs: clock.wallMs, digest: () => '' });
  authority.load(spec);
  const replica = new Replica();
  authority.subscribe('seed', (delta) => replica.apply(delta))();
  const value = row.value(new AnonymousView({ ...nobody, replica, clock }), undefined);
  return typeof value === 'number' ? undefined : value;
};
