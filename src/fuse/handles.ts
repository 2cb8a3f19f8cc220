/** Open files and directories of one session. File handles are numbers to look up, never reused. */
import type { DirectoryHandle, Handle, Node } from '../tree/index.ts';
import type { SessionJournal } from './journal.ts';

export interface OpenFile {
  readonly fh: number;
  readonly handle: Handle;
  /** The kernel's poll handle, to be named by NOTIFY_POLL. */
  pollLo: number;
  pollHi: number;
}

export interface OpenDirectory {
  readonly fh: number;
  readonly directory: DirectoryHandle;
}

/** Files and directories by handle, up to a limit. */
export class HandleTable {
  readonly #files = new Map<number, OpenFile>();
  readonly #directories = new Map<number, OpenDirectory>();
  readonly #limit: number;
  readonly #journal: SessionJournal | undefined;
  #nextFh = 1;

  constructor(limit: number, journal?: SessionJournal) {
    this.#limit = limit;
    this.#journal = journal;
  }

  /** What a predecessor had open; the journal has it. */
  restore(files: readonly OpenFile[], directories: readonly OpenDirectory[], nextFh: number): void {
    for (const file of files) this.#files.set(file.fh, file);
    for (const open of directories) this.#directories.set(open.fh, open);
    this.#nextFh = nextFh;
  }

  get size(): number {
    return this.#files.size + this.#directories.size;
  }

  /** Asked before anything is opened, so that nothing has to be undone. */
  get full(): boolean {
    return this.size >= this.#limit;
  }

  addFile(handle: Handle): OpenFile {
    const file: OpenFile = { fh: this.#nextFh++, handle, pollLo: 0, pollHi: 0 };
    this.#files.set(file.fh, file);
    this.#journal?.addFile(file);
    return file;
  }

  addDirectory(directory: DirectoryHandle): OpenDirectory {
    const open: OpenDirectory = { fh: this.#nextFh++, directory };
    this.#directories.set(open.fh, open);
    this.#journal?.addDirectory(open);
    return open;
  }

  file(fh: number): OpenFile | undefined {
    return this.#files.get(fh);
  }

  /** The version of `ino` at `dataRevision`, when a file that pins it is open. */
  version(ino: number, dataRevision: number): Node | undefined {
    for (const { handle } of this.#files.values())
      if (handle.ino === ino && handle.node.dataRevision === dataRevision && handle.node.bytes !== undefined)
        return handle.node;
    return undefined;
  }

  directory(fh: number): OpenDirectory | undefined {
    return this.#directories.get(fh);
  }

  /** The journal keeps it until `released`: its truncation may have to be sent once more. */
  removeFile(fh: number): void {
    this.#files.delete(fh);
  }

  released(file: OpenFile): void {
    this.#journal?.removeFile(file);
  }

  removeDirectory(open: OpenDirectory): void {
    this.#directories.delete(open.fh);
    this.#journal?.removeDirectory(open);
  }

  /** Entries of a directory were listed (`SessionJournal.list`). */
  listed(open: OpenDirectory, from: number, to: number, name: string): void {
    this.#journal?.list(open, from, to, name);
  }

  clear(): void {
    this.#files.clear();
    this.#directories.clear();
  }
}
