import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ago, moment, parseDuration, parseMoment, parseSize, size } from './amounts.ts';
import { Progress } from './progress.ts';
import { SafeText, safeText } from './safe-text.ts';
import { facts, table } from './table.ts';
import type { Terminal } from './terminal.ts';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

test('table keeps columns below each other when a cell is empty, wide or last', () => {
  interface Row {
    readonly a: string;
    readonly b: string;
    readonly c: string;
  }
  const rows: Row[] = [
    { a: 'x', b: '1', c: 'last' },
    { a: '日本', b: '100', c: '' },
    { a: 'é', b: '', c: 'z' },
  ];
  const columns = [
    { title: 'NAME', cell: ({ a }: Row) => a, paint: (text: string) => `<${text}>` },
    { title: 'N', cell: ({ b }: Row) => b, align: 'right' as const },
    { title: 'C', cell: ({ c }: Row) => c },
  ];
  assert.equal(
    table(columns, rows, (title) => title.toLowerCase()),
    'name    n  c\n<x>       1  last\n<日本>  100\n<é>          z\n',
  );
  const pairs = [
    ['a', 'one\ntwo'],
    ['long', 'x'],
    ['none', undefined],
    ['empty', ''],
  ] as const;
  assert.equal(facts(pairs, String), 'a:     one\n       two\nlong:  x\n');
});

test('ago and moment say times in words', () => {
  const now = Date.UTC(2026, 0, 10);
  assert.deepEqual(
    [0, 59_999, 60_000, 3_600_000, 90_000_000, -5].map((ms) => ago(now - ms, now)),
    ['0s', '59s', '1m', '1h', '1d', '0s'],
  );
  assert.equal(moment(now - 61_000, now), '2026-01-09T23:58:59Z (1m ago)');
  assert.equal(moment(now + 86_400_000, now), '2026-01-11T00:00:00Z (in 1d)');
  assert.equal(parseMoment(now)('2h'), now - 7_200_000);
  assert.equal(parseMoment(now)('2026-01-09T00:00:00Z'), now - 86_400_000);
  assert.equal(parseDuration('90d'), 90 * 86_400);
  for (const wrong of ['', 'yesterday', '5', '-1h', '1w', '12/01/2026']) {
    assert.throws(() => parseMoment(now)(wrong), { message: /Write how long ago/ }, wrong);
    assert.throws(() => parseDuration(wrong), { message: /Write a duration/ }, wrong);
  }
});

test('size and parseSize agree', () => {
  assert.deepEqual([0, 1023, 1024, 1536, 10 * 1024 ** 2, 1.5 * 1024 ** 4].map(size), [
    '0 B',
    '1023 B',
    '1 KiB',
    '1.5 KiB',
    '10 MiB',
    '1.5 TiB',
  ]);
  assert.deepEqual(['1', '1K', '1KiB', '2G', '3T'].map(parseSize), [1, 1024, 1024, 2 * 1024 ** 3, 3 * 1024 ** 4]);
  for (const wrong of ['', '0', '-1', '1.5G', '1X', '1 G', '99999999999T'])
    assert.throws(() => parseSize(wrong), { message: /Write a size/ }, wrong);
});

test('SafeText lets text and colours pass, however its bytes are cut', () => {
  const evil =
    'a\u001b[31mred\u001b[0m\r\n\tb\u001b[2J\u001b[6n\u001b]52;c;aGk=\u0007\u001b]0;t\u001b\\\u001bP1$r\u001b\\\u001bc\u0008\u009b\u202eé\u001b';
  const shown = 'a\u001b[31mred\u001b[0m\r\n\tb\\u{8}\\u{9b}\\u{202e}é\\u{1b}';
  assert.equal(safeText(bytes(evil)), shown);
  const all = bytes(evil);
  for (let cut = 0; cut <= all.length; cut++) {
    const text = new SafeText();
    const pieces = text.push(all.subarray(0, cut)) + text.push(all.subarray(cut)) + text.end();
    assert.equal(pieces, shown, `cut at ${cut}`);
  }
});

test('SafeText does not wait for ever for the end of what is no sequence', () => {
  const text = new SafeText();
  const shown = text.push(bytes(`\u001b]0;${'x'.repeat(5000)}`));
  assert.match(shown, /^\\u\{1b\}\]0;x{5000}$/);
});

test('Progress draws over its line on a terminal, and else prints one every few seconds', () => {
  let nowMs = 0;
  let said = '';
  const terminal = (errIsTerminal: boolean) =>
    ({
      err: (text: string) => {
        said += text;
      },
      errIsTerminal,
      columns: () => 60,
      environment: { NO_COLOR: '1' },
      wallMs: () => nowMs,
    }) as unknown as Terminal;
  const drawn = new Progress(terminal(true), 'adding x:1', 'bytes');
  drawn.tell({ step: 'copying', done: 1024, total: 2048 });
  drawn.tell({ step: 'checking', done: 1, total: 1 });
  drawn.end();
  assert.equal(
    said,
    '\r\u001b[K[#######.......] adding x:1: copying, 1 KiB of 2 KiB (50 %)\r\u001b[Kadding x:1: checking\r\u001b[K',
  );
  said = '';
  const plain = new Progress(terminal(false), 'creating web-1', 'steps');
  plain.tell({ step: 'making its disk', done: 0 });
  nowMs = 4_999;
  plain.tell({ step: 'making its disk', done: 0 });
  nowMs = 5_000;
  plain.tell({ step: 'making its disk', done: 1, total: 3 });
  nowMs = 20_000;
  plain.tell({ step: 'making its disk', done: 1, total: 3 });
  plain.tell({ step: 'booting', done: 2, total: 3 });
  plain.end();
  assert.equal(said, 'creating web-1: making its disk, 1 of 3 (33 %)\ncreating web-1: booting, 2 of 3 (66 %)\n');
});
