/** The open directories of one `FileSystem`: each lists the entries as they were when it was opened or rewound. */
import type { Caller } from './caller.ts';
import type { DirectoryHandle } from './file-system.ts';
import type { OpenFiles } from './open-files.ts';
import { NameMap } from './persistent.ts';

export class OpenDirectory implements DirectoryHandle {
  readonly ino: number;
  /** The opener, by whom every listing is decided. */
  readonly caller: Caller;
  /** Where it is counted. */
  readonly files: OpenFiles;
  open = true;
  /** Shared with the tree: a listing of any length costs this handle nothing. Undefined until entries are asked for. */
  #entries: NameMap | undefined;
  /** Ranks in `#entries`, ascending, of what the caller is not told of. */
  #hidden: readonly number[] = [];
  /** What has to be added to an index: names came or went before it since a predecessor told it. */
  #shift = 0;
  /** Where the journal keeps it; 0: nowhere. */
  record = 0;

  /** `caller` is kept. */
  constructor(ino: number, caller: Caller, files: OpenFiles) {
    this.ino = ino;
    this.caller = caller;
    this.files = files;
  }

  get listed(): boolean {
    return this.#entries !== undefined;
  }

  list(entries: NameMap, isHidden: ((ino: number) => boolean) | undefined): void {
    this.#entries = entries;
    const hidden: number[] = [];
    if (isHidden !== undefined)
      for (const [rank, [, ino]] of [...entries].entries()) if (isHidden(ino)) hidden.push(rank);
    this.#hidden = hidden;
  }

  rewind(): void {
    this.#entries = undefined;
    this.#shift = 0;
  }

  /** Has `index` name the first entry after `name`: the listing is a new one, and the index is of an old one. */
  resume(index: number, name: string): void {
    const rank = (this.#entries ?? NameMap.empty).rankAfter(name);
    this.#shift = rank - this.#hidden.filter((hidden) => hidden < rank).length - index;
  }

  /** The entry of that index among those that the caller is told of. */
  at(index: number): readonly [name: string, ino: number] | undefined {
    let rank = index + this.#shift;
    for (const hidden of this.#hidden) {
      if (hidden > rank) break;
      rank++;
    }
    return (this.#entries ?? NameMap.empty).at(rank);
  }
}
