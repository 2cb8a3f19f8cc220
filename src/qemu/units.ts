/**
 * Starts processes that outlive the daemon: as transient systemd units where systemd runs, else in sessions of their own.
 * No descriptor is handed over but the log: whoever wants to speak with such a process does so over a socket with a path.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, existsSync, fstatSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import * as sys from '../sys/index.ts';
import { printable } from '../wire/index.ts';
import { messageOf, QemuError } from './error.ts';
import {
  type Ending,
  endingInWords,
  identify,
  LastingProcess,
  openIdentity,
  type ProcessIdentity,
} from './process-identity.ts';

export interface LaunchLimits {
  /** What a control group allows; without one nothing holds it. */
  readonly memoryBytes?: number;
  /** RLIMIT_AS. Not for V8, which reserves address space by the terabyte. */
  readonly addressSpaceBytes?: number;
  /** Processes and threads: of the control group, or of the uid where there is none (RLIMIT_NPROC does not hold root). */
  readonly processes?: number;
  /** What others run as the same uid, and so counts there too, comes to at most so many. */
  readonly othersOfUid?: number;
  readonly openFiles?: number;
}

export interface LaunchSpec {
  /** Letters, digits, `-`; unique on this machine. The unit's name, with `.service` behind it. */
  readonly name: string;
  /** One line for people. */
  readonly description: string;
  readonly command: readonly [string, ...string[]];
  /** All of its environment; nothing of ours is passed on, which may hold secrets. */
  readonly environment?: Readonly<Record<string, string>>;
  /** Runs as this user, with the group of the same number unless given, and these groups besides. Only root can. */
  readonly uid?: number;
  readonly gid?: number;
  readonly groups?: readonly number[];
  readonly limits?: LaunchLimits;
  /** Its standard output and error are appended here (0600). See `trimLog` for its size. */
  readonly logFile: string;
  /** Control group and slice of the unit. Default `porthole.slice`. */
  readonly slice?: string;
}

export interface Launcher {
  readonly kind: 'systemd' | 'session';
  /** Which of a spec's limits are held on this machine, for people. */
  readonly enforced: readonly string[];
  launch(spec: LaunchSpec): Promise<LastingProcess>;
  /** The process of `identity`, which an earlier daemon started; undefined when it has ended. */
  adopt(identity: ProcessIdentity, logFile: string): LastingProcess | undefined;
}

const run = promisify(execFile);
const answerWithinMs = 10_000;

/** systemd if it is process 1 and answers, else a session for each process. */
export async function findLauncher(): Promise<Launcher> {
  return (await systemdAnswers()) ? new SystemdLauncher() : new SessionLauncher();
}

async function systemdAnswers(): Promise<boolean> {
  if (!existsSync('/run/systemd/system') || readFileSync('/proc/1/comm', 'utf8').trim() !== 'systemd') return false;
  try {
    await run('systemctl', ['show', '--property=Version'], { timeout: answerWithinMs });
    return true;
  } catch {
    return false;
  }
}

function checkSpec(spec: LaunchSpec): void {
  if (!/^[A-Za-z0-9][A-Za-z0-9-]{0,199}$/.test(spec.name))
    throw new QemuError('MACHINE_INVALID', `a process cannot be named "${spec.name}"; use letters, digits and "-"`);
}

/** Makes the log if it is not there, and returns a descriptor that appends to it. */
const openLog = (logFile: string): number =>
  openSync(logFile, constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW, 0o600);

const endingFileOf = (logFile: string): string => `${logFile}.ending`;

