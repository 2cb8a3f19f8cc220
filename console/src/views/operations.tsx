import type { JSX } from 'preact';
import { useMemo, useState } from 'preact/hooks';
import { call, type Operation } from '../api.ts';
import { operations } from '../live.ts';
import { may } from '../session.ts';
import { allPages, useAsked } from '../ui/asked.ts';
import { OperationBadge } from '../ui/badge.tsx';
import { Empty, Failure, Loading } from '../ui/states.tsx';
import { type Column, type Sort, Table } from '../ui/table.tsx';
import { complain } from '../ui/toasts.tsx';
import { timeWord } from '../ui/words.ts';

const targetOf = ({ target }: Operation): string =>
  target.version === undefined ? target.name : `${target.name}@${target.version}`;
const tellsOf = ({ error, step, done, total }: Operation): string =>
  error?.detail ?? [total === undefined ? '' : `${done} of ${total}`, step].filter(Boolean).join(', ');

const Cancel = ({ operation }: { readonly operation: Operation }): JSX.Element | null => {
  if (!may('operator') || operation.finishedAt !== undefined) return null;
  const cancel = (): void => {
    call('cancelOperation', { params: { id: operation.id } }).catch((error: unknown) =>
      complain(`${operation.kind} of ${targetOf(operation)} could not be cancelled`, error),
    );
  };
  return (
    <button
      type="button"
      class="small"
      aria-label={`Cancel ${operation.kind} of ${targetOf(operation)}`}
      onClick={cancel}
    >
      Cancel
    </button>
  );
};

const columns: readonly Column<Operation>[] = [
  {
    id: 'kind',
    title: 'Operation',
    width: '9rem',
    cell: ({ kind }) => kind,
    sortBy: ({ kind }) => kind,
    isNarrow: true,
  },
  {
    id: 'state',
    title: 'State',
    width: '8rem',
    cell: ({ state }) => <OperationBadge state={state} />,
    sortBy: ({ state }) => state,
    isNarrow: true,
  },
  { id: 'of', title: 'Of', width: 'minmax(8rem, 1fr)', cell: (one) => targetOf(one), sortBy: (one) => targetOf(one) },
  {
    id: 'tells',
    title: 'What it says',
    width: 'minmax(10rem, 2fr)',
    cell: (one) => <span title={tellsOf(one)}>{tellsOf(one)}</span>,
  },
  {
    id: 'begun',
    title: 'Begun',
    width: '12rem',
    cell: ({ createdAt }) => timeWord(createdAt),
    sortBy: ({ createdAt }) => createdAt,
  },
  { id: 'cancel', title: 'Action', width: '5.5rem', cell: (operation) => <Cancel operation={operation} /> },
];

export default function OperationsView(): JSX.Element {
  const [sort, setSort] = useState<Sort>({ column: 'begun', isDescending: true });
  const before = useAsked([], (signal) =>
    allPages(async (cursor) => {
      const { operations: rows, next } = await call('listOperations', { query: { limit: 500, cursor }, signal });
      return { rows, next };
    }),
  );
  const live = operations.value;
  const rows = useMemo(() => {
    const all = new Map((before.value ?? []).map((one) => [one.id, one]));
    for (const one of live) all.set(one.id, one);
    return [...all.values()];
  }, [before.value, live]);
  if (before.error !== undefined)
    return <Failure title="Operations could not be listed" detail={before.error.message} again={before.again} />;
  if (before.value === undefined) return <Loading what="operations" />;
  return (
    <div class="view">
      <div class="view-head">
        <h1>Operations</h1>
        <span class="count">{rows.length.toLocaleString('en')} of the last day</span>
      </div>
      <Table
        label="Operations"
        columns={columns}
        rows={rows}
        keyOf={({ id }) => id}
        sort={sort}
        onSort={setSort}
        empty={<Empty title="Nothing was asked for in the last day" />}
      />
    </div>
  );
}
