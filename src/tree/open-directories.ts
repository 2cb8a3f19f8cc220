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
  /** A bit for each rank in `#entries` that the caller is not told of; undefined where there is none. */
  #hidden: Uint8Array | undefined;
  /** Where `at` was last: kernels go through a listing in order. `#rank` is that of `#index`, or past the end. */
  #index = 0;
  #rank = 0;
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
    this.#hidden = undefined;
    if (isHidden === undefined) return;
    let rank = 0;
    for (const [, ino] of entries) {
      if (isHidden(ino)) {
        this.#hidden ??= new Uint8Array(Math.ceil(entries.size / 8));
        this.#hidden[rank >> 3]! |= 1 << (rank & 7);
      }
      rank++;
    }
    this.#index = 0;
    this.#rank = this.#nextShown(0);
  }

  rewind(): void {
    this.#entries = undefined;
    this.#shift = 0;
  }

  /** Has `index` name the first entry after `name`: the listing is a new one, and the index is of an old one. */
  resume(index: number, name: string): void {
    const rank = (this.#entries ?? NameMap.empty).rankAfter(name);
    let shown = 0;
    for (let at = this.#nextShown(0); at < rank; at = this.#nextShown(at + 1)) shown++;
    this.#shift = shown - index;
  }

  /** The entry of that index among those that the caller is told of. */
  at(asked: number): readonly [name: string, ino: number] | undefined {
    const index = asked + this.#shift;
    const entries = this.#entries ?? NameMap.empty;
    if (this.#hidden === undefined) return entries.at(index);
    if (index < this.#index) {
      this.#index = 0;
      this.#rank = this.#nextShown(0);
    }
    while (this.#index < index && this.#rank < entries.size) {
      this.#index++;
      this.#rank = this.#nextShown(this.#rank + 1);
    }
    return this.#index === index ? entries.at(this.#rank) : undefined;
  }

  /** The first rank from `rank` on that is not hidden; past the end where there is none. */
  #nextShown(rank: number): number {
    const hidden = this.#hidden;
    let at = rank;
    if (hidden !== undefined) while (((hidden[at >> 3] ?? 0) & (1 << (at & 7))) !== 0) at++;
    return at;
  }
}
