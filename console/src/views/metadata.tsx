import type { JSX } from 'preact';
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { ApiError, ask, call, eventsOf, type TreeEntry, type Vm } from '../api.ts';
import { query, setQuery } from '../router.ts';
import { may } from '../session.ts';
import { useAsked } from '../ui/asked.ts';
import { Dialog } from '../ui/dialog.tsx';
import { Empty, Failure, Loading } from '../ui/states.tsx';
import { type Column, type Sort, Table } from '../ui/table.tsx';
import { complain } from '../ui/toasts.tsx';
import { VmPage } from '../ui/vm-page.tsx';
import { download, sizeWord, timeWord } from '../ui/words.ts';
import type { ViewProps } from './index.ts';

export default function MetadataView({ params }: ViewProps): JSX.Element {
  return <VmPage name={params['name']!}>{(vm) => <Metadata key={vm.id} vm={vm} />}</VmPage>;
}

const bits = ['---', '--x', '-w-', '-wx', 'r--', 'r-x', 'rw-', 'rwx'] as const;
const letters = { file: '-', directory: 'd', symlink: 'l' } as const;

/** As ls(1) shows it. */
const modeOf = ({ kind, mode, acl }: TreeEntry): string =>
  `${letters[kind]}${[...mode.slice(-3)].map((digit) => bits[Number(digit)]!).join('')}${acl === undefined ? '' : '+'}`;
const ownerOf = ({ owner, uid }: TreeEntry): string => owner ?? String(uid);
const groupOf = ({ group, gid }: TreeEntry): string => group ?? String(gid);
const changedOf = ({ changedAt, modifiedAt }: TreeEntry): string => changedAt ?? modifiedAt;

/** Paths that changed while the page was open, until they are looked at. */
type Changed = ReadonlySet<string>;

const columnsOf = (changed: Changed): readonly Column<TreeEntry>[] => [
  {
    id: 'path',
    title: 'Path',
    width: 'minmax(14rem, 3fr)',
    cell: ({ path }) => (
      <span title={path} class={changed.has(path) ? 'fresh' : undefined}>
        {path}
        {changed.has(path) && <span class="hidden"> (changed just now)</span>}
      </span>
    ),
    sortBy: ({ path }) => path,
    isNarrow: true,
  },
  { id: 'mode', title: 'Mode', width: '7.5rem', cell: (entry) => <code>{modeOf(entry)}</code>, isNarrow: true },
  { id: 'owner', title: 'Owner', width: '6rem', cell: ownerOf, sortBy: ownerOf },
  { id: 'group', title: 'Group', width: '6rem', cell: groupOf, sortBy: groupOf },
  {
    id: 'size',
    title: 'Size',
    width: '6rem',
    cell: ({ kind, sizeBytes }) => (kind === 'directory' ? '' : sizeWord(sizeBytes)),
    sortBy: ({ sizeBytes }) => sizeBytes,
  },
  {
    id: 'changed',
    title: 'Changed',
    width: '12rem',
    cell: (entry) => timeWord(changedOf(entry)),
    sortBy: changedOf,
  },
  { id: 'rule', title: 'Rule', width: 'minmax(7rem, 1fr)', cell: ({ rule }) => <span title={rule}>{rule}</span> },
];

const wholeTree = async (name: string, signal: AbortSignal): Promise<readonly TreeEntry[]> => {
  const all: TreeEntry[] = [];
  for (;;) {
    const page = await call('readMetadata', {
      params: { name, path: '' },
      query: { view: 'below', limit: 1000, after: all.at(-1)?.path },
      signal,
    });
    if (!('entries' in page) || !('more' in page)) throw new Error('the server did not answer with a listing');
    all.push(...page.entries);
    if (!page.more) return all;
  }
};

