/**
 * A region's authority: it signs the certificates by which hosts and managers of the region know each other, and nothing
 * else trusts it. Its key is a record of the region's store, sealed as every value there. All keys are ECDSA on P-256.
 *
 * A certificate says what it is for: a manager's serves (extended key usage serverAuth, RFC 5280 §4.2.1.12) under a name
 * that every manager of the region has; a host's is a client's (clientAuth), and names the host in a URI.
 */
import { Buffer } from 'node:buffer';
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  randomBytes,
  type webcrypto,
  X509Certificate,
} from 'node:crypto';
import type { JsonGeneralNames, Pkcs10CertificateRequest } from '@peculiar/x509';
import * as z from 'zod';
import { decodeRecord, encodeRecord, vmNamePattern } from '../records/index.ts';
import type { Store } from '../store/index.ts';

/** Loaded by who makes certificates: every command would wait for it. */
const loadX509 = async () => {
  // What it is built on wants this to be there.
  await import('reflect-metadata');
  return import('@peculiar/x509');
};

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const authorityKey = 'authority';
const dayMs = 24 * 3_600_000;
const authorityDays = 20 * 365;
const managerDays = 30;
/** A host that was away for longer is enrolled anew. */
export const hostDays = 90;
/** Clocks of two machines differ. */
const backdatedMs = 3_600_000;

const AuthorityRecord = z.looseObject({
  /** PEM: the certificate, and its key in PKCS #8. */
  certificate: z.string(),
  key: z.string(),
  createdAtMs: z.int().nonnegative(),
});
type AuthorityRecord = z.infer<typeof AuthorityRecord>;

/** PEM. */
export interface Credentials {
  readonly certificate: string;
  readonly key: string;
}

/** The name that all managers of a region prove to have. */
export const managerName = (region: string): string => `managers.${region}.porthole`;
const hostUri = (region: string, host: string): string => `porthole://${region}/host/${host}`;
const hostUriPattern = /^URI:porthole:\/\/([a-z0-9-]{1,63})\/host\/([a-z0-9-]{1,63})$/;

/** The host that a certificate names, which was checked against the authority; undefined: none. */
export const hostOfAltName = (altName: string | undefined, region: string): string | undefined => {
  const [, of, host] = hostUriPattern.exec(altName ?? '') ?? [];
  return of === region && vmNamePattern.test(host!) ? host : undefined;
};

/** SHA-256 of a public key (SubjectPublicKeyInfo), in hex: what a certificate is known by, whenever it was made. */
export const keyIdOf = (spki: Uint8Array): string => createHash('sha256').update(spki).digest('hex');

export const newKeys = (): Promise<webcrypto.CryptoKeyPair> =>
  crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;

export const keyToPem = async (key: CryptoKey): Promise<string> =>
  toPem(new Uint8Array(await crypto.subtle.exportKey('pkcs8', key)), 'PRIVATE KEY');

export const keysFromPem = async (pem: string): Promise<webcrypto.CryptoKeyPair> => {
  const spki = createPublicKey(pem).export({ type: 'spki', format: 'der' });
  return {
    privateKey: await crypto.subtle.importKey(
      'pkcs8',
      createPrivateKey(pem).export({ type: 'pkcs8', format: 'der' }),
      algorithm,
      true,
      ['sign'],
    ),
    publicKey: await crypto.subtle.importKey('spki', spki, algorithm, true, ['verify']),
  };
};

/** A request for a certificate (PKCS #10, RFC 2986), as PEM, signed by the key that it is for. */
export const certificateRequest = async (keys: webcrypto.CryptoKeyPair): Promise<string> => {
  const { Pkcs10CertificateRequestGenerator } = await loadX509();
  return (await Pkcs10CertificateRequestGenerator.create({ name: [], keys, signingAlgorithm: algorithm })).toString(
    'pem',
  );
};

export class RequestError extends Error {
  readonly code = 'AUTHORITY_BAD_REQUEST';
}

export class Authority {
  readonly region: string;
  /** PEM. */
  readonly certificate: string;
  /** SHA-256 of the certificate: a host that is told of it knows the authority when it sees it. */
  readonly fingerprint: string;
  readonly #key: CryptoKey;
  readonly #wallMs: () => number;

  private constructor(region: string, record: AuthorityRecord, key: CryptoKey, wallMs: () => number) {
    this.region = region;
    this.certificate = record.certificate;
    this.fingerprint = fingerprintOf(new X509Certificate(record.certificate).raw);
    this.#key = key;
    this.#wallMs = wallMs;
  }

