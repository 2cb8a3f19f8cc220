/** The table for people and the JSON for machines. */
import { mkdirSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Row, Sample, Target, Unit } from './measure.ts';

const digits: Readonly<Record<Unit, number>> = { us: 2, 'op/s': 0, KiB: 0, 'ms CPU': 1, reads: 0, 'MiB/s': 0 };
const showTarget = (target: Target): string =>
  'atMost' in target ? `<= ${target.atMost.toFixed(2)}` : `>= ${target.atLeast.toFixed(2)}`;

const figures = (sample: Sample, unit: Unit): string[] =>
  [sample.p50, sample.p99].map((value) => (value === undefined ? '-' : value.toFixed(digits[unit])));

/** One line a row; the ratio is ours by the peer's, the median of all rounds, with the smallest and the largest. */
export function table(rows: readonly Row[]): string[] {
  const header = [
    '',
    '',
    'peer',
    'unit',
    'n',
    'rounds',
    'ours p50',
    'p99',
    'peer p50',
    'p99',
    'ratio',
    'range',
    'target',
    '',
  ];
  const cells = rows.map((row) => [
    row.group,
    row.name,
    row.peerName,
    row.unit,
    String(row.n),
    String(row.rounds),
    ...figures(row.ours, row.unit),
    ...figures(row.peer, row.unit),
    row.ratio.toFixed(2),
    row.ratioRange.map((ratio) => ratio.toFixed(2)).join('-'),
    row.target ? showTarget(row.target) : '-',
    row.pass === undefined ? '' : row.pass ? 'pass' : 'MISS',
  ]);
  const all = [header, ...cells];
  const widths = header.map((_, column) => Math.max(...all.map((line) => line[column]!.length)));
  return all.map((line) =>
    line
      .map((cell, column) =>
        column < 4 || column === 13 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!),
      )
      .join('  ')
      .trimEnd(),
  );
}

/** Writes the rows and what they were measured on; returns the file's path. */
export function writeResults(rows: readonly Row[], when: Date, directory: string): string {
  mkdirSync(directory, { recursive: true });
  const file = path.join(directory, `${when.toISOString().replaceAll(':', '-').slice(0, 19)}.json`);
  const machine = {
    cpus: os.cpus().length,
    model: os.cpus()[0]?.model ?? 'unknown',
    kernel: os.release(),
    node: process.version,
    loadAverage: os.loadavg(),
  };
  writeFileSync(file, `${JSON.stringify({ time: when.toISOString(), machine, rows }, null, 2)}\n`);
  return file;
}
