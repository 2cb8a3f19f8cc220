/** What every daemon with an API needs. */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { TcpOptions } from '../cluster/index.ts';
import { createKeyFile } from '../store/index.ts';

/** Where the API is on TCP. */
export interface ApiAddress {
  readonly host: string;
  readonly port: number;
  readonly tls?: { readonly certFile: string; readonly keyFile: string } | undefined;
  readonly names: readonly string[];
}

export const toTcpOptions = ({ host, port, names, tls }: ApiAddress): TcpOptions => ({
  host,
  port,
  names,
  ...(tls && { tls: { cert: readFileSync(tls.certFile, 'utf8'), key: readFileSync(tls.keyFile, 'utf8') } }),
});

/** The key-encryption key of the store; made where there is no store yet. `named`: by the operator. */
export const keyFileOf = (stateDirectory: string, named: string | undefined): string => {
  const keyFile = resolve(named ?? join(stateDirectory, 'key'));
  if (!existsSync(keyFile) && !existsSync(join(stateDirectory, 'store'))) createKeyFile(keyFile);
  return keyFile;
};
