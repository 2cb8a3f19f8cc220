/** Where the metadata server of this machine is. */
import { readFileSync } from 'node:fs';
import type { RequestOptions } from 'node:http';
import { isIP } from 'node:net';
import { AgentError } from './agent-error.ts';

export interface ServerAddress {
  readonly isTls: boolean;
  /** For `node:http`, without path and method. Where it is neither TCP nor a unix socket, `guestPort` says how to connect. */
  readonly options: RequestOptions & { readonly ca?: string | undefined };
  readonly guestPort?: GuestPort | undefined;
  /** As people wrote it. */
  readonly text: string;
}

/** What a hypervisor gives its guest: a port of vsock, or a virtio-serial port with the frames of `SerialMux`. */
export type GuestPort =
  | { readonly kind: 'vsock'; readonly cid: number; readonly port: number }
  | { readonly kind: 'virtio-serial'; readonly path: string };

const forms = 'unix:PATH, http://IP:PORT, https://IP:PORT, vsock:CID:PORT or virtio-serial:PATH';

/** `caFile`: PEM; the only authority that is believed. AgentError `ADDRESS`. */
export const parseServerAddress = (text: string, caFile?: string): ServerAddress => {
  if (text.startsWith('unix:') && text.length > 'unix:'.length)
    return { isTls: false, options: { socketPath: text.slice('unix:'.length), host: 'localhost' }, text };
  const guestPort = guestPortOf(text);
  if (guestPort !== undefined) return { isTls: false, options: { host: 'localhost' }, guestPort, text };
  const match = /^(https?):\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d{1,5})\/?$/.exec(text);
  const host = match?.[2] ?? match?.[3] ?? '';
  const port = Number(match?.[4]);
  if (match === null || isIP(host) === 0 || !(port > 0 && port <= 65_535))
    throw new AgentError('ADDRESS', `"${text}" is no address of a metadata server; write ${forms}`);
  const isTls = match[1] === 'https';
  if (isTls && caFile === undefined)
    throw new AgentError('ADDRESS', `"${text}" needs --ca FILE, the certificate of the authority to believe`);
  const ca = caFile === undefined ? undefined : readFileSync(caFile, 'utf8');
  return { isTls, options: { host, port, ...(ca !== undefined && { ca }) }, text };
};

const guestPortOf = (text: string): GuestPort | undefined => {
  const serial = /^virtio-serial:(\/.+)$/.exec(text);
  if (serial !== null) return { kind: 'virtio-serial', path: serial[1]! };
  const vsock = /^vsock:(\d{1,10}):(\d{1,10})$/.exec(text);
  const [cid, port] = [Number(vsock?.[1]), Number(vsock?.[2])];
  return vsock !== null && cid <= 0xffff_ffff && port <= 0xffff_ffff ? { kind: 'vsock', cid, port } : undefined;
};