const Metadata = ({ vm: { name } }: { readonly vm: Vm }): JSX.Element => {
  const tree = useAsked([name], (signal) => wholeTree(name, signal));
  const [changed, setChanged] = useState<Changed>(new Set());
  const [making, setMaking] = useState(false);
  const again = useRef(tree.again);
  again.current = tree.again;
  useEffect(() => {
    const stop = new AbortController();
    void follow(name, stop.signal, (paths) => {
      setChanged((before) => new Set([...before, ...paths]));
      again.current();
    });
    return () => stop.abort();
  }, [name]);
  const filter = query.value.get('q') ?? '';
  const open = query.value.get('path');
  const [sort, setSort] = useState<Sort>({ column: 'path', isDescending: false });
  const columns = useMemo(() => columnsOf(changed), [changed]);
  const rows = useMemo(() => {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    return (tree.value ?? []).filter(({ path }) => words.every((word) => path.toLowerCase().includes(word)));
  }, [tree.value, filter]);
  if (tree.error !== undefined && tree.value === undefined)
    return <Failure title="The metadata could not be listed" detail={tree.error.message} again={tree.again} />;
  if (tree.value === undefined) return <Loading what="the metadata" />;
  const entry = tree.value.find(({ path }) => path === open);
  const exportYaml = (): void => {
    ask('exportSpec', { params: { name } })
      .then(async (answer) => download(`${name}.yaml`, 'application/yaml', await answer.text()))
      .catch((error: unknown) => complain('The metadata was not exported', error));
  };
  const importYaml = async (file: File | undefined): Promise<void> => {
    if (file === undefined) return;
    try {
      await call('importSpec', { params: { name }, body: await file.text() });
      tree.again();
    } catch (error) {
      complain(`${file.name} was not imported`, error);
    }
  };
  return (
    <>
      <div class="tools">
        <label class="grow">
          <span class="hidden">Filter paths</span>
          <input
            type="search"
            placeholder="Filter by path"
            value={filter}
            onInput={({ currentTarget }) => setQuery({ q: currentTarget.value })}
          />
        </label>
        <span class="count" role="status">
          {rows.length.toLocaleString('en')} of {tree.value.length.toLocaleString('en')} nodes
        </span>
        {may('operator') && (
          <div class="group">
            <button type="button" onClick={() => setMaking(true)}>
              New value
            </button>
            <label class="file-button">
              Import YAML
              <input
                type="file"
                accept=".yaml,.yml"
                onChange={({ currentTarget }) => void importYaml(currentTarget.files?.[0])}
              />
            </label>
            <button type="button" onClick={exportYaml}>
              Export YAML
            </button>
          </div>
        )}
      </div>
      <div class="columns">
        <Table
          label="Metadata"
          columns={columns}
          rows={rows}
          keyOf={({ path }) => path}
          sort={sort}
          onSort={setSort}
          onOpen={({ path }) => {
            setChanged((before) => new Set([...before].filter((one) => one !== path)));
            setQuery({ path });
          }}
          empty={<Empty title="No path matches" />}
        />
        {entry && <Node key={entry.path} name={name} entry={entry} close={() => setQuery({ path: '' })} />}
      </div>
      {making && <NewValue name={name} close={() => setMaking(false)} />}
    </>
  );
};

const againAfterMs = 2_000;

/** Tells paths that changed, until the signal. */
const follow = async (name: string, stop: AbortSignal, told: (paths: readonly string[]) => void): Promise<void> => {
  let lastEventId: string | undefined;
  while (!stop.aborted) {
    try {
      for await (const { event, id, data } of eventsOf('watchMetadata', {
        params: { name },
        lastEventId,
        signal: stop,
      })) {
        lastEventId = id ?? lastEventId;
        if (event === 'commit')
          told((data as { readonly changes: readonly { readonly path: string }[] }).changes.map(({ path }) => path));
      }
    } catch {
      if (stop.aborted) return;
      lastEventId = undefined;
      told([]);
    }
    await new Promise((resolve) => setTimeout(resolve, againAfterMs));
  }
};