/** The last line that a process left in its log (of Node, the error that ended it), made safe to print; empty when there is none. */
export function lastLine(logFile: string): string {
  let fd: number;
  try {
    fd = openSync(logFile, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch {
    return '';
  }
  try {
    const { size } = fstatSync(fd);
    const bytes = Buffer.alloc(Math.min(size, 4096));
    const count = readSync(fd, bytes, 0, bytes.length, size - bytes.length);
    const lines = bytes.toString('utf8', 0, count).trimEnd().split('\n');
    // What Node says of an error that nobody caught ends with its version.
    const isNode = lines.at(-1)?.startsWith('Node.js v') === true;
    const line = (isNode ? lines.findLast((candidate) => /^\w*Error\b/.test(candidate)) : undefined) ?? lines.at(-1);
    return printable(line ?? '').slice(0, 500);
  } finally {
    closeSync(fd);
  }
}

/** Each process leads a session and process group of its own, so no terminal's Ctrl-C and no end of ours reaches it. */
export class SessionLauncher implements Launcher {
  readonly kind = 'session';
  readonly enforced = [
    'address space, open files and core size by resource limits',
    'the number of processes by a resource limit, where a user of its own is given',
    'memory by nothing: no control group without systemd',
  ];

  async launch(spec: LaunchSpec): Promise<LastingProcess> {
    checkSpec(spec);
    const [program, ...args] = sessionCommand(spec);
    const log = openLog(spec.logFile);
    try {
      const child = spawn(program, args, {
        stdio: ['ignore', log, log],
        env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', ...spec.environment },
        detached: true,
        cwd: '/',
      });
      const exit = Promise.withResolvers<Ending>();
      child.once('exit', (status, signal) =>
        exit.resolve(signal === null ? { how: 'exit', status: status ?? 0 } : { how: 'signal', signal }),
      );
      await once(child, 'spawn');
      child.unref();
      const pid = child.pid!;
      // Our own child stays a zombie until Node has reaped it, so its number is still its own here.
      const pidfd = sys.pidfdOpen(pid);
      const identity = identify(pid);
      if (pidfd < 0 || identity === undefined) {
        if (pidfd >= 0) sys.close(pidfd);
        throw new QemuError(
          'START_FAILED',
          `${program} ${endingInWords(await exit.promise)}: ${lastLine(spec.logFile)}`,
        );
      }
      return new LastingProcess(identity, pidfd, () => exit.promise);
    } catch (error) {
      if (error instanceof QemuError) throw error;
      throw new QemuError('START_FAILED', `starting ${spec.command[0]} failed: ${messageOf(error)}`, error);
    } finally {
      closeSync(log);
    }
  }

  adopt(identity: ProcessIdentity): LastingProcess | undefined {
    const pidfd = openIdentity(identity);
    return pidfd === undefined ? undefined : new LastingProcess(identity, pidfd, () => ({ how: 'unknown' }));
  }
}

/** Programs of util-linux that set limits and identity and then become the command, so that its pid is the child's. `more`: flags of `setpriv`. */
export function sessionCommand(spec: LaunchSpec, more: readonly string[] = []): readonly [string, ...string[]] {
  const { limits = {}, uid } = spec;
  const flags = ['--core=0:0'];
  if (limits.addressSpaceBytes !== undefined) flags.push(`--as=${limits.addressSpaceBytes}`);
  if (limits.openFiles !== undefined) flags.push(`--nofile=${limits.openFiles}`);
  if (limits.processes !== undefined && uid !== undefined)
    flags.push(`--nproc=${limits.processes + (limits.othersOfUid ?? 0)}`);
  return ['prlimit', ...flags, '--', ...withIdentity(spec, more)];
}

/** The command behind `setpriv`, which takes on its user. (systemd's `User=` wants one that /etc/passwd knows.) */
function withIdentity(
  { uid, gid = uid, groups = [], command }: LaunchSpec,
  more: readonly string[] = [],
): [string, ...string[]] {
  const identity = ['--no-new-privs', ...more];
  if (uid !== undefined) {
    identity.push(`--reuid=${uid}`, `--regid=${gid}`, '--bounding-set=-all', '--inh-caps=-all');
    identity.push(groups.length === 0 ? '--clear-groups' : `--groups=${groups.join(',')}`);
  }
  return ['setpriv', ...identity, '--', ...command];
}

/** Each process is a transient service: its own control group, visible to `systemctl`, and not ended with our unit. */
export class SystemdLauncher implements Launcher {
  readonly kind = 'systemd';
  readonly enforced = ['memory, the number of processes, open files and core size, by systemd'];

  async launch(spec: LaunchSpec): Promise<LastingProcess> {
    checkSpec(spec);
    const unit = `${spec.name}.service`;
    closeSync(openLog(spec.logFile));
    rmSync(endingFileOf(spec.logFile), { force: true });
    try {
      await run('systemd-run', systemdArguments(spec, unit), { timeout: 4 * answerWithinMs });
    } catch (error) {
      const { stderr } = error as { stderr?: string };
      const words = lastLine(spec.logFile) || printable((stderr ?? messageOf(error)).trim());
      throw new QemuError('START_FAILED', `starting ${spec.command[0]} as unit "${unit}" failed: ${words}`, error);
    }
    const { stdout } = await run('systemctl', ['show', '--property=MainPID', '--value', unit], {
      timeout: answerWithinMs,
    });
    const identity = identify(Number(stdout.trim()), unit);
    const launched = identity && this.adopt(identity, spec.logFile);
    if (launched !== undefined) return launched;
    const ending = await readEndingFile(spec.logFile);
    throw new QemuError('START_FAILED', `${spec.command[0]} ${endingInWords(ending)}: ${lastLine(spec.logFile)}`);
  }

  adopt(identity: ProcessIdentity, logFile: string): LastingProcess | undefined {
    const pidfd = openIdentity(identity);
    return pidfd === undefined ? undefined : new LastingProcess(identity, pidfd, () => readEndingFile(logFile));
  }
}

function systemdArguments(spec: LaunchSpec, unit: string): string[] {
  const { limits = {} } = spec;
  const properties = [
    'KillMode=control-group',
    'TimeoutStopSec=30s',
    'NoNewPrivileges=yes',
    'LimitCORE=0',
    'OOMPolicy=kill',
    `WorkingDirectory=/`,
    `StandardOutput=append:${spec.logFile}`,
    `StandardError=append:${spec.logFile}`,
    // Nobody else keeps the status of a transient unit that is collected. "$$" is systemd's way to write "$".
    `ExecStopPost=+/bin/sh -c "umask 077; echo $$EXIT_CODE $$EXIT_STATUS >$$0" ${quoted(endingFileOf(spec.logFile))}`,
  ];
  if (limits.memoryBytes !== undefined) properties.push(`MemoryMax=${limits.memoryBytes}`, 'MemorySwapMax=0');
  if (limits.addressSpaceBytes !== undefined) properties.push(`LimitAS=${limits.addressSpaceBytes}`);
  if (limits.processes !== undefined) properties.push(`TasksMax=${limits.processes}`);
  if (limits.openFiles !== undefined) properties.push(`LimitNOFILE=${limits.openFiles}`);
  return [
    '--quiet',
    '--collect',
    '--service-type=exec',
    `--unit=${unit}`,
    `--description=${spec.description}`,
    `--slice=${spec.slice ?? 'porthole.slice'}`,
    ...properties.map((property) => `--property=${property}`),
    ...Object.entries(spec.environment ?? {}).map(([name, value]) => `--setenv=${name}=${value}`),
    '--',
    ...withIdentity(spec).map((word) => word.replaceAll('$', '$$$$')),
  ];
}

const quoted = (path: string): string =>
  `"${path.replaceAll(/["\\%$]/g, (character) => (character === '%' ? '%%' : character === '$' ? '$$' : `\\${character}`))}"`;

/** What the unit's last command left: EXIT_CODE and EXIT_STATUS of systemd.exec(5). It is written after the process ended. */
async function readEndingFile(logFile: string): Promise<Ending> {
  const file = endingFileOf(logFile);
  for (let tries = 0; tries < 100; tries++) {
    let text = '';
    try {
      text = readFileSync(file, 'utf8');
    } catch (error) {
      if (!existsSync(dirname(file))) throw error;
    }
    const [, code, status] = /^(\w+) (\w+)\n/.exec(text) ?? [];
    if (code === 'exited') return { how: 'exit', status: Number(status) };
    if (code !== undefined && status !== undefined) return { how: 'signal', signal: `SIG${status}` };
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return { how: 'unknown' };
}
