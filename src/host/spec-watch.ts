/** Tells when a spec file, or a file that its values come from, may have changed since it was last read. */
import { type FSWatcher, statSync, watch } from 'node:fs';
import { dirname } from 'node:path';

/** How long the files must have been quiet. */
const settleMs = 50;
/** How often the files are looked at where the file system tells nothing (network file systems). */
const pollMs = 1_000;

/**
 * Watches directories rather than files, because editors replace files by renaming; and compares what stat(2) says, so that
 * other files there don't count.
 */
export class SpecWatch implements Disposable {
  readonly #file: string;
  readonly #onChange: () => void;
  readonly #poll: NodeJS.Timeout;
  readonly #directories = new Map<string, FSWatcher | undefined>();
  #references: readonly string[] = [];
  #seen: string;
  #settling: NodeJS.Timeout | undefined;

  constructor(file: string, onChange: () => void) {
    this.#file = file;
    this.#onChange = onChange;
    this.#watchDirectories();
    this.#seen = this.#look();
    // What was loaded was read before: a change between the two would never be seen.
    this.#settle();
    this.#poll = setInterval(() => this.#compare(), pollMs);
  }

  /** Files to be watched beside the spec file. */
  follow(references: readonly string[]): void {
    if (references.join('\0') === this.#references.join('\0')) return;
    this.#references = references;
    this.#watchDirectories();
    this.#seen = this.#look();
    this.#settle();
  }

  #watchDirectories(): void {
    const wanted = new Set([this.#file, ...this.#references].map((file) => dirname(file)));
    for (const [directory, watcher] of this.#directories) {
      if (wanted.has(directory)) continue;
      watcher?.close();
      this.#directories.delete(directory);
    }
    for (const directory of wanted) {
      if (!this.#directories.has(directory)) this.#directories.set(directory, this.#watch(directory));
    }
  }

  /** Undefined where watching is not possible: then the polling has to do. */
  #watch(directory: string): FSWatcher | undefined {
    try {
      const watcher = watch(directory, { persistent: false }, () => this.#compare());
      watcher.on('error', () => {
        watcher.close();
        this.#directories.set(directory, undefined);
      });
      return watcher;
    } catch {
      return undefined;
    }
  }

  #compare(): void {
    const now = this.#look();
    if (now === this.#seen) return;
    this.#seen = now;
    this.#settle();
  }

  #settle(): void {
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => this.#onChange(), settleMs);
  }

  #look(): string {
    return [this.#file, ...this.#references].map(signature).join('\n');
  }

  [Symbol.dispose](): void {
    clearInterval(this.#poll);
    clearTimeout(this.#settling);
    for (const watcher of this.#directories.values()) watcher?.close();
    this.#directories.clear();
  }
}

/** What can't be looked at (a link that leads to itself, a name that is too long, a directory closed to us) may come. */
const signature = (file: string): string => {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = statSync(file, { bigint: true });
    return `${dev} ${ino} ${size} ${mtimeNs} ${ctimeNs}`;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? 'none';
  }
};
