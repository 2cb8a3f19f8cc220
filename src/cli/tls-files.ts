/** A certificate and its private key, as files of PEM. */
import { readFileSync } from 'node:fs';

export interface TlsFiles {
  readonly certFile: string;
  readonly keyFile: string;
}

export const readTls = ({ certFile, keyFile }: TlsFiles): { readonly cert: string; readonly key: string } => ({
  cert: readFileSync(certFile, 'utf8'),
  key: readFileSync(keyFile, 'utf8'),
});
