/** Opens in a successor's process what a predecessor had open, without deciding anew. */
import { S_IFREG } from '../wire/index.ts';
import type { Node } from './node.ts';
import { OpenDirectory } from './open-directories.ts';
import { OpenFile, type OpenFiles } from './open-files.ts';
import type { LeftDirectory, LeftFile } from './open-journal.ts';
import type { Snapshot } from './snapshot.ts';

/** The revision of no decision: the next read decides. */
const NOT_DECIDED = -1;
const never = { sec: 0, nsec: 0 };

/** A version of which nothing is left. */
const gone: Node = {
  ino: 0,
  parentIno: 0,
  name: '',
  madeBy: 'outside',
  mode: S_IFREG,
  uid: 0,
  gid: 0,
  acl: undefined,
  defaultAcl: undefined,
  nlink: 0,
  sizeBytes: 0,
  bytes: undefined,
  burned: false,
  dataRevision: 0,
  revision: 0,
  atime: never,
  mtime: never,
  ctime: never,
};

export class Adoption {
  /** Open at a version that has not come yet. */
  #unfound: OpenFile[] = [];
  /** Where listings go on, until each has. */
  readonly #places = new Map<OpenDirectory, LeftDirectory['places']>();

  /** The tree is as the predecessor saw it, or as it was a few commits before: a version that is not there yet is found when it comes. */
  file(left: LeftFile, snapshot: Snapshot, files: OpenFiles): OpenFile {
    const { ino, dataRevision, flags, stream, pinned, version } = left;
    const current = snapshot.node(ino);
    const isCurrent = current !== undefined && (!pinned || current.dataRevision === dataRevision);
    const node = isCurrent ? current : (version ?? { ...gone, ino, dataRevision });
    const file = new OpenFile(node, flags, left.caller, NOT_DECIDED, stream, pinned);
    file.truncates = left.truncates;
    file.burnt = left.burnt;
    file.toldRevision = left.toldRevision;
    file.rest = left.rest;
    file.record = left.record;
    file.stale = left.stale;
    files.add(file);
    if (isCurrent || !pinned || left.stale) return file;
    if (version === undefined) {
      file.stale = true;
      this.#unfound.push(file);
    } else files.pinsOldVersion(file);
    return file;
  }

  directory({ ino, caller, places, record }: LeftDirectory, files: OpenFiles): OpenDirectory {
    const open = new OpenDirectory(ino, caller, files);
    open.record = record;
    files.addDirectory(ino, caller.uid);
    this.#places.set(open, places);
    return open;
  }

  /** A commit has come. */
  applied(snapshot: Snapshot): void {
    if (this.#unfound.length === 0) return;
    this.#unfound = this.#unfound.filter((file) => {
      const node = snapshot.node(file.ino);
      if (!file.open || node?.dataRevision !== file.node.dataRevision) return file.open;
      file.find(node);
      return false;
    });
  }

  /** The tree has come to where it stands: what was not found never will be. */
  end(): void {
    this.#unfound = [];
  }

  /** A listing that a predecessor began, and that is asked for from `index` on, is made anew. */
  listed(open: OpenDirectory, index: number): void {
    if (this.#places.size === 0) return;
    const place = this.#places.get(open)?.find(({ cookie }) => cookie === index);
    this.#places.delete(open);
    if (place !== undefined) open.resume(index - 2, place.name);
  }

  closed(open: OpenDirectory): void {
    this.#places.delete(open);
  }

  reset(): void {
    this.#places.clear();
    this.#unfound = [];
  }
}
