/**
 * What keeps pages of others from using the session of a browser. A cookie goes along with whatever any page asks for, so a
 * request that has nothing else to show must come from a page of this very server, and say so in ways in which no other can.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { ApiError } from './problem.ts';
import { longestMs } from './sessions.ts';

/** Sent with every request of the console; a page of another origin may not send it. Its value does not matter. */
export const consoleHeader = 'porthole-console';

export interface SessionCookie {
  readonly name: string;
  readonly isSecure: boolean;
}

/** Cookies do not know ports, so the name does: each server of a machine has its own. */
export const sessionCookie = (host: string | undefined, scheme: 'http' | 'https'): SessionCookie => {
  const port = /:(\d+)$/.exec(host ?? '')?.[1];
  const name = port === undefined ? 'porthole' : `porthole-${port}`;
  return scheme === 'https' ? { name: `__Host-${name}`, isSecure: true } : { name, isSecure: false };
};

/** Undefined also of one that is no id of a session. */
export const readCookie = (header: string | undefined, { name }: SessionCookie): string | undefined => {
  const found = header?.split(';').find((one) => one.trim().startsWith(`${name}=`));
  const value = found?.slice(found.indexOf('=') + 1).trim();
  return value !== undefined && /^[A-Za-z0-9_-]{43}$/.test(value) ? value : undefined;
};

const attributes = ({ isSecure }: SessionCookie): string =>
  `Path=/; HttpOnly; SameSite=Strict${isSecure ? '; Secure' : ''}`;

export const setCookie = (cookie: SessionCookie, id: string): string =>
  `${cookie.name}=${id}; Max-Age=${longestMs / 1000}; ${attributes(cookie)}`;

export const clearCookie = (cookie: SessionCookie): string => `${cookie.name}=; Max-Age=0; ${attributes(cookie)}`;

/** Browsers send `Origin` with what changes something, and with each request one of it and `Sec-Fetch-Site`. BAD_ORIGIN. */
export const checkOwnPage = (
  method: string,
  { origin, host, 'sec-fetch-site': site, [consoleHeader]: console }: IncomingHttpHeaders,
  scheme: 'http' | 'https',
): void => {
  const isOwn = origin === `${scheme}://${host}`;
  const refused =
    (origin !== undefined && !isOwn) ||
    (site !== undefined && site !== 'same-origin') ||
    (method !== 'GET' && method !== 'HEAD' && !isOwn) ||
    (origin === undefined && site === undefined);
  if (refused) throw new ApiError('BAD_ORIGIN', 'a session is for pages of this server itself; others need a key');
  if (console === undefined)
    throw new ApiError(
      'BAD_ORIGIN',
      `a request with a session needs the header "Porthole-Console: 1"; others need a key`,
    );
};
