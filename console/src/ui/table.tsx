/**
 * A table of any length: only the rows that are seen are in the page. By keyboard: arrows, Page Up and Down, Home and End move,
 * Space selects, Shift with them selects on the way, Ctrl-A selects all, Escape none, Enter opens.
 */
import { signal } from '@preact/signals';
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks';

export interface Column<T> {
  readonly id: string;
  readonly title: string;
  /** A track of CSS grid. */
  readonly width: string;
  readonly cell: (row: T) => ComponentChildren;
  /** What it is sorted by; without: it is not. */
  readonly sortBy?: (row: T) => string | number;
  /** Rows of a narrow window have two lines: the first of these columns, with the second at its end, above the others. */
  readonly isNarrow?: boolean;
}

export interface Sort {
  readonly column: string;
  readonly isDescending: boolean;
}

export interface TableProps<T> {
  /** For screen readers: what is in it. */
  readonly label: string;
  readonly columns: readonly Column<T>[];
  readonly rows: readonly T[];
  readonly keyOf: (row: T) => string;
  readonly sort: Sort;
  readonly onSort: (sort: Sort) => void;
  /** Without: rows are opened, and not selected. */
  readonly selected?: ReadonlySet<string>;
  readonly onSelect?: (selected: ReadonlySet<string>) => void;
  /** By a click on a row, or Enter. */
  readonly onOpen?: (row: T) => void;
  /** By Enter alone: a click is on a link in the row. */
  readonly onEnter?: (row: T) => void;
  readonly empty: ComponentChildren;
}

const narrowWindow = matchMedia('(max-width: 40rem)');
const isNarrow = signal(narrowWindow.matches);
narrowWindow.addEventListener('change', ({ matches }) => {
  isNarrow.value = matches;
});

const rowHeight = { wide: 36, narrow: 60 } as const;
/** Rows in the page above and below those that are seen. */
const overscan = 8;

const none: ReadonlySet<string> = new Set();

const compare = (a: string | number, b: string | number): number => (a < b ? -1 : a > b ? 1 : 0);

