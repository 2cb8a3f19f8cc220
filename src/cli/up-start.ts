/** What `porthole up` makes sure of before it begins, and why it does not, in words for who typed the command. */
import { chmodSync, mkdirSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { StoreError } from '../store/index.ts';

/**
 * Makes it where it is not there. VMs run as users of their own and must get to their directories in it, each of which is
 * closed by itself: 0711. Refused is what others could change below us.
 */
const prepareHostDirectory = (directory: string, option: '--state' | '--run'): void => {
  const otherwise = `give another ${option} directory`;
  try {
    mkdirSync(directory, { recursive: true, mode: 0o711 });
    const { mode, uid } = statSync(directory);
    const mine = process.getuid?.();
    if (uid !== mine) throw new Error(`"${directory}" belongs to uid ${uid}, and this is uid ${mine}; ${otherwise}`);
    if ((mode & 0o022) !== 0)
      throw new Error(
        `"${directory}" has mode 0${(mode & 0o7777).toString(8)}, so others may change what is in it; ${otherwise}`,
      );
    chmodSync(directory, 0o711);
  } catch (error) {
    const { code, syscall } = error as NodeJS.ErrnoException;
    if (syscall === undefined) throw error;
    throw new Error(`"${directory}" cannot be used (${code}); ${otherwise}`, { cause: error });
  }
};

/** The daemon's directories, made and closed to others, as absolute paths. */
export const prepareDirectories = (options: {
  readonly stateDirectory: string;
  readonly runDirectory: string;
}): { readonly stateDirectory: string; readonly runDirectory: string } => {
  const stateDirectory = resolve(options.stateDirectory);
  const runDirectory = resolve(options.runDirectory);
  prepareHostDirectory(stateDirectory, '--state');
  prepareHostDirectory(runDirectory, '--run');
  return { stateDirectory, runDirectory };
};

export interface Places {
  readonly stateDirectory: string;
  /** Where one was named. */
  readonly keyFile?: string | undefined;
  /** The store is in an etcd. */
  readonly etcd?: object | undefined;
}

/** The same error, or one that says what to do in terms of the command line. */
export const startRefusal = (error: unknown, { stateDirectory, keyFile, etcd }: Places): unknown => {
  if (!(error instanceof StoreError) || etcd !== undefined) return error;
  const restore = `porthole restore FILE --state '${stateDirectory}'${keyFile === undefined ? '' : ` --key '${keyFile}'`}`;
  switch (error.code) {
    case 'STORE_LOCKED':
      return new Error(
        `a host daemon, or a restore, uses "${stateDirectory}" already; stop it, or give another --state directory`,
        { cause: error },
      );
    case 'STORE_DAMAGED':
    case 'STORE_MISSING':
      return new Error(
        `the daemon does not start: ${error.message}.\nTo restore: ${restore}\nVMs that run go on meanwhile`,
        { cause: error },
      );
    case 'STORE_FULL':
      return new Error(
        `the daemon does not start: ${error.message}; free some room there, then start it again.\nVMs that run go on meanwhile`,
        { cause: error },
      );
    case 'STORE_KEY_MISSING':
      return new Error(`${error.message}. If it is elsewhere, name it with --key`, { cause: error });
    case 'STORE_KEY_WRONG':
      return new Error(`${error.message}. --key names the file`, { cause: error });
    default:
      return error;
  }
};
