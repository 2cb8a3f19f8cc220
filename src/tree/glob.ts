/** Globs over paths, matched in time linear in each: guests choose the names, so no pattern may backtrack. */

/** The names of an absolute path. */
export const namesOf = (path: string): string[] => path.split('/').filter((name) => name !== '');

/** Whether a name matches a pattern of literals, `*` (any characters) and `?` (one character). */
const matchesName = (pattern: readonly string[], name: readonly string[]): boolean =>
  matches(
    pattern,
    name,
    (token) => token === '*',
    (token, character) => token === '?' || token === character,
  );

/**
 * Whether all of `items` match all of `tokens`, where a wild token stands for any number of items. When a later token
 * fails, only the last wild one has to take one item more, never an earlier one: so the time is at most their product.
 */
function matches<Token, Item>(
  tokens: readonly Token[],
  items: readonly Item[],
  isWild: (token: Token) => boolean,
  matchesOne: (token: Token, item: Item) => boolean,
): boolean {
  let token = 0;
  let item = 0;
  let wild = -1;
  let wildEnd = 0;
  while (item < items.length) {
    if (token < tokens.length && isWild(tokens[token]!)) {
      wild = token++;
      wildEnd = item;
    } else if (token < tokens.length && matchesOne(tokens[token]!, items[item]!)) {
      token++;
      item++;
    } else if (wild >= 0) {
      token = wild + 1;
      item = ++wildEnd;
    } else return false;
  }
  while (token < tokens.length && isWild(tokens[token]!)) token++;
  return token === tokens.length;
}

/** One segment of a pattern: a whole name, any name, the characters of a pattern, or `**`. */
type Segment = string | typeof ANY_NAME | typeof ANY_NAMES | readonly string[];

const ANY_NAME = Symbol('*');
const ANY_NAMES = Symbol('**');

function segmentOf(text: string): Segment {
  if (text === '**') return ANY_NAMES;
  if (text === '*') return ANY_NAME;
  return /[*?]/.test(text) ? [...text] : text;
}

const isAnyNames = (segment: Segment): boolean => segment === ANY_NAMES;

/** Names are compared whole where the pattern has a whole name: most rules differ from most paths in the first one. */
const matchesSegment = (segment: Segment, name: string): boolean =>
  typeof segment === 'string' ? segment === name : segment === ANY_NAME || matchesName(segment as string[], [...name]);

/** A pattern over absolute paths. `*` and `?` match within one name, `**` any number of names, at the end at least one. */
export class Glob {
  /** One per name of the pattern. */
  readonly segments: readonly string[];
  readonly #segments: readonly Segment[];

  constructor(glob: string) {
    this.segments = namesOf(glob);
    const segments = this.segments.map(segmentOf);
    // `/a/**` is all below `/a`, and not `/a` itself.
    this.#segments = segments.at(-1) === ANY_NAMES ? [...segments.slice(0, -1), ANY_NAME, ANY_NAMES] : segments;
  }

  /** The names before its first pattern. */
  get literalNames(): readonly string[] {
    const pattern = this.segments.findIndex((segment) => /[*?]/.test(segment));
    return pattern < 0 ? this.segments : this.segments.slice(0, pattern);
  }

  matches(path: string): boolean {
    return this.matchesNames(namesOf(path));
  }

  /** The same for a path that `namesOf` took apart, once for many patterns. */
  matchesNames(names: readonly string[]): boolean {
    return matches(this.#segments, names, isAnyNames, matchesSegment);
  }

  /** Whether it may match something below a directory, or the directory itself. */
  mayMatchWithin(directory: readonly string[]): boolean {
    for (const [at, name] of directory.entries()) {
      const segment = this.#segments[at];
      if (segment === ANY_NAMES) return true;
      if (segment === undefined || !matchesSegment(segment, name)) return false;
    }
    return true;
  }
}
