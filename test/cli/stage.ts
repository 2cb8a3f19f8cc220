/** The `porthole` command as people run it, before the real API over real stores: `const stage = await setStage(t)`. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { startApi, type TestApi, type TestApiOptions } from '../cluster/api.ts';
import { until } from '../until.ts';

export const checkout = join(import.meta.dirname, '..', '..');
const node = join(checkout, 'node_modules', '.bin', 'node');
const main = join(checkout, 'src', 'cli', 'main.ts');
/** As `./porthole` runs it, without its look at the npm packages. */
export const porthole = [node, '--disable-warning=ExperimentalWarning', main] as const;

export interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

export interface RunOptions {
  readonly input?: string | Uint8Array | undefined;
  readonly environment?: Readonly<Record<string, string>> | undefined;
}

/** One that goes on. */
export interface Running {
  readonly child: ChildProcessWithoutNullStreams;
  /** What it wrote so far, without colours of a terminal's own. */
  out(): string;
  err(): string;
  type(text: string): void;
  /** Waits until it has written something that matches. */
  says(pattern: RegExp): Promise<unknown>;
  readonly ended: Promise<Ended>;
}

export interface Stage {
  readonly api: TestApi;
  /** Runs it to its end. */
  run(...args: readonly string[]): Promise<Ended>;
  runWith(options: RunOptions, ...args: readonly string[]): Promise<Ended>;
  start(options: RunOptions, ...args: readonly string[]): Running;
  /** On a terminal of its own; both of its streams are `out`. */
  terminal(options: RunOptions, ...args: readonly string[]): Running;
  /** Any other program on a terminal of its own. */
  shell(options: RunOptions, ...command: readonly string[]): Running;
  readonly environment: Readonly<Record<string, string>>;
}

export const setStage = async (t: TestContext, options: TestApiOptions = {}): Promise<Stage> => {
  const api = await startApi(t, options);
  const environment = {
    PATH: process.env['PATH']!,
    HOME: api.directory,
    TERM: 'xterm',
    LC_ALL: 'C.UTF-8',
    PORTHOLE_API: `unix:${api.socketPath}`,
    NODE_COMPILE_CACHE: join(checkout, '.cache', 'compile'),
  };
  const begin = (command: readonly string[], { environment: more }: RunOptions): Running => {
    const [file, ...args] = command;
    const child = spawn(file!, args, { cwd: api.directory, env: { ...environment, ...more } });
    t.after(() => child.kill('SIGKILL'));
    return follow(child);
  };
  const start = (run: RunOptions, ...args: readonly string[]): Running => {
    const running = begin([...porthole, ...args], run);
    // It may end before it has read it.
    running.child.stdin.on('error', () => {});
    if (run.input !== undefined) running.child.stdin.end(run.input);
    return running;
  };
  const runWith = (run: RunOptions, ...args: readonly string[]): Promise<Ended> =>
    start({ input: '', ...run }, ...args).ended;
  return {
    api,
    environment,
    start,
    runWith,
    run: (...args) => runWith({}, ...args),
    terminal: (run, ...args) => begin(onTerminal([...porthole, ...args]), run),
    shell: (run, ...command) => begin(onTerminal(command), run),
  };
};

const onTerminal = (command: readonly string[]): readonly string[] => {
  const line = command.map((word) => `'${word.replaceAll("'", String.raw`'\''`)}'`).join(' ');
  return ['script', '--quiet', '--return', '--flush', '--command', `exec ${line}`, '/dev/null'];
};

const follow = (child: ChildProcessWithoutNullStreams): Running => {
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, out, err }));
  });
  return {
    child,
    out: () => out,
    err: () => err,
    type: (text) => void child.stdin.write(text),
    says: (pattern) => until(`${pattern} in what it says`, async () => pattern.test(out + err), 60_000),
    ended,
  };
};

/** Without what differs from run to run: times, ids, digits of a digest. */
export const steady = (text: string): string =>
  text
    .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z/g, 'TIME')
    .replaceAll(/\b\d+[smhd]\b( ago)?/g, 'AGO')
    .replaceAll(/\bop-[0-9a-f]{22,24}/g, 'op-ID')
    .replaceAll(/\bi-[0-9a-f]{17}/g, 'i-ID')
    .replaceAll(/ +$/gm, '');

/** With an image, and a VM `web-1` of it. */
export const withVm = async (stage: Stage, spec: string): Promise<void> => {
  const { api } = stage;
  const asked = async (path: string, body: object): Promise<void> => {
    const { status, text } = await api.ask({ method: 'POST', path, body });
    if (status !== 202) throw new Error(text);
  };
  await asked('/v1/images', { name: 'tiny', recipe: 'tiny' });
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
  await asked('/v1/vms', { name: 'web-1', type: 'small', image: { name: 'tiny' }, spec });
  await until('the VM', async () => `${(await api.ask({ path: '/v1/vms/web-1' })).json['status']}` === 'running');
};

export const spec = `porthole: 1
metadata:
  instance: { hostname: web-1 }
  secrets: { db: hunter2 }
users: { postgres: 114 }
policy:
  - { path: /secrets/db, owner: postgres, mode: "0400" }
`;
