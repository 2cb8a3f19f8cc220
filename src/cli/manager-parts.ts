/** What every daemon with an API needs. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { TcpOptions } from '../cluster/index.ts';
import { createKeyFile } from '../store/index.ts';
import { readTls, type TlsFiles } from './tls-files.ts';

/** Where the API is on TCP. */
export interface ApiAddress {
  readonly host: string;
  readonly port: number;
  readonly tls?: TlsFiles | undefined;
  readonly names: readonly string[];
}

export const toTcpOptions = ({ host, port, names, tls }: ApiAddress): TcpOptions => ({
  host,
  port,
  names,
  ...(tls && { tls: readTls(tls) }),
});

/** The key-encryption key of the store; made where there is no store yet. `named`: by the operator. */
export const keyFileOf = (stateDirectory: string, named: string | undefined): string => {
  const keyFile = resolve(named ?? join(stateDirectory, 'key'));
  if (!existsSync(keyFile) && !existsSync(join(stateDirectory, 'store'))) createKeyFile(keyFile);
  return keyFile;
};