  /** The region's, which the first manager makes. StoreError. */
  static async open(store: Store, region: string, wallMs: () => number = Date.now): Promise<Authority> {
    for (;;) {
      const entry = await store.get(authorityKey);
      if (entry !== undefined) {
        const record = decodeRecord(AuthorityRecord, authorityKey, entry.value);
        return new Authority(region, record, (await keysFromPem(record.key)).privateKey, wallMs);
      }
      const value = encodeRecord(await newAuthority(region, wallMs()));
      await store.commit({
        conditions: [{ key: authorityKey, exists: false }],
        operations: [{ type: 'put', key: authorityKey, value }],
      });
    }
  }

  /** For this start of a manager. */
  async issueManager(): Promise<Credentials> {
    const keys = await newKeys();
    const name = managerName(this.region);
    const certificate = await this.#issue(keys.publicKey, managerDays, 'serverAuth', [{ type: 'dns', value: name }]);
    return { certificate, key: await keyToPem(keys.privateKey) };
  }

  /** RequestError: it is none, is not signed by its key, or that is of another kind. */
  async issueHost(host: string, request: string): Promise<{ readonly certificate: string; readonly keyId: string }> {
    const { publicKey } = await checkedRequest(request);
    const key = await publicKey.export(algorithm, ['verify']);
    const certificate = await this.#issue(key, hostDays, 'clientAuth', [
      { type: 'url', value: hostUri(this.region, host) },
    ]);
    return { certificate, keyId: keyIdOf(new Uint8Array(publicKey.rawData)) };
  }

  async #issue(
    publicKey: CryptoKey,
    days: number,
    usage: 'serverAuth' | 'clientAuth',
    names: JsonGeneralNames,
  ): Promise<string> {
    const now = this.#wallMs();
    const x509 = await loadX509();
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      issuer: new x509.X509Certificate(this.certificate).subjectName,
      subject: [],
      notBefore: new Date(now - backdatedMs),
      notAfter: new Date(now + days * dayMs),
      signingAlgorithm: algorithm,
      signingKey: this.#key,
      publicKey,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage[usage]], true),
        // Critical, for the subject is empty (RFC 5280 §4.2.1.6).
        new x509.SubjectAlternativeNameExtension(names, true),
      ],
    });
    return certificate.toString('pem');
  }
}

const newAuthority = async (region: string, nowMs: number): Promise<AuthorityRecord> => {
  const keys = await newKeys();
  const x509 = await loadX509();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: [{ CN: [`Porthole region ${region}`] }],
    notBefore: new Date(nowMs - backdatedMs),
    notAfter: new Date(nowMs + authorityDays * dayMs),
    signingAlgorithm: algorithm,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
    ],
  });
  return { certificate: certificate.toString('pem'), key: await keyToPem(keys.privateKey), createdAtMs: nowMs };
};

const checkedRequest = async (text: string): Promise<Pkcs10CertificateRequest> => {
  try {
    const { Pkcs10CertificateRequest } = await loadX509();
    const request = new Pkcs10CertificateRequest(text);
    const { name, namedCurve } = request.publicKey.algorithm as webcrypto.EcKeyAlgorithm;
    if (name === 'ECDSA' && namedCurve === 'P-256' && (await request.verify())) return request;
  } catch {
    // Said below.
  }
  throw new RequestError(
    'the request for a certificate is none of a host: its key must be ECDSA on P-256, and sign it',
  );
};

/** Positive, as RFC 5280 §4.1.2.2 has it. */
const serialNumber = (): string => `4${randomBytes(15).toString('hex')}f`;

export const fingerprintOf = (certificate: Uint8Array): string =>
  createHash('sha256').update(certificate).digest('base64url');

/** When half of a certificate's time is over, in milliseconds since the epoch. */
export const renewalOf = (certificate: string): number => {
  const { validFromDate, validToDate } = new X509Certificate(certificate);
  return (validFromDate.getTime() + validToDate.getTime()) / 2;
};

/** In milliseconds since the epoch. */
export const endOf = (certificate: string): number => new X509Certificate(certificate).validToDate.getTime();

export const toPem = (der: Uint8Array, what: 'CERTIFICATE' | 'PRIVATE KEY'): string =>
  `-----BEGIN ${what}-----\n${Buffer.from(der)
    .toString('base64')
    .replace(/(.{64})(?=.)/g, '$1\n')}\n-----END ${what}-----\n`;
