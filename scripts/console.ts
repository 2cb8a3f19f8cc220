/**
 * `npm run console`: builds the web console and packs it into one file, which daemons and the executable serve. Nothing is done
 * when nothing changed. `--force`: anyway.
 */
import { createHash } from 'node:crypto';
import { globSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { build } from 'vite';
import config from '../console/vite.config.ts';
import type { SitePack } from '../src/cluster/index.ts';

/** Of all that the first page loads, compressed as it comes. */
const firstLoadBytesMost = 200_000;

const { values } = parseArgs({ options: { force: { type: 'boolean', default: false } } });
process.chdir(path.resolve(import.meta.dirname, '..'));
const site = '.cache/console/site';
const packFile = '.cache/console/console.json';

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.woff2': 'font/woff2',
};

const digestOf = (content: Uint8Array | string): string => createHash('sha256').update(content).digest('base64url');

/** Of all that the build depends on. */
const sourceDigest = (): string => {
  const files = globSync([
    'console/**/*.*',
    'src/cluster/client-request.ts',
    'scripts/console.ts',
    'package-lock.json',
  ]).toSorted();
  return digestOf(files.map((file) => `${file} ${digestOf(readFileSync(file))}\n`).join(''));
};

const isBuilt = (sources: string): boolean => {
  try {
    return (JSON.parse(readFileSync(packFile, 'utf8')) as { readonly sources?: string }).sources === sources;
  } catch {
    return false;
  }
};

const packed = (file: string): SitePack['files'][number] => {
  const content = readFileSync(path.join(site, file));
  const type = types[path.extname(file)];
  if (type === undefined) throw new Error(`scripts/console.ts does not know the media type of "${file}"; add it`);
  return {
    path: `/${file}`,
    type,
    digest: digestOf(content).slice(0, 22),
    br: brotliCompressSync(content, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: content.length } }).toString(
      'base64',
    ),
    gzip: gzipSync(content, { level: 9 }).toString('base64'),
  };
};

/** The page and what it names; what those name in turn comes when a view needs it. */
const firstLoadBytes = (files: SitePack['files']): number => {
  const page = readFileSync(path.join(site, 'index.html'), 'utf8');
  const needed = files.filter((file) => file.path === '/index.html' || page.includes(file.path));
  return needed.reduce((sum, { gzip }) => sum + Buffer.byteLength(gzip, 'base64'), 0);
};

const main = async (): Promise<void> => {
  const sources = sourceDigest();
  if (!values.force && isBuilt(sources)) return;
  await build(config);
  const files = globSync('**/*.*', { cwd: site }).toSorted().map(packed);
  const bytes = firstLoadBytes(files);
  if (bytes > firstLoadBytesMost)
    throw new Error(
      `the first page of the console loads ${bytes} bytes; ${firstLoadBytesMost} are allowed: load views when they are needed`,
    );
  mkdirSync(path.dirname(packFile), { recursive: true });
  writeFileSync(`${packFile}.new`, JSON.stringify({ sources, files } satisfies SitePack & { sources: string }));
  renameSync(`${packFile}.new`, packFile);
  console.error(`porthole: built the console: ${files.length} files, ${bytes} bytes at first load`);
};

await main();
