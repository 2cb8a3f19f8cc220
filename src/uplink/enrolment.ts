/**
 * How a host becomes one of a region: with a key that an administrator made for it (`phj_ID_SECRET_FINGERPRINT`), good for
 * one host and for a while. The host makes a key pair of its own, whose private key never leaves it, and gets a certificate.
 * The fingerprint is that of the region's authority, so that the host sends the rest to nobody else.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import * as z from 'zod';
import { decodeRecord, encodeRecord, HostRecord, hostKey, ownHost, vmNamePattern } from '../records/index.ts';
import {
  type Condition,
  type Entry,
  keyText,
  type Operation,
  type Page,
  prefixRange,
  type Store,
} from '../store/index.ts';
import { type Authority, RequestError } from './authority.ts';
import { HostFacts } from './store-calls.ts';
import { UplinkError } from './uplink-error.ts';

const prefix = 'hosttoken/';
export const joinKeyPattern = /^phj_([0-9a-f]{16})_([A-Za-z0-9_-]{43})_([A-Za-z0-9_-]{43})$/;

const JoinRecord = z.looseObject({
  id: z.string(),
  /** SHA-256 of the secret, in hex. */
  secretHash: z.string(),
  /** The only name that it is good for. */
  host: z.string().optional(),
  expiresAtMs: z.int().nonnegative(),
  createdAtMs: z.int().nonnegative(),
  /** The key id of the host that used it: the same one gets its certificate again, when the answer was lost. */
  usedBy: z.string().optional(),
});
type JoinRecord = z.infer<typeof JoinRecord>;

export interface JoinKey {
  readonly id: string;
  readonly host: string | undefined;
  readonly expiresAtMs: number;
  readonly createdAtMs: number;
  readonly isUsed: boolean;
}

export const enrolCalls = {
  enrol: {
    args: z.strictObject({
      joinKey: z.string().max(256),
      name: z.string().max(64),
      request: z.string().max(16 * 1024),
      facts: HostFacts,
    }),
    answer: z.object({ region: z.string(), host: z.string(), certificate: z.string() }),
  },
} as const;
export type EnrolCalls = typeof enrolCalls;

export interface EnrolmentOptions {
  readonly region: Store;
  readonly authority: Authority;
  readonly wallMs?: () => number;
}

export class Enrolment {
  readonly #region: Store;
  readonly #authority: Authority;
  readonly #wallMs: () => number;

  constructor({ region, authority, wallMs = Date.now }: EnrolmentOptions) {
    this.#region = region;
    this.#authority = authority;
    this.#wallMs = wallMs;
  }

  /** The text is not kept. */
  newKey(host: string | undefined, expiresInSeconds: number): { key: JoinKey; text: string; operation: Operation } {
    const id = randomBytes(8).toString('hex');
    const secret = randomBytes(32).toString('base64url');
    const createdAtMs = this.#wallMs();
    const record: JoinRecord = {
      id,
      secretHash: hashOf(secret).toString('hex'),
      ...(host !== undefined && { host }),
      expiresAtMs: createdAtMs + expiresInSeconds * 1000,
      createdAtMs,
    };
    return {
      key: factsOf(record),
      text: `phj_${id}_${secret}_${this.#authority.fingerprint}`,
      operation: { type: 'put', key: prefix + id, value: encodeRecord(record) },
    };
  }

  async keys(): Promise<JoinKey[]> {
    const found: JoinKey[] = [];
    const range = prefixRange(prefix);
    for (let { start } = range, more = true; more; ) {
      const page: Page = await this.#region.range({ ...range, start });
      for (const entry of page.entries) found.push(factsOf(decodeJoin(entry)));
      more = page.next !== undefined;
      if (page.next !== undefined) start = page.next;
    }
    return found;
  }

  /** What takes a key back; the condition does not hold when there is none. */
  removal(id: string): { readonly conditions: readonly Condition[]; readonly operations: readonly Operation[] } {
    const key = prefix + id;
    return { conditions: [{ key, exists: true }], operations: [{ type: 'delete', key }] };
  }

