import type { JSX } from 'preact';
import { useMemo, useState } from 'preact/hooks';
import { call, type Vm } from '../api.ts';
import { vms } from '../live.ts';
import { navigate, query, setQuery } from '../router.ts';
import { may } from '../session.ts';
import { VmBadge } from '../ui/badge.tsx';
import { Dialog } from '../ui/dialog.tsx';
import { Empty, Loading } from '../ui/states.tsx';
import { type Column, type Sort, Table } from '../ui/table.tsx';
import { complain, tell } from '../ui/toasts.tsx';

const columns: readonly Column<Vm>[] = [
  {
    id: 'name',
    title: 'Name',
    width: 'minmax(11rem, 2fr)',
    cell: ({ name }) => (
      <a href={`/vms/${encodeURIComponent(name)}`} title={name} tabIndex={-1}>
        {name}
      </a>
    ),
    sortBy: ({ name }) => name,
    isNarrow: true,
  },
  {
    id: 'status',
    title: 'Status',
    width: '8rem',
    cell: ({ status }) => <VmBadge status={status} />,
    sortBy: ({ status }) => status,
    isNarrow: true,
  },
  { id: 'type', title: 'Type', width: '6rem', cell: ({ type }) => type, sortBy: ({ type }) => type },
  { id: 'image', title: 'Image', width: 'minmax(7rem, 1fr)', cell: (vm) => imageOf(vm), sortBy: (vm) => imageOf(vm) },
  { id: 'host', title: 'Host', width: 'minmax(6rem, 1fr)', cell: ({ host }) => host, sortBy: ({ host }) => host },
  {
    id: 'labels',
    title: 'Labels',
    width: 'minmax(8rem, 2fr)',
    cell: (vm) => <span title={labelsOf(vm)}>{labelsOf(vm)}</span>,
  },
];

const imageOf = ({ image }: Vm): string => (image === undefined ? '–' : `${image.name}@${image.version}`);
const labelsOf = ({ labels }: Vm): string =>
  Object.entries(labels)
    .map(([key, value]) => (value === '' ? key : `${key}=${value}`))
    .join(' ');

const texts = new WeakMap<Vm, string>();
/** What a filter looks at. */
const textOf = (vm: Vm): string => {
  let text = texts.get(vm);
  if (text === undefined) {
    text = [vm.name, vm.status, vm.type, imageOf(vm), vm.host, labelsOf(vm), ...vm.addresses].join('\n').toLowerCase();
    texts.set(vm, text);
  }
  return text;
};

const statuses = [
  'creating',
  'starting',
  'running',
  'stopping',
  'stopped',
  'failed',
  'lost',
  'compromised',
] as const satisfies Vm['status'][];

const actions = {
  start: { word: 'Start', told: 'Starting', isDangerous: false, warning: '' },
  stop: {
    word: 'Stop',
    told: 'Stopping',
    isDangerous: false,
    warning: 'Their guests are asked to stop by themselves first.',
  },
  delete: {
    word: 'Delete',
    told: 'Deleting',
    isDangerous: true,
    warning: 'Their disks and their metadata go with them. This can’t be undone.',
  },
} as const;
type Action = keyof typeof actions;

const vmsWord = (count: number): string => `${count.toLocaleString('en')} ${count === 1 ? 'VM' : 'VMs'}`;

