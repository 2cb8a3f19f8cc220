/** Finds every process that a test file started, at any remove, also after its parents are gone. */
import { readdirSync, readFileSync } from 'node:fs';

const MARK = 'PORTHOLE_TEST_MARK';
const WATCH_EVERY_MS = 250;

interface Seen {
  readonly pid: number;
  readonly parent: number;
  readonly session: number;
  /** Clock ticks since boot: tells a process from a later one with its pid. */
  readonly started: string;
}

/** Fields of `/proc/PID/stat` behind the name, which may hold anything: the parent is the 2nd, the session the 4th, the start time the 20th. */
function look(pid: number): Seen | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z'
      ? undefined
      : { pid, parent: Number(fields[1]), session: Number(fields[3]), started: fields[19]! };
  } catch {
    return undefined; // gone meanwhile
  }
}

const processes = (): Seen[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => look(Number(name)) ?? []);

export const nameOf = (pid: number): string => {
  try {
    return `${readFileSync(`/proc/${pid}/comm`, 'utf8').trim()} (${pid})`;
  } catch {
    return `(${pid})`;
  }
};

/**
 * Processes of one test file, which must be started in a session of its own. They are known by a mark in their
 * environment; those that were given another environment, by their session or their parent: `watch` looks four times a
 * second for new ones.
 */
export class ProcessFamily {
  readonly #mark: string;
  /** Start time by pid. */
  readonly #known = new Map<number, string>();
  /** Their sessions: a process whose parent is gone is still in one. */
  readonly #sessions = new Set<number>();
  #timer: NodeJS.Timeout | undefined;

  constructor(mark: string) {
    this.#mark = mark;
  }

  /** The environment to start the first process with. Marks of nested runs add up. */
  environment(base: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
    return { ...base, [MARK]: `${base[MARK] ?? ''}:${this.#mark}` };
  }

  /** Starts to look; `pid` is the first process. */
  watch(pid: number): void {
    const first = look(pid);
    if (first) this.#know(first);
    this.#timer = setInterval(() => this.#learn(processes()), WATCH_EVERY_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #know({ pid, session, started }: Seen): void {
    this.#known.set(pid, started);
    this.#sessions.add(session);
  }

  #isKnown({ pid, started }: Seen): boolean {
    return this.#known.get(pid) === started;
  }

  #learn(seen: readonly Seen[]): void {
    const byPid = new Map(seen.map((one) => [one.pid, one]));
    for (let grew = true; grew; ) {
      grew = false;
      for (const one of seen) {
        const parent = byPid.get(one.parent);
        const isBelow = parent !== undefined && this.#isKnown(parent);
        if (this.#isKnown(one) || !(isBelow || this.#sessions.has(one.session))) continue;
        this.#know(one);
        grew = true;
      }
    }
  }

  #isMarked(pid: number): boolean {
    try {
      return readFileSync(`/proc/${pid}/environ`, 'latin1')
        .split('\0')
        .some((entry) => entry.startsWith(`${MARK}=`) && entry.includes(this.#mark));
    } catch {
      return false; // gone meanwhile, or another user's
    }
  }

  /** Pids of those that are alive now. */
  alive(): number[] {
    const seen = processes();
    for (const one of seen) if (!this.#isKnown(one) && this.#isMarked(one.pid)) this.#know(one);
    this.#learn(seen);
    return seen.filter((one) => this.#isKnown(one)).map(({ pid }) => pid);
  }

  kill(): void {
    for (const pid of this.alive()) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // gone meanwhile
      }
    }
  }
}
