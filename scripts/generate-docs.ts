/**
 * Writes the tables in docs/ that come from code, each between `<!-- table: NAME -->` and `<!-- end of table -->`, the page of
 * the commands, and the manual pages in man/. `--check`: writes nothing, and fails when a document does not say what the code says.
 */
import { existsSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import type { Shell } from '../src/cli/command.ts';
import { buildProgram } from '../src/cli/program.ts';
import type { Terminal } from '../src/cli/terminal.ts';
import { problemCodes } from '../src/cluster/problem.ts';
import * as routes from '../src/cluster/routes/index.ts';
import { initFlags, operations, takenFlags } from '../src/fuse/index.ts';
import { facadeNames, facadeRows, nativeOperations } from '../src/imds/index.ts';
import { operations as ninepOperations, notation } from '../src/ninep/index.ts';
import { thisVersion } from '../src/parts/index.ts';
import { vsockOperations } from '../src/virtio/index.ts';
import { errnoName } from '../src/wire/index.ts';
import { wayNames } from '../test/conformance/driver.ts';
import { rowsOf } from '../test/conformance/table.ts';
import { topics } from '../test/conformance/topics.ts';
import { cliPage } from './cli-page.ts';
import { manPages } from './man-pages.ts';

interface Table {
  readonly document: string;
  readonly name: string;
  readonly head: readonly string[];
  readonly rows: () => readonly (readonly string[])[];
}

/** Another table is another entry here, and its two markers in its document. */
const tables: readonly Table[] = [
  {
    document: 'docs/fuse.md',
    name: 'operations',
    head: ['opcode', 'operation', 'answer', 'why, or what is special'],
    rows: () =>
      operations.map(({ opcode, name, reply, handler, errno, refusedOn, reason }) => {
        const refusal = errno === undefined ? '' : errnoName(errno);
        const answer = handler === undefined ? refusal : reply === 'none' ? 'no answer' : reply;
        return [
          String(opcode),
          name,
          refusedOn === undefined ? answer : `${answer}; ${refusedOn}: ${refusal}`,
          reason ?? '',
        ];
      }),
  },
  {
    document: 'docs/fuse.md',
    name: 'init-flags',
    head: ['bit', 'flag', 'virtiofs', '/dev/fuse', 'why'],
    rows: () =>
      initFlags.map(({ bit, name, reason }) => {
        const on = (transport: 'virtiofs' | 'dev-fuse') => {
          const { lo, hi } = takenFlags(transport);
          return ((bit < 32 ? lo >>> bit : hi >>> (bit - 32)) & 1) === 1 ? 'taken' : 'left';
        };
        return [String(bit), name, on('virtiofs'), on('dev-fuse'), reason];
      }),
  },
  {
    document: 'docs/9p.md',
    name: 'operations',
    head: ['type', 'message', 'body', 'answer', 'why, or what is special'],
    rows: () =>
      ninepOperations.map(({ type, name, shape, reply, errno, reason }) => [
        String(type),
        name,
        shape === undefined ? '' : `\`${notation(shape)}\``,
        errno === undefined ? (reply === '' ? 'empty' : `\`${reply}\``) : errnoName(errno),
        reason ?? '',
      ]),
  },
  {
    document: 'docs/vsock.md',
    name: 'operations',
    head: ['op', 'operation', 'on a connection', 'on none'],
    rows: () =>
      vsockOperations.map(({ code, name, onConnection, onNone }) => [String(code), name, onConnection, onNone]),
  },
  {
    document: 'docs/api.md',
    name: 'problems',
    head: ['code', 'status', 'meaning'],
    rows: () => Object.entries(problemCodes).map(([code, [status, title]]) => [code, String(status), title]),
  },
  {
    document: 'docs/api.md',
    name: 'operations',
    head: ['operation', 'request', 'role', 'about', 'what it does'],
    rows: () =>
      Object.values(routes)
        .filter((route) => 'operationId' in route)
        .map((route) => [
          route.operationId,
          `\`${route.method.toUpperCase()} ${route.path}\``,
          route['x-access'],
          route['x-scope'],
          route.summary,
        ]),
  },
  ...facadeNames.map(
    (name): Table => ({
      document: 'docs/facades.md',
      name,
      head: ['path', 'from the tree', 'made'],
      rows: () =>
        facadeRows[name].map(({ path, from, also = [], made }) => [
          `\`${path}\``,
          [...from, ...also].map((source) => `\`${source}\``).join(', '),
          made ?? '',
        ]),
    }),
  ),
  {
    document: 'docs/metadata-server.md',
    name: 'operations',
    head: ['request', 'what it does'],
    rows: () => nativeOperations().map(({ method, path, summary }) => [`\`${method.toUpperCase()} ${path}\``, summary]),
  },
  {
    document: 'docs/conformance.md',
    name: 'cases',
    head: ['topic', 'case', ...wayNames],
    rows: () => rowsOf(topics),
  },
];

const line = (cells: readonly string[]): string =>
  `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;

function filled(text: string, table: Table): string {
  const start = `<!-- table: ${table.name} -->`;
  const end = '<!-- end of table -->';
  const from = text.indexOf(start);
  const to = text.indexOf(end, from);
  if (from < 0 || to < 0) throw new Error(`${table.document} has no "${start}" followed by "${end}"; add both lines`);
  const rows = [line(table.head), line(table.head.map(() => '---')), ...table.rows().map(line)];
  return `${text.slice(0, from + start.length)}\n${rows.join('\n')}\n${text.slice(to)}`;
}

/** Commands that are only described: nothing is read or printed. */
const silent: Terminal = {
  out: () => true,
  drained: () => Promise.resolve(),
  err: () => {},
  outIsTerminal: false,
  errIsTerminal: false,
  columns: () => 80,
  input: { isTerminal: false, chunks: async function* none() {}, setMode: () => {}, close: () => {} },
  environment: {},
  wallMs: () => 0,
  onReopen: () => {},
  onLeave: () => {},
  interrupted: new AbortController().signal,
  forced: new AbortController().signal,
};
const shell: Shell = {
  terminal: silent,
  setExitCode: () => {},
  api: () => {
    throw new Error('a command that is only described asked the API');
  },
  apis: () => [],
};

/** Every document of which something is generated, and what it should say. */
function wantedDocuments(): ReadonlyMap<string, string> {
  const wanted = new Map<string, string>();
  for (const table of tables) {
    wanted.set(table.document, filled(wanted.get(table.document) ?? readFileSync(table.document, 'utf8'), table));
  }
  wanted.set('docs/cli.md', cliPage());
  const program = buildProgram(shell);
  for (const [name, page] of manPages(program, thisVersion().version)) wanted.set(`man/${name}`, page);
  return wanted;
}

const { values } = parseArgs({ options: { check: { type: 'boolean', default: false } } });
const documents = wantedDocuments();
const stale = globSync('man/*').filter((file) => !documents.has(file));
for (const [document, wanted] of [...documents, ...stale.map((file) => [file, undefined] as const)]) {
  if (wanted !== undefined && existsSync(document) && readFileSync(document, 'utf8') === wanted) continue;
  if (values.check) {
    console.error(`${document} differs from the code; run: node scripts/generate-docs.ts`);
    process.exitCode = 1;
  } else if (wanted === undefined) {
    rmSync(document);
    console.log(`removed ${document}`);
  } else {
    mkdirSync(path.dirname(document), { recursive: true });
    writeFileSync(document, wanted);
    console.log(`wrote ${document}`);
  }
}
if (process.exitCode === undefined) console.log(`docs: ${tables.length} tables, ${documents.size} documents agree`);