export function Table<T>(props: TableProps<T>): JSX.Element {
  const { label, columns, rows, keyOf, sort, onSort, selected = none, onSelect: select, onOpen, empty } = props;
  const onEnter = props.onEnter ?? onOpen;
  const onSelect = select ?? (() => undefined);
  const id = useId();
  const grid = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 600 });
  const [active, setActive] = useState<string>();
  const height = isNarrow.value ? rowHeight.narrow : rowHeight.wide;

  const sorted = useMemo(() => {
    const by = columns.find((column) => column.id === sort.column)?.sortBy;
    if (by === undefined) return rows;
    const factor = sort.isDescending ? -1 : 1;
    const keyed = rows.map((row, i) => ({ row, by: by(row), i }));
    return keyed.toSorted((a, b) => factor * compare(a.by, b.by) || a.i - b.i).map(({ row }) => row);
  }, [rows, columns, sort]);
  const activeIndex = useMemo(
    () => (active === undefined ? -1 : sorted.findIndex((row) => keyOf(row) === active)),
    [sorted, active],
  );

  useLayoutEffect(() => {
    const element = grid.current!;
    const look = (): void => setView({ top: element.scrollTop, height: element.clientHeight });
    const observer = new ResizeObserver(look);
    observer.observe(element);
    element.addEventListener('scroll', look, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener('scroll', look);
    };
  }, []);
  useEffect(() => {
    grid.current!.scrollTop = 0;
  }, [sort]);

  const first = Math.max(0, Math.floor(view.top / height) - overscan);
  const shown = sorted.slice(first, first + Math.ceil(view.height / height) + 2 * overscan);

  const toggle = (key: string): void => {
    const next = new Set(selected);
    if (!next.delete(key)) next.add(key);
    onSelect(next);
  };
  const all = (): void => onSelect(new Set(sorted.map(keyOf)));
  const isAll = sorted.length > 0 && sorted.every((row) => selected.has(keyOf(row)));

  const go = (index: number, isSelecting: boolean): void => {
    const to = Math.max(0, Math.min(sorted.length - 1, index));
    const row = sorted[to];
    if (row === undefined) return;
    const key = keyOf(row);
    setActive(key);
    if (isSelecting) {
      const from = activeIndex < 0 ? to : activeIndex;
      const between = sorted.slice(Math.min(from, to), Math.max(from, to) + 1).map(keyOf);
      onSelect(new Set([...selected, ...between]));
    }
    const element = grid.current!;
    const room = element.clientHeight - headHeight;
    if (to * height < element.scrollTop) element.scrollTop = to * height;
    else if ((to + 1) * height > element.scrollTop + room) element.scrollTop = (to + 1) * height - room;
  };

  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.target !== event.currentTarget) return;
    const page = Math.max(1, Math.floor((view.height - headHeight) / height) - 1);
    const row = sorted[activeIndex];
    const steps: Readonly<Record<string, number>> = {
      ArrowDown: activeIndex + 1,
      ArrowUp: Math.max(0, activeIndex - 1),
      PageDown: activeIndex + page,
      PageUp: activeIndex - page,
      Home: 0,
      End: sorted.length - 1,
    };
    const to = steps[event.key];
    if (to !== undefined) go(to, event.shiftKey);
    else if (event.key === ' ' && row !== undefined) toggle(keyOf(row));
    else if (event.key === 'a' && (event.ctrlKey || event.metaKey)) all();
    else if (event.key === 'Escape') onSelect(new Set());
    else if (event.key === 'Enter' && row !== undefined && onEnter) onEnter(row);
    else return;
    event.preventDefault();
  };

  const tracks = `${select ? '2.25rem ' : ''}${columns.map(({ width }) => width).join(' ')}`;
  return (
    <div
      class="table"
      role="grid"
      ref={grid}
      tabIndex={0}
      aria-label={label}
      aria-multiselectable={select !== undefined}
      aria-rowcount={sorted.length + 1}
      aria-activedescendant={activeIndex >= 0 ? `${id}-${active}` : undefined}
      onKeyDown={onKeyDown}
    >
      <div role="rowgroup" class="table-head">
        <div role="row" aria-rowindex={1} class="table-row" style={{ gridTemplateColumns: tracks }}>
          {select && (
            <div role="columnheader" class="select-cell">
              <input
                type="checkbox"
                aria-label="Select all"
                checked={isAll}
                disabled={sorted.length === 0}
                onChange={() => (isAll ? onSelect(new Set()) : all())}
              />
            </div>
          )}
          {columns.map(({ id: column, title, sortBy }) => {
            const isSorted = sort.column === column;
            const direction = sort.isDescending ? 'descending' : 'ascending';
            return (
              <div role="columnheader" key={column} aria-sort={isSorted ? direction : undefined}>
                {sortBy === undefined ? (
                  title
                ) : (
                  <button
                    type="button"
                    class="sort"
                    onClick={() => onSort({ column, isDescending: isSorted && !sort.isDescending })}
                  >
                    {title}
                    <span aria-hidden="true">{isSorted ? (sort.isDescending ? ' ↓' : ' ↑') : ''}</span>
                  </button>
                )}
              </div>
            );
          })}
        </div>
      </div>
      <div role="rowgroup" class="table-body" style={{ height: `${sorted.length * height}px` }}>
        {shown.map((row, i) => {
          const key = keyOf(row);
          return (
            <Row
              key={key}
              id={`${id}-${key}`}
              name={key}
              row={row}
              columns={columns}
              index={first + i}
              height={height}
              tracks={tracks}
              isSelected={selected.has(key)}
              isActive={key === active}
              onToggle={select && (() => toggle(key))}
              onOpen={onOpen && (() => onOpen(row))}
              onActive={() => setActive(key)}
            />
          );
        })}
      </div>
      {sorted.length === 0 && (
        <div role="rowgroup">
          <div role="row">
            <div role="gridcell">{empty}</div>
          </div>
        </div>
      )}
    </div>
  );
}

const headHeight = 36;

interface RowProps<T> {
  readonly id: string;
  readonly name: string;
  readonly row: T;
  readonly columns: readonly Column<T>[];
  readonly index: number;
  readonly height: number;
  readonly tracks: string;
  readonly isSelected: boolean;
  readonly isActive: boolean;
  readonly onToggle: (() => void) | undefined;
  readonly onOpen: (() => void) | undefined;
  readonly onActive: () => void;
}

function Row<T>({
  id,
  name,
  row,
  columns,
  index,
  height,
  tracks,
  isSelected,
  isActive,
  ...on
}: RowProps<T>): JSX.Element {
  return (
    <div
      id={id}
      role="row"
      aria-rowindex={index + 2}
      aria-selected={on.onToggle ? isSelected : undefined}
      class={`table-row${isActive ? ' active' : ''}${on.onOpen ? ' opens' : ''}`}
      style={{ top: `${index * height}px`, height: `${height}px`, gridTemplateColumns: tracks }}
      onClick={() => {
        on.onActive();
        on.onOpen?.();
      }}
    >
      {on.onToggle && (
        <div role="gridcell" class="select-cell">
          <input
            type="checkbox"
            tabIndex={-1}
            aria-label={`Select ${name}`}
            checked={isSelected}
            onChange={on.onToggle}
          />
        </div>
      )}
      {columns.map((column) => (
        <div role="gridcell" key={column.id} class={column.isNarrow ? 'first-line' : 'second-line'}>
          {column.cell(row)}
        </div>
      ))}
    </div>
  );
}
