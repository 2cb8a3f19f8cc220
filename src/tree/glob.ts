/** Globs over paths, matched in time linear in each: guests choose the names, so no pattern may backtrack. */

const namesOf = (path: string): string[] => path.split('/').filter((name) => name !== '');

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

/** A pattern over absolute paths. `*` and `?` match within one name, `**` any number of names, at the end at least one. */
export class Glob {
  /** One per name of the pattern. */
  readonly segments: readonly string[];
  /** Each segment's characters; undefined for `**`. */
  readonly #tokens: readonly (readonly string[] | undefined)[];

  constructor(glob: string) {
    this.segments = namesOf(glob);
    const tokens = this.segments.map((segment) => (segment === '**' ? undefined : [...segment]));
    // `/a/**` is all below `/a`, and not `/a` itself.
    this.#tokens =
      tokens.length > 0 && tokens.at(-1) === undefined ? [...tokens.slice(0, -1), ['*'], undefined] : tokens;
  }

  matches(path: string): boolean {
    return matches(
      this.#tokens,
      namesOf(path).map((name) => [...name]),
      (tokens) => tokens === undefined,
      (tokens, name) => matchesName(tokens!, name),
    );
  }
}
