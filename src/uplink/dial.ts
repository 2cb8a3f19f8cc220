/** Connections from a host to a manager: TLS 1.3, the manager proving that it is one of the region. */
import { isIP } from 'node:net';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import { fingerprintOf, managerName, toPem } from './authority.ts';
import { alpnOf, type Purpose } from './protocols.ts';
import { UplinkError } from './uplink-error.ts';

export interface Address {
  readonly host: string;
  readonly port: number;
}

export const defaultPort = 4665;
const connectWithinMs = 10_000;

/** `HOST[:PORT]`, with an IPv6 address in brackets where a port follows. Undefined: it is none. */
export const readAddress = (text: string): Address | undefined => {
  if (isIP(text) !== 0) return { host: text, port: defaultPort };
  const [, bracketed, plain, port = String(defaultPort)] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || Number(port) < 1 || Number(port) > 65_535) return undefined;
  return { host, port: Number(port) };
};

export const addressText = ({ host, port }: Address): string => `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;

export interface DialOptions {
  readonly region: string;
  /** PEM. */
  readonly authority: string;
  readonly credentials?: { readonly certificate: string; readonly key: string } | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** UplinkError with words; the signal's reason. */
export const dial = (address: Address, purpose: Purpose, options: DialOptions): Promise<TLSSocket> => {
  const { region, authority, credentials } = options;
  return connected(address, purpose, options.signal, {
    ca: authority,
    servername: managerName(region),
    ...(credentials && { cert: credentials.certificate, key: credentials.key }),
  });
};

/** The certificate of the authority that a manager shows, if it is the one of this fingerprint: nothing is sent there. */
export const authorityAt = async (address: Address, fingerprint: string, signal?: AbortSignal): Promise<string> => {
  const socket = await connected(address, 'enrol', signal, { rejectUnauthorized: false });
  try {
    for (let at = socket.getPeerX509Certificate(); at !== undefined; at = at.issuerCertificate)
      if (fingerprintOf(at.raw) === fingerprint) return toPem(at.raw, 'CERTIFICATE');
    throw new UplinkError(
      'UPLINK_REFUSED',
      `the manager at ${addressText(address)} is not of the region that the join key is for; is the address right?`,
    );
  } finally {
    socket.destroy();
  }
};

const connected = async (
  address: Address,
  purpose: Purpose,
  signal: AbortSignal | undefined,
  tls: ConnectionOptions,
): Promise<TLSSocket> => {
  signal?.throwIfAborted();
  const socket = connect({ ...address, ...tls, ALPNProtocols: alpnOf(purpose), minVersion: 'TLSv1.3' });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const late = setTimeout(() => reject(new Error('no answer in time')), connectWithinMs);
  const abort = (): void => reject(signal?.reason);
  signal?.addEventListener('abort', abort, { once: true });
  socket
    .once('secureConnect', resolve)
    .once('error', reject)
    .once('close', () => reject(new Error('it was closed')));
  try {
    await promise;
    socket.on('error', () => socket.destroy());
    return socket;
  } catch (error) {
    socket.on('error', () => {}).destroy();
    signal?.throwIfAborted();
    const { message } = error as Error;
    throw new UplinkError(
      'UPLINK_LOST',
      `connecting to the manager at ${addressText(address)} failed: ${message}`,
      error,
    );
  } finally {
    clearTimeout(late);
    signal?.removeEventListener('abort', abort);
  }
};
