/** Where the files of one VM are. */
import { chmodSync, chownSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';

export interface VmPaths {
  /** Of the state directory: survives the machine's restart. */
  readonly state: string;
  readonly disk: string;
  /** The beginning of the names of its pieces; see `console-log.ts`. */
  readonly consoleLog: string;
  readonly qemuLog: string;
  readonly watcherLog: string;
  /** Of the run directory: ours, searchable by QEMU's user. */
  readonly run: string;
  /** The only directory that QEMU's user may write to. */
  readonly qemu: string;
  readonly qmp: string;
  readonly watch: string;
  readonly serial: string;
  readonly console: string;
  readonly lastWords: string;
  readonly watcherConfig: string;
}

export function vmPaths(stateDir: string, runDir: string, name: string): VmPaths {
  const state = join(stateDir, 'vms', name);
  const run = join(runDir, 'vms', name);
  const qemu = join(run, 'qemu');
  return {
    state,
    disk: join(state, 'disk.qcow2'),
    consoleLog: join(state, 'console.log'),
    qemuLog: join(state, 'qemu.log'),
    watcherLog: join(state, 'watcher.log'),
    run,
    qemu,
    qmp: join(qemu, 'qmp.sock'),
    watch: join(qemu, 'qmp-watch.sock'),
    serial: join(qemu, 'serial.sock'),
    console: join(run, 'console.sock'),
    lastWords: join(run, 'last-words.json'),
    watcherConfig: join(run, 'watcher.json'),
  };
}

/** Makes a directory that others may search and none but us may change (0711), whatever the daemon's umask is. */
export function makeSearchable(directory: string): void {
  mkdirSync(directory, { recursive: true });
  chmodSync(directory, 0o711);
}

/**
 * Makes the directories of a VM where they are not there. QEMU's user can search those above its own (0711) and write to
 * `qemu` alone, so that a QEMU that was taken over can put no link in the way of a file that we write.
 */
export function makeVmDirectories(paths: VmPaths, uid: number | undefined, gid = uid): void {
  for (const dir of [paths.state, paths.run]) {
    makeSearchable(dirname(dir));
    makeSearchable(dir);
  }
  mkdirSync(paths.qemu, { recursive: true, mode: 0o700 });
  if (uid !== undefined) chownSync(paths.qemu, uid, gid ?? uid);
}
