/**
 * Writes what in docs/ comes from code: tables, each between `<!-- table: NAME -->` and `<!-- end of table -->`, and whole
 * pages.
 * `--check`: writes nothing, and fails when a document does not say what the code says.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { problemCodes } from '../src/cluster/problem.ts';
import * as routes from '../src/cluster/routes/index.ts';
import { initFlags, operations, takenFlags } from '../src/fuse/index.ts';
import { errnoName } from '../src/wire/index.ts';
import { wayNames } from '../test/conformance/driver.ts';
import { rowsOf } from '../test/conformance/table.ts';
import { topics } from '../test/conformance/topics.ts';
import { cliPage } from './cli-page.ts';

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
    document: 'docs/api.md',
    name: 'problems',
    head: ['code', 'status', 'meaning'],
    rows: () => Object.entries(problemCodes).map(([code, [status, title]]) => [code, String(status), title]),
  },
  {
    document: 'docs/api.md',
    name: 'operations',
    head: ['operation', 'request', 'access', 'what it does'],
    rows: () =>
      Object.values(routes)
        .filter((route) => 'operationId' in route)
        .map((route) => [
          route.operationId,
          `\`${route.method.toUpperCase()} ${route.path}\``,
          route['x-access'],
          route.summary,
        ]),
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

/** Documents that are generated as a whole. */
const pages: Readonly<Record<string, () => string>> = { 'docs/cli.md': cliPage };

const { values } = parseArgs({ options: { check: { type: 'boolean', default: false } } });
const documents = [...new Set([...tables.map(({ document }) => document), ...Object.keys(pages)])];
for (const document of documents) {
  const page = pages[document]?.();
  const text = page !== undefined && !existsSync(document) ? '' : readFileSync(document, 'utf8');
  const wanted = page ?? tables.filter((table) => table.document === document).reduce(filled, text);
  if (wanted === text) continue;
  if (values.check) {
    console.error(`${document} differs from the code; run: node scripts/generate-docs.ts`);
    process.exitCode = 1;
  } else {
    writeFileSync(document, wanted);
    console.log(`wrote ${document}`);
  }
}
if (process.exitCode === undefined) console.log(`docs: ${tables.length} tables in ${documents.length} documents agree`);
