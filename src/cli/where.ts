/**
 * Which API, and with which key: `--api`, then PORTHOLE_API, then the configuration file, then this machine's daemon. A key
 * comes from a file only, and goes to no other address than the one that it was given for.
 */
import { readFileSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { parse, YAMLParseError } from 'yaml';
import { z } from 'zod';
import { UsageError } from './usage-error.ts';

export const defaultSocket = '/run/porthole/api.sock';

export type Address =
  | { readonly kind: 'unix'; readonly path: string }
  /** Without a path. */
  | { readonly kind: 'http'; readonly url: URL };

export interface Where {
  readonly address: Address;
  readonly key: string | undefined;
  /** PEM: who signed the server's certificate, where this machine trusts nobody who did. */
  readonly ca?: string | undefined;
  /** Which region is meant; undefined: that of who answers. */
  readonly region?: string | undefined;
}

const Configuration = z.strictObject({
  api: z.string().optional(),
  key: z.string().optional(),
  keyFile: z.string().optional(),
  caFile: z.string().optional(),
});

type Environment = Readonly<Record<string, string | undefined>>;

export const configurationFile = (environment: Environment): string =>
  join(environment['XDG_CONFIG_HOME'] || join(environment['HOME'] || homedir(), '.config'), 'porthole', 'config.yaml');

/** @param option what `--api` or PORTHOLE_API says */
export const findApi = (option: string | undefined, environment: Environment): Where => {
  const file = configurationFile(environment);
  const configured = readConfiguration(file);
  const address = parseAddress(option ?? configured?.api ?? `unix:${defaultSocket}`);
  const keyFile = environment['PORTHOLE_KEY_FILE'];
  const key = keyFile ? readKey(keyFile) : keyOf(configured, file, address);
  if (key !== undefined && address.kind === 'http' && address.url.protocol === 'http:' && !isLoopback(address.url))
    throw new UsageError(
      `"${address.url.origin}" would carry the key for all to read; write "https://${address.url.host}"`,
    );
  const caFile = environment['PORTHOLE_CA_FILE'] || (configured?.caFile && resolve(dirname(file), configured.caFile));
  if (!caFile) return { address, key };
  try {
    return { address, key, ca: readFileSync(caFile, 'utf8') };
  } catch (error) {
    throw new UsageError(`reading the certificate "${caFile}" failed: ${(error as NodeJS.ErrnoException).code}`);
  }
};

export const parseAddress = (text: string): Address => {
  if (text.startsWith('unix:') && text.length > 5)
    return { kind: 'unix', path: text.slice(5).replace(/^\/\/(?=\/)/, '') };
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !/^https?:$/.test(url.protocol)) {
    const fix = text.startsWith('/') ? `unix:${text}` : 'unix:PATH" or "https://HOST:PORT';
    throw new UsageError(`"${text}" is no address of an API; write "${fix}"`);
  }
  if (url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '' || url.pathname !== '/')
    throw new UsageError(`an API's address is a host and a port and no more; write "${url.origin}"`);
  return { kind: 'http', url };
};

export const addressText = (address: Address): string =>
  address.kind === 'unix' ? `unix:${address.path}` : address.url.origin;

const isLoopback = ({ hostname }: URL): boolean => /^(localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);

type Configured = z.infer<typeof Configuration>;

const readConfiguration = (file: string): Configured | undefined => {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new UsageError(`reading the configuration "${file}" failed: ${code}`);
  }
  let value: unknown;
  try {
    value = parse(text) ?? {};
  } catch (error) {
    const [at] = error instanceof YAMLParseError ? (error.linePos ?? []) : [];
    throw new UsageError(`the configuration "${file}" is no YAML${at === undefined ? '' : `, see line ${at.line}`}`);
  }
  const result = Configuration.safeParse(value);
  if (!result.success)
    throw new UsageError(
      `the configuration "${file}" may have the keys "api", "caFile", and "key" or "keyFile", all of them text`,
    );
  const { key, keyFile } = result.data;
  if (key !== undefined && keyFile !== undefined)
    throw new UsageError(`the configuration "${file}" has both "key" and "keyFile"; keep one`);
  if (key !== undefined) checkPrivate(file);
  return result.data;
};

const keyOf = (configured: Configured | undefined, file: string, address: Address): string | undefined => {
  if (configured === undefined) return undefined;
  // Sent elsewhere, it would be given away.
  const isForIt = addressText(parseAddress(configured.api ?? `unix:${defaultSocket}`)) === addressText(address);
  if (!isForIt) return undefined;
  if (configured.keyFile !== undefined) return readKey(resolve(dirname(file), configured.keyFile));
  return configured.key === undefined ? undefined : checkKey(configured.key, file);
};

const readKey = (file: string): string => {
  checkPrivate(file);
  return checkKey(readFileSync(file, 'utf8').trim(), file);
};

const checkKey = (key: string, file: string): string => {
  if (/^ph_[!-~]+$/.test(key)) return key;
  throw new UsageError(`"${file}" has no key in it: a key begins with "ph_"; "porthole key create" makes one`);
};

const checkPrivate = (file: string): void => {
  let mode: number;
  try {
    ({ mode } = statSync(file));
  } catch (error) {
    throw new UsageError(`reading the key file "${file}" failed: ${(error as NodeJS.ErrnoException).code}`);
  }
  // Of /dev/fd/N, as of a shell's <(…), nobody else can have it.
  if ((mode & 0o077) !== 0 && (mode & 0o170000) === 0o100000)
    throw new UsageError(`others may read the key in "${file}"; run: chmod 600 ${file}`);
};