export default function VmsView(): JSX.Element {
  const all = vms.value;
  const filter = query.value.get('q') ?? '';
  const status = query.value.get('status') ?? '';
  const sortText = query.value.get('sort') ?? 'name';
  const sort = useMemo<Sort>(
    () => ({ column: sortText.replace(/^-/, ''), isDescending: sortText.startsWith('-') }),
    [sortText],
  );
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [asked, setAsked] = useState<Action>();
  const rows = useMemo(() => {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    return (all ?? []).filter(
      (vm) => (status === '' || vm.status === status) && words.every((word) => textOf(vm).includes(word)),
    );
  }, [all, filter, status]);
  // What is gone, or filtered away, is not acted on.
  const chosen = useMemo(() => rows.filter(({ name }) => selected.has(name)), [rows, selected]);
  const names = useMemo(() => new Set(chosen.map(({ name }) => name)), [chosen]);
  if (all === undefined) return <Loading what="VMs" />;
  return (
    <div class="view">
      <div class="view-head">
        <h1>VMs</h1>
        <span class="count" role="status">
          {rows.length === all.length
            ? vmsWord(all.length)
            : `${rows.length.toLocaleString('en')} of ${vmsWord(all.length)}`}
        </span>
      </div>
      <div class="tools" role="search" aria-label="Filter VMs">
        <label class="grow">
          <span class="hidden">Filter by name, label, image or host</span>
          <input
            type="search"
            placeholder="Filter by name, label, image or host"
            value={filter}
            onInput={({ currentTarget }) => setQuery({ q: currentTarget.value })}
          />
        </label>
        <label>
          <span class="hidden">Status</span>
          <select value={status} onChange={({ currentTarget }) => setQuery({ status: currentTarget.value })}>
            <option value="">Any status</option>
            {statuses.map((one) => (
              <option key={one} value={one}>
                {one}
              </option>
            ))}
          </select>
        </label>
        {may('operator') && (
          <div class="group" role="group" aria-label="Actions on the selected VMs">
            <span class="count">
              {chosen.length === 0 ? 'None selected' : `${chosen.length.toLocaleString('en')} selected`}
            </span>
            {(Object.keys(actions) as Action[]).map((action) => (
              <button
                type="button"
                key={action}
                class={actions[action].isDangerous ? 'danger-quiet' : ''}
                disabled={chosen.length === 0}
                onClick={() => setAsked(action)}
              >
                {actions[action].word}
              </button>
            ))}
          </div>
        )}
      </div>
      <Table
        label="VMs"
        columns={columns}
        rows={rows}
        keyOf={nameOf}
        sort={sort}
        onSort={({ column, isDescending }) => setQuery({ sort: `${isDescending ? '-' : ''}${column}` })}
        selected={names}
        onSelect={setSelected}
        onEnter={({ name }) => navigate(`/vms/${encodeURIComponent(name)}`)}
        empty={
          all.length === 0 ? (
            <Empty title="No VMs yet">
              <p>Make one with:</p>
              <pre>
                <code>porthole vm create web --image tiny --type nano</code>
              </pre>
            </Empty>
          ) : (
            <Empty title="No VM matches">
              <button type="button" onClick={() => setQuery({ q: '', status: '' })}>
                Clear the filter
              </button>
            </Empty>
          )
        }
      />
      {asked && (
        <Confirm action={asked} chosen={chosen} close={() => setAsked(undefined)} done={() => setSelected(new Set())} />
      )}
    </div>
  );
}

const nameOf = ({ name }: Vm): string => name;

/** A request takes so many names. */
const namesMost = 1000;
const namesShown = 8;

const Confirm = ({
  action,
  chosen,
  close,
  done,
}: {
  readonly action: Action;
  readonly chosen: readonly Vm[];
  readonly close: () => void;
  readonly done: () => void;
}): JSX.Element => {
  const { word, told, isDangerous, warning } = actions[action];
  const [isBusy, setBusy] = useState(false);
  // Those that were chosen when it was asked: it does not change under the pointer.
  const [names] = useState(() => chosen.map(nameOf));
  const what = names.length === 1 ? names[0]! : vmsWord(names.length);
  const run = async (): Promise<void> => {
    setBusy(true);
    try {
      for (let i = 0; i < names.length; i += namesMost) {
        const some = names.slice(i, i + namesMost);
        const { operation } = await call('actOnVms', { body: { action, selector: { names: some } } });
        tell(`${told} ${some.length === names.length ? what : vmsWord(some.length)}`, operation);
      }
      done();
    } catch (error) {
      complain(`${word} failed`, error);
    }
    close();
  };
  return (
    <Dialog
      title={`${word} ${what}?`}
      action={`${word} ${what}`}
      isDangerous={isDangerous}
      isBusy={isBusy}
      onAction={() => void run()}
      onCancel={close}
    >
      <ul class="names">
        {names.slice(0, namesShown).map((name) => (
          <li key={name}>{name}</li>
        ))}
        {names.length > namesShown && <li>and {(names.length - namesShown).toLocaleString('en')} more</li>}
      </ul>
      {warning !== '' && <p>{warning}</p>}
    </Dialog>
  );
};