const Node = ({
  name,
  entry,
  close,
}: {
  readonly name: string;
  readonly entry: TreeEntry;
  readonly close: () => void;
}): JSX.Element => {
  const [removing, setRemoving] = useState(false);
  const remove = async (): Promise<void> => {
    setRemoving(false);
    try {
      await call('removeMetadata', { params: { name, path: entry.path } });
      close();
    } catch (error) {
      complain(`${entry.path} was not removed`, error);
    }
  };
  const facts = [
    ['Mode', modeOf(entry)],
    ['Owner', ownerOf(entry)],
    ['Group', groupOf(entry)],
    ['ACL', entry.acl ?? 'none'],
    ['Rule', entry.rule],
    ['Made by', entry.madeBy === 'guest' ? 'the guest' : 'outside'],
    ['Revision', entry.revision],
  ] as const;
  return (
    <section class="card node" aria-label={`Node ${entry.path}`}>
      <div class="view-head">
        <h2>{entry.path}</h2>
        <button type="button" class="quiet close" aria-label="Close" onClick={close}>
          ×
        </button>
      </div>
      <dl class="facts">
        {facts.map(([what, value]) => (
          <div key={what}>
            <dt>{what}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {entry.kind === 'file' &&
        (entry.burned ? <p class="count">It was read, and may be read once.</p> : <Value name={name} entry={entry} />)}
      {may('operator') && entry.path !== '/' && (
        <div class="actions">
          <button type="button" class="danger-quiet" onClick={() => setRemoving(true)}>
            Remove
          </button>
        </div>
      )}
      {removing && (
        <Dialog
          title={`Remove ${entry.path}?`}
          action="Remove"
          isDangerous
          onAction={() => void remove()}
          onCancel={() => setRemoving(false)}
        >
          <p>Programs in the guest that have it open keep what they have.</p>
        </Dialog>
      )}
    </section>
  );
};

interface Shown {
  readonly text: string;
  readonly tag: string;
}

/** What not everybody may read is shown when it is asked for: whoever is shown it is on record. */
const Value = ({ name, entry }: { readonly name: string; readonly entry: TreeEntry }): JSX.Element => {
  const { path, worldReadable, dataRevision } = entry;
  const [shown, setShown] = useState<Shown>();
  const [edited, setEdited] = useState<string>();
  const [isBinary, setBinary] = useState(false);
  const [conflict, setConflict] = useState(false);
  const read = async (): Promise<void> => {
    try {
      const answer = await ask('readMetadata', { params: { name, path } });
      const bytes = await answer.arrayBuffer();
      const tag = answer.headers.get('etag')!;
      try {
        setShown({ text: new TextDecoder('utf-8', { fatal: true }).decode(bytes), tag });
      } catch {
        setBinary(true);
      }
    } catch (error) {
      complain(`${path} could not be read`, error);
    }
  };
  const isStale = shown !== undefined && shown.tag !== `"${dataRevision}"`;
  useEffect(() => {
    if (worldReadable && (shown === undefined || (isStale && edited === undefined))) void read();
  }, [dataRevision, worldReadable]);
  const save = async (tag: string): Promise<void> => {
    try {
      await call('writeMetadata', {
        params: { name, path },
        body: new TextEncoder().encode(edited!),
        headers: { 'if-match': tag },
      });
      setEdited(undefined);
      setConflict(false);
      await read();
    } catch (error) {
      if (error instanceof ApiError && error.code === 'PRECONDITION_FAILED') setConflict(true);
      else complain(`${path} was not written`, error);
    }
  };
  if (isBinary) return <p class="count">It is no text: {sizeWord(entry.sizeBytes)}.</p>;
  if (shown === undefined)
    return worldReadable ? (
      <p class="count">Reading …</p>
    ) : (
      <div class="masked">
        <span aria-hidden="true">••••••••</span>
        <button type="button" onClick={() => void read()}>
          Show the value
        </button>
        <span class="count">That you asked is put on record.</span>
      </div>
    );
  return (
    <>
      <label class="field">
        Value
        <textarea
          rows={6}
          spellcheck={false}
          value={edited ?? shown.text}
          readOnly={!may('operator')}
          onInput={({ currentTarget }) => setEdited(currentTarget.value)}
        />
      </label>
      {(conflict || (isStale && edited !== undefined)) && (
        <div class="note" role="alert">
          <p>It was changed by somebody else meanwhile. Yours was not saved.</p>
          <div class="actions">
            <button
              type="button"
              onClick={() => {
                setEdited(undefined);
                setConflict(false);
                void read();
              }}
            >
              Take theirs
            </button>
            <button type="button" class="danger-quiet" onClick={() => void save(`"${dataRevision}"`)}>
              Write mine over it
            </button>
          </div>
        </div>
      )}
      {isStale && edited === undefined && !worldReadable && (
        <div class="note" role="status">
          <p>It has changed since it was shown.</p>
          <button type="button" onClick={() => void read()}>
            Show it as it is now
          </button>
        </div>
      )}
      {may('operator') && (
        <div class="actions">
          <button type="button" disabled={edited === undefined} onClick={() => setEdited(undefined)}>
            Undo
          </button>
          <button
            type="button"
            class="primary"
            disabled={edited === undefined || edited === shown.text}
            onClick={() => void save(shown.tag)}
          >
            Save
          </button>
        </div>
      )}
    </>
  );
};

const NewValue = ({ name, close }: { readonly name: string; readonly close: () => void }): JSX.Element => {
  const [path, setPath] = useState('/');
  const [value, setValue] = useState('');
  const [problem, setProblem] = useState('');
  const make = async (): Promise<void> => {
    try {
      await call('writeMetadata', {
        params: { name, path },
        body: new TextEncoder().encode(value),
        headers: { 'if-none-match': '*' },
      });
      setQuery({ path });
      close();
    } catch (error) {
      setProblem(
        error instanceof ApiError && error.code === 'PRECONDITION_FAILED'
          ? `${path} is there already`
          : (error as Error).message,
      );
    }
  };
  return (
    <Dialog title="New value" action="Make it" onAction={() => void make()} onCancel={close}>
      <label class="field">
        Path
        <input value={path} spellcheck={false} onInput={({ currentTarget }) => setPath(currentTarget.value)} />
      </label>
      <label class="field">
        Value
        <textarea
          rows={4}
          spellcheck={false}
          value={value}
          onInput={({ currentTarget }) => setValue(currentTarget.value)}
        />
      </label>
      {problem !== '' && (
        <p class="bad-text" role="alert">
          {problem}
        </p>
      )}
    </Dialog>
  );
};
