/** Paths of a tree as they come in URLs, in JSON and in queries, checked before a host is asked. */
import { ApiError } from './problem.ts';

const nameBytes = 255;
const depth = 64;
const encoder = new TextEncoder();

const refuse = (why: string): never => {
  throw new ApiError('BAD_PATH', why);
};

const checkName = (name: string): string => {
  if (name === '') return refuse('the path has an empty name: leave out the double "/"');
  if (name === '.' || name === '..') return refuse(`the path has the name "${name}", which no tree has`);
  if (name.includes('/') || name.includes('\0')) return refuse('a name of the path has a "/" or NUL in it');
  if (!name.isWellFormed()) return refuse('a name of the path is no valid Unicode');
  if (name.length * 3 > nameBytes && encoder.encode(name).length > nameBytes)
    return refuse(`a name of the path has more than ${nameBytes} bytes`);
  return name;
};

const join = (names: readonly string[]): string => {
  if (names.length > depth) return refuse(`the path has more than ${depth} names`);
  return `/${names.map(checkName).join('/')}`;
};

/**
 * The part of a URL's path after `metadata/`, as it was sent: names are percent-encoded UTF-8, one "/" may stand at the end.
 * @returns absolute and normalised. BAD_PATH.
 */
export const decodeTreePath = (encoded: string): string => {
  const text = encoded.endsWith('/') ? encoded.slice(0, -1) : encoded;
  if (text === '') return encoded === '/' ? refuse('the path has an empty name: leave out the double "/"') : '/';
  return join(
    text.split('/').map((name) => {
      try {
        return decodeURIComponent(name);
      } catch {
        return refuse('the path is not percent-encoded UTF-8');
      }
    }),
  );
};

/** The way back, without the leading "/". */
export const encodeTreePath = (path: string): string =>
  path.split('/').filter(Boolean).map(encodeURIComponent).join('/');

/** A path in JSON or in a query: `/`, `/secrets/db`. BAD_PATH. */
export const parseTreePath = (path: string): string => {
  if (!path.startsWith('/')) return refuse(`the path ${JSON.stringify(path)} does not begin with "/"`);
  return path === '/' ? path : join(path.slice(1).split('/'));
};
