/** Where the metadata server of this machine is. */
import { readFileSync } from 'node:fs';
import type { RequestOptions } from 'node:http';
import { isIP } from 'node:net';
import { AgentError } from './agent-error.ts';

export interface ServerAddress {
  readonly isTls: boolean;
  /** For `node:http`, without path and method. */
  readonly options: RequestOptions & { readonly ca?: string | undefined };
  /** As people wrote it. */
  readonly text: string;
}

/** `unix:PATH`, `http://IP:PORT` or `https://IP:PORT`. `caFile`: PEM; the only authority that is believed. AgentError `ADDRESS`. */
export const parseServerAddress = (text: string, caFile?: string): ServerAddress => {
  if (text.startsWith('unix:') && text.length > 'unix:'.length)
    return { isTls: false, options: { socketPath: text.slice('unix:'.length), host: 'localhost' }, text };
  const match = /^(https?):\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d{1,5})\/?$/.exec(text);
  const host = match?.[2] ?? match?.[3] ?? '';
  const port = Number(match?.[4]);
  if (match === null || isIP(host) === 0 || !(port > 0 && port <= 65_535))
    throw new AgentError(
      'ADDRESS',
      `"${text}" is no address of a metadata server; write unix:PATH, http://IP:PORT or https://IP:PORT`,
    );
  const isTls = match[1] === 'https';
  if (isTls && caFile === undefined)
    throw new AgentError('ADDRESS', `"${text}" needs --ca FILE, the certificate of the authority to believe`);
  const ca = caFile === undefined ? undefined : readFileSync(caFile, 'utf8');
  return { isTls, options: { host, port, ...(ca !== undefined && { ca }) }, text };
};
