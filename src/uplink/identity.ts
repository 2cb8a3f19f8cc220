/** Who a host is to its region: files in its state directory, of which `key.pem` never leaves it. */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import { dirname, join } from 'node:path';
import * as z from 'zod';
import { syncToDisk } from '../store/index.ts';
import { certificateRequest, keysFromPem, keyToPem, newKeys } from './authority.ts';
import { Caller, endConnection } from './calls.ts';
import { type Address, authorityAt, dial } from './dial.ts';
import { enrolCalls, joinKeyPattern } from './enrolment.ts';
import { MalformedFrame } from './frames.ts';
import type { HostFacts } from './store-calls.ts';
import { UplinkError } from './uplink-error.ts';

export interface Identity {
  readonly region: string;
  readonly host: string;
  /** PEM. */
  readonly authority: string;
  readonly certificate: string;
  readonly key: string;
}

const IdentityRecord = z.looseObject({
  region: z.string(),
  host: z.string(),
  authority: z.string(),
  certificate: z.string(),
});
export const recordFile = 'identity.json';
const keyFile = 'key.pem';

/** Undefined: this host was not enrolled yet. */
export const readIdentity = (directory: string): Identity | undefined => {
  const file = join(directory, recordFile);
  if (!existsSync(file)) return undefined;
  const record = IdentityRecord.parse(JSON.parse(readFileSync(file, 'utf8')));
  return { ...record, key: readFileSync(join(directory, keyFile), 'utf8') };
};

const writeIdentity = (directory: string, { region, host, authority, certificate }: Identity): void => {
  const record = { region, host, authority, certificate };
  replaceFile(join(directory, recordFile), `${JSON.stringify(record, undefined, 2)}\n`);
};

const replaceFile = (file: string, text: string): void => {
  writeFileSync(`${file}.new`, text, { mode: 0o600, flush: true });
  renameSync(`${file}.new`, file);
  // Before the key is used: a join key is good for one.
  syncToDisk(dirname(file));
};

/** Its key: made before anything is asked, so that a lost answer can be asked for again. */
const ownKey = async (directory: string): Promise<string> => {
  const file = join(directory, keyFile);
  if (existsSync(file)) return readFileSync(file, 'utf8');
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const key = await keyToPem((await newKeys()).privateKey);
  replaceFile(file, key);
  return key;
};

export interface EnrolOptions {
  readonly managers: readonly Address[];
  readonly region: string;
  readonly host: string;
  readonly joinKey: string;
  readonly facts: HostFacts;
  /** Where the identity is kept. */
  readonly directory: string;
  readonly signal?: AbortSignal | undefined;
}

/** Asks one manager after the other. UplinkError with words: UPLINK_REFUSED, or UPLINK_LOST when none could be reached. */
export const enrol = async (options: EnrolOptions): Promise<Identity> => {
  const { managers, region, host, joinKey, facts, directory, signal } = options;
  const [, , , fingerprint] = joinKeyPattern.exec(joinKey) ?? [];
  if (fingerprint === undefined)
    throw new UplinkError('UPLINK_REFUSED', 'what was given as the join key is none; it begins with "phj_"');
  const key = await ownKey(directory);
  const request = await certificateRequest(await keysFromPem(key));
  let last: unknown;
  for (const manager of managers) {
    try {
      const authority = await authorityAt(manager, fingerprint, signal);
      const socket = await dial(manager, 'enrol', { region, authority, signal });
      const session = connectHttp2('https://manager.invalid', { createConnection: () => socket });
      session.on('error', () => {});
      try {
        const caller = new Caller(session, socket, enrolCalls);
        const { certificate } = await caller.ask('enrol', { joinKey, name: host, request, facts }, signal);
        const identity = { region, host, authority, certificate, key };
        writeIdentity(directory, identity);
        return identity;
      } finally {
        endConnection(socket);
      }
    } catch (error) {
      if (!(error instanceof MalformedFrame) && (error as UplinkError).code !== 'UPLINK_LOST') throw error;
      last = error;
    }
  }
  throw last;
};

/** The same with another certificate, which is kept. */
export const renewed = (directory: string, identity: Identity, certificate: string): Identity => {
  const next = { ...identity, certificate };
  writeIdentity(directory, next);
  return next;
};

export const renewalRequest = async ({ key }: Identity): Promise<string> => certificateRequest(await keysFromPem(key));
