/** Which of many globs match a path, without asking each: they stand in a tree by the names that they begin with. */
import type { Glob } from './glob.ts';

interface Branch<Entry> {
  /** Whose pattern begins here, or that end here; in the order that they were given in. */
  readonly entries: Entry[];
  readonly byName: Map<string, Branch<Entry>>;
}

const branch = <Entry>(): Branch<Entry> => ({ entries: [], byName: new Map() });

/** Holds entries that are ordered by what they begin with: of two, the one with more names before its first pattern is first. */
export class RuleIndex<Entry extends { readonly glob: Glob }> {
  readonly #top = branch<Entry>();

  constructor(ordered: readonly Entry[]) {
    for (const entry of ordered) {
      let at = this.#top;
      for (const name of entry.glob.literalNames) {
        let next = at.byName.get(name);
        if (next === undefined) at.byName.set(name, (next = branch()));
        at = next;
      }
      at.entries.push(entry);
    }
  }

  /** Those that match, in the order that they were given in. */
  matching(names: readonly string[]): Entry[] {
    const branches = [this.#top];
    for (const name of names) {
      const next = branches.at(-1)!.byName.get(name);
      if (next === undefined) break;
      branches.push(next);
    }
    const found: Entry[] = [];
    for (const { entries } of branches.toReversed())
      for (const entry of entries) if (entry.glob.matchesNames(names)) found.push(entry);
    return found;
  }
}
