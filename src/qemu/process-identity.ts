/** Processes that outlive whoever started them: who they are, whether they live, and signals that reach no other. */
import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import * as sys from '../sys/index.ts';
import { ESRCH } from '../wire/index.ts';

/** Tells one process from every other that this machine ever ran. */
export interface ProcessIdentity {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: clock ticks after the machine's boot. */
  readonly startTicks: number;
  /** /proc/sys/kernel/random/boot_id: pids and ticks begin anew with every boot of the machine. */
  readonly machineBootId: string;
  /** Name of its systemd unit, if it is one. */
  readonly unit?: string;
}

export type Ending =
  | { readonly how: 'exit'; readonly status: number }
  | { readonly how: 'signal'; readonly signal: string }
  /** It ended while nobody who may know its status was there. */
  | { readonly how: 'unknown' };

/** For people: "ended with status 1", "was killed by SIGKILL". */
export const endingInWords = (ending: Ending): string =>
  ending.how === 'exit'
    ? `ended with status ${ending.status}`
    : ending.how === 'signal'
      ? `was killed by ${ending.signal}${ending.signal === 'SIGKILL' ? ' (out of memory?)' : ''}`
      : 'ended';

const readText = (file: string): string | undefined => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
};

/** State letter (`Z` for a zombie) and start of a process; undefined when there is none. */
export function processStart(pid: number): { readonly state: string; readonly startTicks: number } | undefined {
  const stat = readText(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  // The second field is the program's name in parentheses, and may have spaces and parentheses in it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? '', startTicks: Number(fields[19]) };
}

export const machineBootId = (): string => (readText('/proc/sys/kernel/random/boot_id') ?? '').trim();

/** The identity of a process that runs now; undefined when it has ended. */
export function identify(pid: number, unit?: string): ProcessIdentity | undefined {
  const start = processStart(pid);
  if (start === undefined) return undefined;
  return {
    pid,
    startTicks: start.startTicks,
    machineBootId: machineBootId(),
    ...(unit !== undefined && { unit }),
  };
}

const lookEveryMs = 200;

/** How a process says afterwards how it ended, where somebody keeps that. */
export type EndingReader = () => Ending | Promise<Ending>;

/**
 * One process, held by a pidfd: its number may be given to another process, and no signal of ours ever reaches that one.
 * `release` when it is no longer of interest; the process lives on.
 */
export class LastingProcess {
  readonly identity: ProcessIdentity;
  /** Resolves when the process has ended; never rejects, and never resolves after `release`. */
  readonly ended: Promise<Ending>;
  readonly #readEnding: EndingReader;
  readonly #resolve: (ending: Ending) => void;
  #pidfd: number;
  #timer: NodeJS.Timeout | undefined;
  #over = false;

  /** Takes over `pidfd`. */
  constructor(identity: ProcessIdentity, pidfd: number, readEnding: EndingReader) {
    this.identity = identity;
    this.#pidfd = pidfd;
    this.#readEnding = readEnding;
    const ended = Promise.withResolvers<Ending>();
    this.ended = ended.promise;
    this.#resolve = ended.resolve;
    this.#timer = setInterval(() => this.look(), lookEveryMs);
  }

  get alive(): boolean {
    return this.#pidfd >= 0 && !sys.pidfdEnded(this.#pidfd);
  }

  /** Looks now whether it has ended, instead of within 200 ms. */
  look(): void {
    if (this.#over || this.#pidfd < 0 || this.alive) return;
    this.#over = true;
    clearInterval(this.#timer);
    void this.#finish();
  }

  /** False when the process had ended before. Throws where it may not be signalled, and for unknown signals. */
  signal(name: NodeJS.Signals): boolean {
    const number = constants.signals[name];
    if (this.#pidfd < 0) return false;
    const error = sys.pidfdSendSignal(this.#pidfd, number);
    if (error === 0) return true;
    if (error === -ESRCH) return false;
    throw new Error(`sending ${name} to process ${this.identity.pid} failed with errno ${-error}`);
  }

  release(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#over = true;
    this.#close();
  }

  async #finish(): Promise<void> {
    let ending: Ending;
    try {
      ending = await this.#readEnding();
    } catch {
      ending = { how: 'unknown' };
    }
    this.#close();
    this.#resolve(ending);
  }

  #close(): void {
    if (this.#pidfd >= 0) sys.close(this.#pidfd);
    this.#pidfd = -1;
  }
}

/** A pidfd of exactly the process that `identity` names; undefined when that one has ended. */
export function openIdentity(identity: ProcessIdentity): number | undefined {
  if (identity.machineBootId !== machineBootId()) return undefined;
  const pidfd = sys.pidfdOpen(identity.pid);
  if (pidfd < 0) return undefined;
  // Looked at after the pidfd was opened: what has this start now is what the pidfd holds.
  const start = processStart(identity.pid);
  if (start?.startTicks === identity.startTicks && start.state !== 'Z' && !sys.pidfdEnded(pidfd)) return pidfd;
  sys.close(pidfd);
  return undefined;
}
