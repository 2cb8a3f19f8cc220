import type { JSX } from 'preact';
import { useEffect, useMemo, useState } from 'preact/hooks';
import { call, eventsOf, type ResultOf } from '../api.ts';
import { query, setQuery } from '../router.ts';
import { useAsked } from '../ui/asked.ts';
import { Empty, Failure, Loading } from '../ui/states.tsx';
import { type Column, type Sort, Table } from '../ui/table.tsx';
import { complain } from '../ui/toasts.tsx';
import { download, timeWord } from '../ui/words.ts';

type AuditEvent = ResultOf<'queryAudit'>['events'][number];

const nobody = 4_294_967_295;
const whoOf = ({ uid, program, by }: AuditEvent): string =>
  by ?? (uid === nobody ? 'nobody' : `uid ${uid}${program === undefined ? '' : `, ${program}`}`);

const Verdict = ({ verdict }: Pick<AuditEvent, 'verdict'>): JSX.Element => (
  <span class={`badge ${verdict === 'denied' ? 'bad' : 'good'}`}>{verdict}</span>
);

const text = (value: string): JSX.Element => <span title={value}>{value}</span>;

const columns: readonly Column<AuditEvent>[] = [
  {
    id: 'path',
    title: 'Path',
    width: 'minmax(12rem, 2fr)',
    cell: ({ path }) => text(path),
    sortBy: ({ path }) => path,
    isNarrow: true,
  },
  {
    id: 'verdict',
    title: 'Verdict',
    width: '7rem',
    cell: ({ verdict }) => <Verdict verdict={verdict} />,
    sortBy: ({ verdict }) => verdict,
    isNarrow: true,
  },
  { id: 'time', title: 'Time', width: '12rem', cell: ({ time }) => timeWord(time), sortBy: ({ time }) => time },
  { id: 'vm', title: 'VM', width: 'minmax(6rem, 1fr)', cell: ({ vm }) => text(vm), sortBy: ({ vm }) => vm },
  { id: 'who', title: 'Who', width: 'minmax(8rem, 1.5fr)', cell: (one) => text(whoOf(one)), sortBy: whoOf },
  {
    id: 'operation',
    title: 'Did',
    width: '6rem',
    cell: ({ operation }) => operation,
    sortBy: ({ operation }) => operation,
  },
  { id: 'rule', title: 'Rule', width: 'minmax(7rem, 1fr)', cell: ({ rule }) => text(rule) },
];

const fields = [
  { name: 'vm', title: 'VM' },
  { name: 'path', title: 'Path' },
  { name: 'uid', title: 'uid' },
] as const;

const recordsMost = 2_000;
const keyOf = ({ host, region, id, time, vm }: AuditEvent): string =>
  `${region ?? ''}/${host ?? ''}/${id}/${vm}/${time}`;

export default function AuditView(): JSX.Element {
  const asked = query.value;
  const filter = useMemo(() => {
    const of = (name: string): string | undefined => asked.get(name) || undefined;
    const path = of('path');
    const verdict = of('verdict') as AuditEvent['verdict'] | undefined;
    return {
      vm: of('vm'),
      path: path === undefined || path.startsWith('/') ? path : `/${path}`,
      uid: of('uid'),
      verdict,
    };
  }, [asked]);
  const [sort, setSort] = useState<Sort>({ column: 'time', isDescending: true });
  const [follows, setFollows] = useState(false);
  const [news, setNews] = useState<readonly AuditEvent[]>([]);
  const found = useAsked([filter], async (signal) => {
    const events: AuditEvent[] = [];
    const missing: ResultOf<'queryAudit'>['missing'] = [];
    let cursor: string | undefined;
    do {
      const page = await call('queryAudit', {
        query: { ...filter, order: 'newest', regions: 'all', limit: 500, cursor },
        signal,
      });
      events.push(...page.events);
      missing.push(...page.missing);
      cursor = page.next;
    } while (cursor !== undefined && events.length < recordsMost);
    return { events, missing, isAll: cursor === undefined };
  });
  useEffect(() => {
    setNews([]);
    if (!follows) return undefined;
    const stop = new AbortController();
    const follow = async (): Promise<void> => {
      try {
        for await (const { event, data } of eventsOf('followAudit', { query: filter, signal: stop.signal }))
          if (event === 'audit') setNews((before) => [data as AuditEvent, ...before].slice(0, recordsMost));
      } catch (error) {
        if (stop.signal.aborted) return;
        complain('The audit is not followed any more', error);
        setFollows(false);
      }
    };
    void follow();
    return () => stop.abort();
  }, [follows, filter]);
  const rows = useMemo(() => {
    const known = new Set((found.value?.events ?? []).map(({ id, time, vm }) => `${id}/${vm}/${time}`));
    return [...news.filter(({ id, time, vm }) => !known.has(`${id}/${vm}/${time}`)), ...(found.value?.events ?? [])];
  }, [found.value, news]);
  const save = (): void =>
    download('audit.jsonl', 'application/jsonl', rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  return (
    <div class="view">
      <div class="view-head">
        <h1>Audit</h1>
        <span class="count">
          {found.value === undefined
            ? ''
            : `${rows.length.toLocaleString('en')}${found.value.isAll ? '' : ' newest'} records`}
        </span>
      </div>
      <div class="tools" role="search" aria-label="Audit">
        {fields.map(({ name, title }) => (
          <label key={name} class="inline-field">
            {title}
            <input
              type="search"
              value={asked.get(name) ?? ''}
              onChange={({ currentTarget }) => setQuery({ [name]: currentTarget.value.trim() })}
            />
          </label>
        ))}
        <label class="inline-field">
          Verdict
          <select
            value={asked.get('verdict') ?? ''}
            onChange={({ currentTarget }) => setQuery({ verdict: currentTarget.value })}
          >
            <option value="">any</option>
            <option value="allowed">allowed</option>
            <option value="denied">denied</option>
          </select>
        </label>
        <div class="group">
          <label class="check">
            <input type="checkbox" checked={follows} onChange={() => setFollows(!follows)} />
            Follow
          </label>
          <button type="button" onClick={found.again}>
            Ask again
          </button>
          <button type="button" disabled={rows.length === 0} onClick={save}>
            Export JSON lines
          </button>
        </div>
      </div>
      {(found.value?.missing ?? []).map(({ region, host, reason }) => (
        <p class="note" key={`${region}/${host ?? ''}`}>
          {host === undefined ? `Region ${region}` : `Host ${host} of ${region}`} did not answer: {reason}
        </p>
      ))}
      {found.error !== undefined ? (
        <Failure title="The audit could not be asked" detail={found.error.message} again={found.again} />
      ) : found.value === undefined ? (
        <Loading what="the audit" />
      ) : (
        <Table
          label="Audit"
          columns={columns}
          rows={rows}
          keyOf={keyOf}
          sort={sort}
          onSort={setSort}
          empty={
            <Empty title="No record matches">
              <p>Reads and refusals of what not everybody may read are recorded.</p>
            </Empty>
          }
        />
      )}
    </div>
  );
}
