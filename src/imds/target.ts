/** What a request line asks for. Pure: foreign bytes come in here. */

export interface Target {
  /** Names between the slashes, decoded. `//` counts as `/`: the EC2 client of the AWS SDK sends it. */
  readonly names: readonly string[];
  /** The path ended with `/`, or was `/`. */
  readonly endsInSlash: boolean;
  /** By key, the last of each. */
  readonly query: ReadonlyMap<string, string>;
}

export const targetLimits = { characters: 4096, names: 64, queryKeys: 32 } as const;

/**
 * Takes the origin form alone (RFC 9112 §3.2.1). Undefined for what is malformed, too long, or climbs: a name that is `.` or
 * `..`, or has a `/`, a NUL or a control character in it once it is decoded, is refused rather than understood.
 */
export const parseTarget = (text: string): Target | undefined => {
  if (text.length > targetLimits.characters || !text.startsWith('/')) return undefined;
  const [path, rest] = splitOnce(text, '?');
  const names: string[] = [];
  for (const part of path.split('/')) {
    if (part === '') continue;
    const name = decode(part);
    if (name === undefined || name === '.' || name === '..' || unfit.test(name)) return undefined;
    names.push(name);
  }
  if (names.length > targetLimits.names) return undefined;
  const query = new Map<string, string>();
  for (const pair of rest === undefined || rest === '' ? [] : rest.split('&')) {
    const [key, value = ''] = splitOnce(pair, '=').map((part) => part && decode(part.replaceAll('+', ' ')));
    if (key === undefined || value === undefined) return undefined;
    query.set(key, value);
  }
  if (query.size > targetLimits.queryKeys) return undefined;
  return { names, endsInSlash: path.endsWith('/'), query };
};

// oxlint-disable-next-line no-control-regex -- control characters are what it looks for
const unfit = /[/\u0000-\u001f\u007f#]/;

const splitOnce = (text: string, separator: string): [string, string | undefined] => {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
};

/** Percent-decoded UTF-8; undefined when it is none. */
const decode = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
};