  /** Host and certificate at once, or neither. UPLINK_REFUSED, in words for who started the host. */
  async enrol(joinKey: string, name: string, request: string, facts: HostFacts): Promise<{ certificate: string }> {
    const { entry, record } = await this.#checked(joinKey, name);
    const { certificate, keyId } = await this.#issue(name, request);
    if (record.usedBy !== undefined) {
      if (record.usedBy !== keyId) throw refused('this join key has been used; make another');
      const known = await this.#region.get(hostKey(name));
      if (known !== undefined && decodeRecord(HostRecord, hostKey(name), known.value).certificateId === keyId)
        return { certificate };
      throw refused(`the host "${name}" was removed since; make another join key`);
    }
    const host: HostRecord = {
      name,
      id: `h-${randomBytes(8).toString('hex')}`,
      labels: {},
      cordoned: false,
      draining: false,
      certificateId: keyId,
      addedAtMs: this.#wallMs(),
      ...(facts.capacity && { capacity: facts.capacity }),
      ...(facts.uids && { uids: facts.uids }),
    };
    const outcome = await this.#region.commit({
      conditions: [
        { key: entry.key, modRevision: entry.modRevision },
        { key: hostKey(name), exists: false },
      ],
      operations: [
        { type: 'put', key: entry.key, value: encodeRecord({ ...record, usedBy: keyId }) },
        { type: 'put', key: hostKey(name), value: encodeRecord(host) },
      ],
    });
    if (outcome.committed) return { certificate };
    // Also by an earlier request of the same host, which came in meanwhile.
    if (outcome.unmet.includes(0)) return this.enrol(joinKey, name, request, facts);
    throw refused(`there is a host "${name}" already; give another name, or remove that one: porthole host rm ${name}`);
  }

  /** Of a host that is connected by a certificate which is its own now: for the same key. UPLINK_REFUSED. */
  async renew(host: HostRecord, request: string): Promise<string> {
    const { certificate, keyId } = await this.#issue(host.name, request);
    if (keyId !== host.certificateId)
      throw refused(`a certificate of host "${host.name}" is renewed for its key alone; to change that, enrol it anew`);
    return certificate;
  }

  async #checked(text: string, name: string): Promise<{ entry: Entry; record: JoinRecord }> {
    if (!vmNamePattern.test(name) || name === ownHost)
      throw refused(`"${name}" cannot be the name of a host; use a-z, 0-9 and "-", and not "${ownHost}"`);
    const [, id, secret] = joinKeyPattern.exec(text) ?? [];
    const entry = id === undefined ? undefined : await this.#region.get(prefix + id);
    const record = entry && decodeJoin(entry);
    const isRight = timingSafeEqual(hashOf(secret ?? ''), Buffer.from(record?.secretHash ?? nobody, 'hex'));
    if (entry === undefined || record === undefined || !isRight)
      throw refused('this join key is none, or was taken back; make another: porthole host token');
    if (this.#wallMs() >= record.expiresAtMs)
      throw refused('this join key is too old; make another: porthole host token');
    if (record.host !== undefined && record.host !== name)
      throw refused(`this join key is for a host "${record.host}" alone, and not for "${name}"`);
    return { entry, record };
  }

  async #issue(name: string, request: string): Promise<{ readonly certificate: string; readonly keyId: string }> {
    try {
      return await this.#authority.issueHost(name, request);
    } catch (error) {
      throw error instanceof RequestError ? refused(error.message) : error;
    }
  }
}

const hashOf = (secret: string): Buffer => createHash('sha256').update(secret).digest();
const nobody = hashOf('nobody').toString('hex');
const decodeJoin = ({ key, value }: Entry): JoinRecord => decodeRecord(JoinRecord, keyText(key), value);
const factsOf = ({ id, host, expiresAtMs, createdAtMs, usedBy }: JoinRecord): JoinKey => ({
  id,
  host,
  expiresAtMs,
  createdAtMs,
  isUsed: usedBy !== undefined,
});

const refused = (message: string): UplinkError => new UplinkError('UPLINK_REFUSED', message);
