/** Where the stores are, as the command line says it: options that several commands have. */
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import type { Command } from 'commander';
import type { EtcdPlaceOptions, EtcdStoresOptions } from '../store/index.ts';
import { UsageError } from './usage-error.ts';

export interface StoreFlags {
  readonly store?: string;
  readonly globalStore?: string;
  readonly storeCa?: string;
  readonly storeCert?: string;
  readonly storeKey?: string;
  readonly storeCredentials?: string;
}

/** How to get to an etcd, for commands that name it elsewhere. */
export const etcdAccessOptions = (command: Command): Command =>
  command
    .option('--global-store <url>', 'where the global store has an etcd of its own')
    .option('--store-ca <file>', 'who signed the certificates of etcd’s members, as PEM; a must beyond loopback')
    .option('--store-cert <file>', 'our certificate for etcd, as PEM, where it wants one')
    .option('--store-key <file>', 'its private key, as PEM')
    .option('--store-credentials <file>', 'USER:PASSWORD for etcd in one line, mode 0600');

export type EtcdOptions = Omit<EtcdStoresOptions, 'keyFile'>;

const defaultPort = 2379;
/** Longer than an election takes. */
const globalPatienceMs = 10_000;

/** "etcd://HOST[:PORT],…[/PREFIX]" @returns endpoints and prefix. UsageError. */
const parse = (url: string): Required<Pick<EtcdPlaceOptions, 'endpoints' | 'prefix'>> => {
  const [, hosts = '', prefix = 'porthole'] = /^etcd:\/\/([^/]+)(?:\/([\w.-]+(?:\/[\w.-]+)*))?\/?$/.exec(url) ?? [];
  const endpoints = hosts.split(',').map((host) => {
    const [, name = '', port = String(defaultPort)] = /^(\[[\da-f:]+\]|[\w.-]+)(?::(\d{1,5}))?$/i.exec(host) ?? [];
    if (name === '' || Number(port) > 65_535)
      throw new UsageError(
        `"${url}" names no etcd; write etcd://HOST:PORT,HOST:PORT, and /PREFIX after it if you want`,
      );
    return `${name}:${port}`;
  });
  return { endpoints, prefix };
};

const isLoopback = (endpoint: string): boolean => {
  const host = endpoint.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  return host === 'localhost' || (isIP(host) === 4 && host.startsWith('127.')) || host === '::1';
};

/** UsageError; system errors. */
const readPassword = (file: string): EtcdPlaceOptions['password'] => {
  const { mode } = statSync(file);
  if ((mode & 0o077) !== 0)
    throw new UsageError(
      `"${file}" may be read by others (mode 0${(mode & 0o777).toString(8)}); run: chmod 600 '${file}'`,
    );
  const [, user, password] = /^([^:\n]+):([^\n]+)\n?$/.exec(readFileSync(file, 'utf8')) ?? [];
  if (user === undefined || password === undefined) throw new UsageError(`"${file}" must be one line, USER:PASSWORD`);
  return { user, password };
};

/** UsageError; system errors. */
export const etcdOptions = (url: string, flags: StoreFlags): EtcdOptions => {
  const { storeCa, storeCert, storeKey, storeCredentials, globalStore } = flags;
  if ((storeCert === undefined) !== (storeKey === undefined))
    throw new UsageError('--store-cert and --store-key belong together: give both or none');
  if (storeCert !== undefined && storeCa === undefined) throw new UsageError('--store-cert needs --store-ca too');
  const shared: Pick<EtcdPlaceOptions, 'tls' | 'password'> = {
    ...(storeCa !== undefined && {
      tls: {
        ca: readFileSync(storeCa),
        ...(storeCert !== undefined &&
          storeKey !== undefined && { client: { cert: readFileSync(storeCert), key: readFileSync(storeKey) } }),
      },
    }),
    ...(storeCredentials !== undefined && { password: readPassword(storeCredentials) }),
  };
  const place = (text: string): EtcdPlaceOptions => {
    const parsed = parse(text);
    const open = parsed.endpoints.find((endpoint) => !isLoopback(endpoint));
    if (storeCa === undefined && open !== undefined)
      throw new UsageError(`"${open}" is not on this machine, so etcd must be spoken to over TLS: give --store-ca`);
    return { ...parsed, ...shared };
  };
  // The region goes on without it: whoever asks for what is of all regions is told so soon.
  const global = globalStore === undefined ? undefined : { ...place(globalStore), patienceMs: globalPatienceMs };
  return { ...place(url), ...(global && { global }) };
};
