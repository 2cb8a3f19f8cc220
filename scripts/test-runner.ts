/**
 * Runs tiers of test files, each file in a process group of its own, and tells people what happened: one line a file,
 * failures in full, skips with their reason, seconds a tier, and `N passed, N failed` as the last line.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { globSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { nameOf, ProcessFamily } from './process-family.ts';
import type { TestEvent } from './test-events.ts';

export interface Tier {
  readonly name: string;
  readonly title: string;
  /** Globs, relative to the root of the run. */
  readonly files: readonly string[];
  /** How many tests must have run, skipped ones not counted. 0: the tier may be empty. */
  readonly minimumTests: number;
  readonly limitSeconds: number;
  /** How many files run at once. */
  readonly concurrency: number;
  /** It runs at the same time as the tier before it, and is told of after that. */
  readonly withPrevious?: boolean;
}

export interface RunOptions {
  /** Directory that globs are relative to, and working directory of the tests. */
  readonly root: string;
  /** Only files whose path has this text, and elsewhere only tests whose name has it. Minimums do not apply then. */
  readonly filter?: string | undefined;
  readonly print: (line: string) => void;
  /** Files that no tier runs: each is a failure. */
  readonly unclaimed?: readonly string[] | undefined;
  /** How long a file that ended may take to see its processes gone. Default 5,000. */
  readonly leftoverGraceMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

interface Totals {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

interface FileResult {
  readonly file: string;
  readonly passed: number;
  readonly skips: readonly string[];
  /** One text for each failed test and for each thing wrong with the file as a whole. */
  readonly failures: readonly string[];
  readonly notes: readonly string[];
  /** The last of what it wrote on stdout and stderr. */
  readonly output: string;
  readonly seconds: number;
}

const OUTPUT_LIMIT_CHARS = 256 * 1024;
const KILL_GRACE_MS = 10_000;
const reporter = path.join(import.meta.dirname, 'test-events.ts');

/** Waits for the processes of a file that ended, kills what stays, and names it. */
async function endLeftovers(family: ProcessFamily, graceMs: number): Promise<string[]> {
  const deadline = Date.now() + graceMs;
  let left = family.alive();
  while (left.length > 0 && Date.now() < deadline) {
    await delay(50);
    left = family.alive();
  }
  const names = left.map(nameOf);
  family.kill();
  return names;
}

const exited = (child: ChildProcess) =>
  new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(`could not be started: ${error.message}`));
    child.once('close', (code, signal) =>
      resolve(signal ? `was ended by ${signal}` : code === 0 ? '' : `ended with exit code ${code}`),
    );
  });

/** Settles when a killed file has not gone for long: a process that waits inside a dead mount ignores even SIGKILL. */
async function unkillable(limit: AbortSignal): Promise<[string, string[]]> {
  if (!limit.aborted) await new Promise((resolve) => limit.addEventListener('abort', resolve, { once: true }));
  await delay(KILL_GRACE_MS, undefined, { ref: false });
  return ['could not be killed', []];
}

