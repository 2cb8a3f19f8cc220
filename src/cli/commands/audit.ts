/** `porthole audit`: who read or was refused what. */
import { type Command, Option } from 'commander';
import type { StreamEvent } from '../../cluster/client/index.ts';
import type { ResultOf } from '../../cluster/index.ts';
import { printable } from '../../wire/index.ts';
import { parseMoment } from '../amounts.ts';
import type { Api } from '../api.ts';
import { apiCommand, examples, parseCount, parseId, type Shell } from '../command.ts';
import { exitCodes } from '../exit-code.ts';
import type { AuditEvent } from '../shapes.ts';
import { type Column, table } from '../table.ts';
import { type Colours, paintFor } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { auditVerifyCommand } from './audit-verify.ts';
import { breakWords, untilInterrupted } from './console.ts';

interface AuditFlags {
  readonly vm?: string;
  readonly allVms?: true;
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
  const audit = apiCommand(program, 'audit', 'say who read or was refused what');
  audit.helpCommand(false);
  auditVerifyCommand(audit, shell);
  audit
    .option('--vm <vm>', 'of this virtual machine')
    .addOption(new Option('--all-vms', 'of all virtual machines, in all regions').conflicts(['vm', 'follow']))
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
        'porthole audit --path /secrets/db --all-vms',
        'porthole audit --denied --follow',
        'porthole audit --all-vms --since 30d --json > audit.jsonl',
      ),
    )
    .action((flags: AuditFlags) => show(shell, flags));
};

const show = async (shell: Shell, flags: AuditFlags): Promise<void> => {
  const { terminal } = shell;
  const { vm, path, uid, operation } = flags;
  if (flags.follow === true && flags.until !== undefined)
    throw new UsageError('--follow has no end; leave --until out');
  const verdict = flags.denied === true ? 'denied' : flags.allowed === true ? 'allowed' : undefined;
  const filter: Filter = { vm, path, uid, operation, verdict };
  const api = shell.api();
  const print = printer(shell, flags);
  if (flags.follow !== true) {
    const missing = new Map<string, Missing>();
    if ((await print(past(api, filter, flags, missing))) === 0 && flags.json !== true)
      terminal.err('no record matches\n');
    for (const one of missing.values()) terminal.err(missingWords(one));
    if (missing.size > 0) shell.setExitCode(exitCodes.failed);
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
          for await (const event of past(api, filter, flags, new Map())) {
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

type Missing = ResultOf<'queryAudit'>['missing'][number];

const missingWords = ({ region, host, reason }: Missing): string => {
  const who = host === undefined ? `region "${region}"` : `host "${host}" of region "${region}"`;
  return `${who} did not answer, what is recorded there is missing: ${printable(reason)}\n`;
};

/** Oldest first. `missing` is told who did not answer. */
async function* past(
  api: Api,
  filter: Filter,
  flags: AuditFlags,
  missing: Map<string, Missing>,
): AsyncGenerator<AuditEvent> {
  const iso = (ms: number | undefined) => (ms === undefined ? undefined : new Date(ms).toISOString());
  const regions = flags.allVms === true ? ('all' as const) : ('own' as const);
  const query = { ...filter, regions, from: iso(flags.since), until: iso(flags.until) };
  const eventsOf = (answer: ResultOf<'queryAudit'>): readonly AuditEvent[] => {
    for (const one of answer.missing) missing.set(`${one.region}/${one.host ?? ''}`, one);
    return answer.events;
  };
  const limit = flags.limit ?? (flags.since === undefined ? 100 : undefined);
  if (limit === undefined) {
    for await (const answer of api.pages('queryAudit', { ...query, limit: page })) yield* eventsOf(answer);
    return;
  }
  const newest: AuditEvent[] = [];
  const pages = api.pages('queryAudit', {
    ...query,
    order: 'newest',
    limit: Math.min(limit, page),
  });
  for await (const answer of pages) {
    newest.push(...eventsOf(answer));
    if (newest.length >= limit) break;
  }
  yield* newest.slice(0, limit).toReversed();
}

/** Prints as they come, and answers how many. A table's columns are as wide as those of its first page need. */
const printer = ({ terminal }: Shell, { json: isJson, allVms }: AuditFlags) => {
  const all = columnsFor(paintFor(terminal, 'out'));
  const columns = allVms === true ? all : all.filter(({ title }) => title !== 'HOST');
  const { dim } = paintFor(terminal, 'out');
  let hasTitle = false;
  return async (events: AsyncIterable<AuditEvent>): Promise<number> => {
    let count = 0;
    for await (const event of events) {
      count++;
      if (isJson === true) terminal.out(`${JSON.stringify(event)}\n`);
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
  { title: 'HOST', cell: ({ region = '', host = '' }) => fixed(16, `${region}/${host}`) },
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
