/** `porthole audit`: who read or was refused what. */
import { type Command, Option } from 'commander';
import type { StreamEvent } from '../../cluster/client/index.ts';
import { printable } from '../../wire/index.ts';
import { parseMoment } from '../amounts.ts';
import type { Api } from '../api.ts';
import { apiCommand, examples, parseCount, parseId, type Shell } from '../command.ts';
import type { AuditEvent } from '../shapes.ts';
import { type Column, table } from '../table.ts';
import { type Colours, paintFor } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { breakWords, untilInterrupted } from './console.ts';

interface AuditFlags {
  readonly vm?: string;
  readonly path?: string;
  readonly uid?: number;
  readonly operation?: string;
  readonly denied?: true;
  readonly allowed?: true;
  readonly since?: number;
  readonly until?: number;
  readonly limit?: number;
  readonly all?: true;
  readonly follow?: true;
  readonly json?: true;
}

const page = 500;

export const auditCommands = (program: Command, shell: Shell): void => {
  const when = parseMoment(shell.terminal.wallMs());
  apiCommand(program, 'audit', 'say who read or was refused what')
    .option('--vm <vm>', 'of this virtual machine')
    .option('--path <path>', 'at this path or below it')
    .option('--uid <uid>', 'by this user', parseId)
    .option('--operation <name>', 'this operation, as "open"')
    .addOption(new Option('--denied', 'what was refused only').conflicts('allowed'))
    .option('--allowed', 'what was allowed only')
    .option('--since <when>', 'from then on: "15m", "2h", "3d" ago, or "2026-03-01T12:00:00Z"', when)
    .option('--until <when>', 'before then', when)
    .option('-n, --limit <count>', 'the newest so many (default: 100, with --since: all)', parseCount(1, 1_000_000))
    .option('-f, --follow', 'go on with what comes, until Ctrl-C; what was before: with --since or --limit')
    .option('--json', 'print JSON lines')
    .addHelpText(
      'after',
      examples(
        'porthole audit --vm web-1 --path /secrets --since 1d',
        'porthole audit --denied --follow',
        'porthole audit --path /secrets/db-password --json > reads.jsonl',
      ),
    )
    .action((flags: AuditFlags) => audit(shell, flags));
};

const audit = async (shell: Shell, flags: AuditFlags): Promise<void> => {
  const { terminal } = shell;
  const { vm, path, uid, operation } = flags;
  if (flags.follow === true && flags.until !== undefined)
    throw new UsageError('--follow has no end; leave --until out');
  const verdict = flags.denied === true ? 'denied' : flags.allowed === true ? 'allowed' : undefined;
  const filter: Filter = { vm, path, uid, operation, verdict };
  const api = shell.api();
  const print = printer(shell, flags.json === true);
  if (flags.follow !== true) {
    if ((await print(past(api, filter, flags))) === 0 && flags.json !== true) terminal.err('no record matches\n');
    return;
  }
  await untilInterrupted(terminal, async () => {
    const open = (lastEventId?: string) =>
      api.stream('followAudit', {
        query: filter,
        onBreak: breakWords(terminal),
        ...(lastEventId !== undefined && { lastEventId }),
      });
    // Begun before what was is asked for, so that nothing falls between.
    let events = await open();
    let last: string | undefined;
    if (flags.since !== undefined || flags.limit !== undefined) {
      await print(
        (async function* () {
          for await (const event of past(api, filter, flags)) {
            last = event.id;
            yield event;
          }
        })(),
      );
      if (last !== undefined) {
        await events[Symbol.asyncIterator]().return?.();
        events = await open(last);
      }
    }
    await print(auditOf(events));
  });
};

async function* auditOf(events: AsyncIterable<StreamEvent>): AsyncGenerator<AuditEvent> {
  for await (const { event, data } of events) if (event === 'audit') yield data as AuditEvent;
}

interface Filter {
  readonly vm: string | undefined;
  readonly path: string | undefined;
  readonly uid: number | undefined;
  readonly operation: string | undefined;
  readonly verdict: 'allowed' | 'denied' | undefined;
}

/** Oldest first. */
async function* past(api: Api, filter: Filter, flags: AuditFlags): AsyncGenerator<AuditEvent> {
  const iso = (ms: number | undefined) => (ms === undefined ? undefined : new Date(ms).toISOString());
  const query = { ...filter, from: iso(flags.since), until: iso(flags.until) };
  const limit = flags.limit ?? (flags.since === undefined ? 100 : undefined);
  if (limit === undefined) {
    for await (const { events } of api.pages('queryAudit', { ...query, limit: page })) yield* events;
    return;
  }
  const newest: AuditEvent[] = [];
  const pages = api.pages('queryAudit', {
    ...query,
    order: 'newest',
    limit: Math.min(limit, page),
  });
  for await (const { events } of pages) {
    newest.push(...events);
    if (newest.length >= limit) break;
  }
  yield* newest.slice(0, limit).toReversed();
}

/** Prints as they come, and answers how many. A table's columns are as wide as those of its first page need. */
const printer = ({ terminal }: Shell, isJson: boolean) => {
  const columns = columnsFor(paintFor(terminal, 'out'));
  const { dim } = paintFor(terminal, 'out');
  let hasTitle = false;
  return async (events: AsyncIterable<AuditEvent>): Promise<number> => {
    let count = 0;
    for await (const event of events) {
      count++;
      if (isJson) terminal.out(`${JSON.stringify(event)}\n`);
      else {
        const lines = table(columns, [event], dim);
        terminal.out(hasTitle ? lines.slice(lines.indexOf('\n') + 1) : lines);
        hasTitle = true;
      }
      await terminal.drained();
    }
    return count;
  };
};

/** Wide enough for nearly all, so that lines that come one by one stay below each other. */
const fixed = (width: number, text: string): string => printable(text).padEnd(width);

const columnsFor = (paint: Colours): readonly Column<AuditEvent>[] => [
  { title: 'TIME', cell: ({ time }) => `${time.slice(0, 19)}Z` },
  { title: 'VM', cell: ({ vm }) => fixed(12, vm) },
  { title: 'UID', cell: ({ uid, by }) => (by === undefined ? String(uid) : '-').padStart(6), align: 'right' },
  { title: 'OPERATION', cell: ({ operation }) => fixed(9, operation) },
  {
    title: 'VERDICT',
    cell: ({ verdict, errno }) => fixed(14, errno === undefined ? verdict : `${verdict} ${errno}`),
    paint: (text, { verdict }) => (verdict === 'denied' ? paint.error(text) : text),
  },
  {
    title: 'PATH',
    cell: ({ path, program, by }) => {
      const who = program ?? by;
      return fixed(24, path) + (who === undefined ? '' : ` (${printable(who)})`);
    },
  },
  { title: 'RULE', cell: ({ rule, dropped, droppedOthers }) => ruleWords(rule, (dropped ?? 0) + (droppedOthers ?? 0)) },
];

const ruleWords = (rule: string, dropped: number): string =>
  printable(rule) + (dropped === 0 ? '' : `  (and ${dropped} more like it)`);
