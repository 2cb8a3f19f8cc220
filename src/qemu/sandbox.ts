/** Runs a program that reads what strangers made: no network, no other process to be seen, bounded in every way. */
import { spawn } from 'node:child_process';
import { printable } from '../wire/index.ts';
import { QemuError } from './error.ts';

export interface SandboxOptions {
  /** Another user than ours; only root can. Without it the program runs as we do, in a user namespace of its own. */
  readonly uid?: number | undefined;
  readonly gid?: number | undefined;
  readonly groups?: readonly number[] | undefined;
  /** The longest file that it may write. */
  readonly fileBytes: number;
  readonly cpuSeconds: number;
  readonly addressSpaceBytes?: number;
  readonly signal?: AbortSignal | undefined;
  readonly onOutput?: (text: string) => void;
}

const wordsKept = 2_000;

/** Resolves when the program ended with status 0. Rejects with IMAGE_FAILED and its last words, or the signal's reason. */
export async function runSandboxed(
  what: string,
  command: readonly [string, ...string[]],
  options: SandboxOptions,
): Promise<void> {
  const { uid, gid = uid, groups = [], fileBytes, cpuSeconds, signal, onOutput } = options;
  const { addressSpaceBytes = 4 * 1024 ** 3 } = options;
  signal?.throwIfAborted();
  const identity = ['--no-new-privs', '--bounding-set=-all', '--inh-caps=-all'];
  if (uid !== undefined) {
    identity.push(`--reuid=${uid}`, `--regid=${gid}`);
    identity.push(groups.length === 0 ? '--clear-groups' : `--groups=${groups.join(',')}`);
  }
  const limits = [
    `--fsize=${fileBytes}`,
    `--cpu=${cpuSeconds}`,
    `--as=${addressSpaceBytes}`,
    '--core=0',
    '--nofile=64',
  ];
  const spaces = ['--net', '--ipc', '--pid', '--fork', '--kill-child=SIGKILL'];
  if (process.getuid?.() !== 0) spaces.unshift('--user', '--map-current-user');
  const child = spawn(
    'unshare',
    [...spaces, '--', 'prlimit', ...limits, '--', 'setpriv', ...identity, '--', ...command],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' },
      cwd: '/',
    },
  );
  let words = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(-wordsKept);
  });
  child.stdout.setEncoding('utf8').on('data', (text: string) => onOutput?.(text));
  const abort = (): void => {
    child.kill('SIGKILL');
  };
  signal?.addEventListener('abort', abort, { once: true });
  const how = await new Promise<string | undefined>((resolve) => {
    child.once('error', (error) => resolve(`could not be started: ${error.message}`));
    child.once('close', (status, name) =>
      resolve(status === 0 ? undefined : name === null ? `ended with status ${status}` : `was killed by ${name}`),
    );
  });
  signal?.removeEventListener('abort', abort);
  signal?.throwIfAborted();
  if (how === undefined) return;
  const said = words.trim().split('\n').map(printable).join('; ');
  const code = /No space left on device|Disk quota exceeded/.test(said) ? 'DISK_FULL' : 'IMAGE_FAILED';
  throw new QemuError(code, `${what} failed: ${command[0]} ${how}${said && `: ${said}`}`);
}