async function runFile(file: string, options: RunOptions, limit: AbortSignal): Promise<FileResult> {
  const started = performance.now();
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-test-'));
  const events = path.join(directory, 'events');
  const family = new ProcessFamily(randomUUID());
  const { filter, root } = options;
  const wholeFile = filter === undefined || file.includes(filter);
  const args = [
    '--disable-warning=ExperimentalWarning',
    `--test-reporter=${reporter}`,
    `--test-reporter-destination=${events}`,
    ...(wholeFile ? [] : [`--test-name-pattern=${filter.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')}`]),
    file,
  ];
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(process.execPath, args, {
    cwd: root,
    env: family.environment(env),
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  const collect = (chunk: string) => {
    output = (output + chunk).slice(-OUTPUT_LIMIT_CHARS);
  };
  child.stdout.setEncoding('utf8').on('data', collect);
  child.stderr.setEncoding('utf8').on('data', collect);
  // Whoever inherited the pipes would keep them open: what the file left behind is ended before the output is awaited.
  const closed = exited(child);
  const left = new Promise<string[]>((resolve) => {
    child.once('error', () => resolve([]));
    child.once('exit', () => resolve(endLeftovers(family, limit.aborted ? 0 : (options.leftoverGraceMs ?? 5_000))));
  });
  if (child.pid !== undefined) family.watch(child.pid);
  const stop = () => family.kill();
  limit.addEventListener('abort', stop, { once: true });
  const [end, leftovers] = await Promise.race([Promise.all([closed, left]), unkillable(limit)]);
  limit.removeEventListener('abort', stop);
  family.stop();

  const lines = readEvents(events);
  rmSync(directory, { recursive: true, force: true });
  const running = new Map<string, number>();
  const failures: string[] = [];
  const skips: string[] = [];
  const notes: string[] = [];
  let passed = 0;
  for (const event of lines) {
    if (event.what === 'running') running.set(event.name, (running.get(event.name) ?? 0) + 1);
    else if (event.what === 'note') notes.push(event.text);
    else {
      running.set(event.name, (running.get(event.name) ?? 1) - 1);
      if (event.verdict === 'passed') passed++;
      else if (event.verdict === 'failed') failures.push(`${event.name}\n${event.reason}`);
      else if (event.verdict === 'todo') failures.push(`${event.name}\nis marked todo; write it or remove it`);
      else if (event.reason === '') failures.push(`${event.name}\nis skipped without a reason; give one`);
      else skips.push(`${event.name}: ${event.reason}`);
    }
  }
  const inTest = [...running].filter(([, count]) => count > 0).map(([name]) => name);
  const during = inTest.length > 0 ? `, during: ${inTest.join('; ')}` : '';
  if (limit.aborted) failures.push(`was still running when ${String(limit.reason)}${during}`);
  else if (end !== '' && failures.length === 0) failures.push(`the file ${end}${during}`);
  else if (passed + skips.length + failures.length === 0 && filter === undefined) failures.push('the file has no test');
  if (leftovers.length > 0 && !limit.aborted) failures.push(`left processes running: ${leftovers.join(', ')}`);
  return { file, passed, skips, failures, notes, output, seconds: (performance.now() - started) / 1000 };
}

function readEvents(file: string): TestEvent[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return []; // the child ended before its reporter began
  }
  const lines = text.split('\n');
  lines.pop(); // empty, or cut off by a kill
  return lines.map((line) => JSON.parse(line) as TestEvent);
}

const indent = (text: string, by: string) => by + text.trimEnd().replaceAll('\n', `\n${by}`);

function printFile(result: FileResult, print: (line: string) => void): void {
  const { file, passed, skips, failures, notes, output, seconds } = result;
  const counts = [`${passed} passed`];
  if (failures.length > 0) counts.push(`${failures.length} failed`);
  if (skips.length > 0) counts.push(`${skips.length} skipped`);
  print(`  ${failures.length > 0 ? 'FAIL' : 'ok  '} ${file.padEnd(48)} ${counts.join(', ')} (${seconds.toFixed(1)} s)`);
  for (const note of notes) print(indent(note, '       '));
  for (const skip of skips) print(indent(`skipped: ${skip}`, '       '));
  for (const failure of failures) print(indent(`failed: ${failure}`, '       '));
  if (failures.length > 0 && output.trim() !== '') {
    print('       output:');
    print(indent(output, '       | '));
  }
}

const filesOf = (tier: Tier, root: string): string[] =>
  [...new Set(tier.files.flatMap((pattern) => globSync(pattern, { cwd: root })))].toSorted();

/** Test files that no tier would run. */
export function unclaimed(tiers: readonly Tier[], root: string): string[] {
  const claimed = new Set(tiers.flatMap((tier) => filesOf(tier, root)));
  const isIn = (name: string): boolean => name === 'node_modules' || name === '.cache';
  return globSync('**/*.test.ts', { cwd: root, exclude: isIn }).filter((file) => !claimed.has(file));
}

/** What `print` is given before `open` was called is kept until then. */
function held(print: (line: string) => void): { readonly print: (line: string) => void; readonly open: () => void } {
  const lines: string[] = [];
  let isOpen = false;
  return {
    print: (line) => (isOpen ? print(line) : lines.push(line)),
    open: () => {
      isOpen = true;
      lines.splice(0).forEach(print);
    },
  };
}

async function runTier(tier: Tier, options: RunOptions): Promise<Totals> {
  const { print, root, filter } = options;
  const started = performance.now();
  print(`${tier.name}: ${tier.title}`);
  const files = filesOf(tier, root);
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  const controller = new AbortController();
  const timer = setTimeout(
    () => controller.abort(`the tier's limit of ${tier.limitSeconds} s was over`),
    tier.limitSeconds * 1000,
  );
  const limit = options.signal ? AbortSignal.any([controller.signal, options.signal]) : controller.signal;
  const queue = files.values();
  const worker = async () => {
    for (const file of queue) {
      if (limit.aborted) {
        failed++;
        print(`  FAIL ${file}: not started, because ${String(limit.reason)}`);
        continue;
      }
      const result = await runFile(file, options, limit);
      passed += result.passed;
      failed += result.failures.length;
      skipped += result.skips.length;
      if (filter === undefined || result.passed + result.failures.length > 0) printFile(result, print);
    }
  };
  await Promise.all(Array.from({ length: tier.concurrency }, worker));
  clearTimeout(timer);
  const ran = passed + failed;
  if (filter === undefined && ran < tier.minimumTests) {
    failed++;
    print(
      `  FAIL ${tier.name}: ${ran} tests ran in ${files.length} files; there must be at least ${tier.minimumTests}`,
    );
  }
  const seconds = (performance.now() - started) / 1000;
  print(`  ${tier.name}: ${passed} passed, ${failed} failed, ${skipped} skipped in ${seconds.toFixed(1)} s`);
  return { passed, failed, skipped };
}

const groupsOf = (tiers: readonly Tier[]): readonly (readonly Tier[])[] => {
  const groups: Tier[][] = [];
  for (const tier of tiers)
    if (tier.withPrevious && groups.length > 0) groups.at(-1)!.push(tier);
    else groups.push([tier]);
  return groups;
};

/** Runs the tiers in order. Finding no test at all, with or without a filter, counts as one failure. */
export async function runTiers(tiers: readonly Tier[], options: RunOptions): Promise<Totals> {
  const started = performance.now();
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  for (const file of options.unclaimed ?? []) {
    failed++;
    options.print(`FAIL ${file} belongs to no tier; give it one in scripts/test.ts`);
  }
  for (const together of groupsOf(tiers)) {
    const running = together.map((tier) => {
      const { print, open } = held(options.print);
      return { open, totals: runTier(tier, { ...options, print }) };
    });
    for (const { open, totals } of running) {
      open();
      const ran = await totals;
      passed += ran.passed;
      failed += ran.failed;
      skipped += ran.skipped;
    }
  }
  if (passed + failed === 0) {
    failed++;
    options.print(
      options.filter === undefined ? 'no test ran' : `no test ran: none has "${options.filter}" in its name`,
    );
  }
  options.print(`all tiers: ${((performance.now() - started) / 1000).toFixed(1)} s`);
  options.print(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
  return { passed, failed, skipped };
}
