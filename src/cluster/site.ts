/**
 * The console's files, as the build made them: one text that has them all, compressed. Its pages may load what this server has,
 * and nothing else.
 */
import { Buffer } from 'node:buffer';
import { brotliDecompressSync } from 'node:zlib';
import type { Context } from 'hono';
import type { Env } from './handlers/serve.ts';

/** What the build writes. Bodies are in base64. */
export interface SitePack {
  readonly files: readonly {
    /** `/index.html`, `/assets/index-1a2b3c.js`. */
    readonly path: string;
    readonly type: string;
    readonly digest: string;
    readonly br: string;
    readonly gzip: string;
  }[];
}

interface SiteFile {
  readonly type: string;
  readonly digest: string;
  readonly bodies: Readonly<Record<Coding, Buffer<ArrayBuffer>>>;
}

export type Site = ReadonlyMap<string, SiteFile>;

type Coding = 'br' | 'gzip' | 'identity';

const index = '/index.html';
/** Their names have a hash of what is in them. */
const assets = '/assets/';

export const readSite = ({ files }: SitePack): Site =>
  new Map(
    files.map(({ path, type, digest, ...packed }) => {
      const br = Buffer.from(packed.br, 'base64');
      const gzip = Buffer.from(packed.gzip, 'base64');
      const identity = Buffer.from(brotliDecompressSync(br));
      return [path, { type, digest, bodies: { br, gzip, identity } }] as const;
    }),
  );

const sitePolicy =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

const notBuilt = 'The console is not built in this checkout: run "npm run console", then start this again.\n';

const codingFor = (accepted: string): Coding => {
  const accepts = (coding: Coding): boolean =>
    accepted.split(',').some((one) => {
      const [name, ...parameters] = one.split(';').map((part) => part.trim().toLowerCase());
      return name === coding && !parameters.some((parameter) => /^q=0(\.0*)?$/.test(parameter));
    });
  return (['br', 'gzip'] as const).find(accepts) ?? 'identity';
};

/** Undefined: it is no file of the console, nor the address of one of its pages. */
export const serveSite = (site: Site | undefined, c: Context<Env>): Response | undefined => {
  const { path, method } = c.req;
  if ((method !== 'GET' && method !== 'HEAD') || path.startsWith('/v1/')) return undefined;
  const isPage = path === '/' || (c.req.header('accept') ?? '').includes('text/html');
  const name = isPage && !site?.has(path) ? index : path;
  if (site === undefined) return path === '/' ? new Response(notBuilt, { status: 404 }) : undefined;
  const file = site.get(name);
  if (file === undefined) return undefined;
  c.set('route', 'the console');
  const coding = codingFor(c.req.header('accept-encoding') ?? '');
  const etag = `"${file.digest}-${coding}"`;
  c.env.outgoing.setHeader('content-security-policy', sitePolicy);
  const headers: Record<string, string> = {
    etag,
    'cache-control': name.startsWith(assets) ? 'public, max-age=31536000, immutable' : 'no-cache',
    vary: 'accept-encoding',
    'content-type': file.type,
    'referrer-policy': 'no-referrer',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    ...(coding !== 'identity' && { 'content-encoding': coding }),
  };
  const known = c.req.header('if-none-match')?.split(',') ?? [];
  if (known.some((one) => one.trim().replace(/^W\//, '') === etag)) return new Response(null, { status: 304, headers });
  return new Response(method === 'HEAD' ? null : file.bodies[coding], { headers });
};
