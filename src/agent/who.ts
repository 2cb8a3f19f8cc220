/**
 * Who asks, in the guest: what `/proc` says of the thread that a request names. The thread waits for our answer meanwhile, so
 * that its number is nobody else's; of one that was killed it could be, so everything is read through one descriptor of its
 * directory, which goes on to mean that thread and fails once it is gone.
 *
 * Nothing is remembered from one request to the next: a thread can run another program, leave a group or be moved to another
 * unit at any time, and keeps its number and its start time when it does.
 */
import { closeSync, constants, openSync, readFileSync, readlinkSync } from 'node:fs';
import type { CallerRegister } from '../fuse/index.ts';
import { type FileStat, statCached } from '../sys/index.ts';
import type { Caller } from '../tree/index.ts';
import { ENOENT, S_IFDIR, S_IFMT } from '../wire/index.ts';
import { isServed } from './mounts.ts';

/** What was found of a thread. A key that is missing is not proved. */
export interface Identity {
  /** Ids that file systems go by. */
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly program: string | undefined;
  /** Why there is none. */
  readonly programDoubt: string | undefined;
  readonly unit: string | undefined;
  /** Clock ticks from the boot to its start. */
  readonly startTime: number;
}

const MOST_GROUPS = 1024;
const WRITABLE_BY_OTHERS = 0o022;
const UNIT = /^[\w:.@\\-]{1,240}\.(service|scope|socket|mount|swap|timer|path|target)$/;

/** A thread's directory in `/proc`, held open. */
class ProcDirectory implements Disposable {
  readonly #fd: number;

  /** Throws where there is no such thread. */
  constructor(pid: number) {
    this.#fd = openSync(`/proc/${pid}`, constants.O_RDONLY | constants.O_DIRECTORY);
  }

  path(name: string): string {
    return `/proc/self/fd/${this.#fd}/${name}`;
  }

  read(name: string): string {
    return readFileSync(this.path(name), 'latin1');
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

const fieldOf = (status: string, name: string): readonly number[] =>
  new RegExp(`^${name}:[ \\t]*(.*)$`, 'm').exec(status)?.[1]?.trim().split(/\s+/).filter(Boolean).map(Number) ?? [];

/** Field 22 of `/proc/PID/stat` (proc(5)); the name before it may hold anything. */
const startTimeOf = (stat: string): number => Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]);

/**
 * The executable, where it is the file that this path names here, root's, and nobody else can write it. In a user namespace
 * anybody can mount any file at any path, and `/proc/PID/exe` shows that path. Whoever serves a file system could have us wait
 * for ever, and that may be ourselves: so no such file system is asked anything.
 */
const programOf = (directory: ProcDirectory): { readonly program?: string; readonly doubt?: string } => {
  let program: string;
  try {
    program = readlinkSync(directory.path('exe'));
  } catch {
    return { doubt: 'it has no executable' };
  }
  if (!program.startsWith('/') || isServed(program)) return { doubt: `"${program}" lies where others say what it is` };
  const runs = statCached(directory.path('exe'), true);
  const named = statWithoutLinks(program);
  if (typeof runs === 'number' || typeof named === 'number') return { doubt: `"${program}" is no file here` };
  if (runs.device !== named.device || runs.ino !== named.ino)
    return { doubt: `"${program}" is another file than the one that it runs` };
  if (named.uid !== 0) return { doubt: `"${program}" is not root's` };
  if ((named.mode & WRITABLE_BY_OTHERS) !== 0) return { doubt: `"${program}" can be written by others than root` };
  return { program };
};

/** What a path names without a symbolic link on the way, or an errno. */
const statWithoutLinks = (path: string): FileStat | number => {
  let found: FileStat | number = ENOENT;
  let at = '';
  for (const name of path.slice(1).split('/')) {
    if (typeof found !== 'number' && (found.mode & S_IFMT) !== S_IFDIR) return ENOENT;
    at += `/${name}`;
    found = statCached(at, false);
    if (typeof found === 'number') return found;
  }
  return found;
};

/** systemd's unit of a control group: the first name that is no slice. What users name below their own is not looked at. */
export const unitOf = (cgroup: string): string | undefined => {
  const line = /^0::(\/.*)$/m.exec(cgroup) ?? /^\d+:name=systemd:(\/.*)$/m.exec(cgroup);
  const names = line?.[1]?.split('/').slice(1) ?? [];
  if (names.includes('..')) return undefined;
  const name = names.find((part) => !part.endsWith('.slice'))?.replace(/^_/, '');
  return name !== undefined && UNIT.test(name) ? name : undefined;
};

/** Undefined where there is no such thread (any more). */
export const identify = (pid: number): Identity | undefined => {
  if (!Number.isSafeInteger(pid) || pid <= 0) return undefined;
  try {
    using directory = new ProcDirectory(pid);
    const startTime = startTimeOf(directory.read('stat'));
    const status = directory.read('status');
    const { program, doubt } = programOf(directory);
    const unit = unitOf(directory.read('cgroup'));
    const uid = fieldOf(status, 'Uid')[3];
    const gid = fieldOf(status, 'Gid')[3];
    const groups = fieldOf(status, 'Groups');
    if (uid === undefined || gid === undefined || startTimeOf(directory.read('stat')) !== startTime) return undefined;
    return { uid, gid, groups: groups.slice(0, MOST_GROUPS), program, programDoubt: doubt, unit, startTime };
  } catch {
    // ENOENT, ESRCH: it is gone.
    return undefined;
  }
};

/**
 * The caller of the request at hand. Uid, gid and pid are the request's; the rest is looked up when somebody asks for it, once
 * for each request, and counts only where the ids agree: else the thread is not the one that asked.
 */
export const callerFromProc = (): CallerRegister => {
  let pid = 0;
  let found: Identity | undefined;
  let isLookedUp = false;
  const look = (): Identity | undefined => {
    if (!isLookedUp) {
      isLookedUp = true;
      const identity = identify(pid);
      found = identity?.uid === caller.uid && identity.gid === caller.gid ? identity : undefined;
    }
    return found;
  };
  // Own properties: whoever copies the caller has them looked up.
  const caller = {
    uid: 0,
    gid: 0,
    get pid(): number {
      return pid;
    },
    set pid(value: number) {
      pid = value;
      isLookedUp = false;
      found = undefined;
    },
    get groups(): readonly number[] | undefined {
      return look()?.groups;
    },
    get program(): string | undefined {
      return look()?.program;
    },
    get unit(): string | undefined {
      return look()?.unit;
    },
  } satisfies CallerRegister;
  return caller;
};

/** Without what would have to be looked up: for what everybody may do. */
export const bareCaller = ({ uid, gid, pid }: Caller): Caller => ({ uid, gid, pid });
