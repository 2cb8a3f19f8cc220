/**
 * This boot's token, given out once. Whoever has it is believed about who asks, so only what the guest's root may open is
 * asked for it, and a second claimant before its first use means that somebody else was faster than the agent.
 *
 * What is kept can't be turned into the token: the token is an HMAC of the claimant's nonce under the boot's secret, and of
 * the nonce only a hash is kept. Whoever knows the nonce can be answered again; whoever has the store can't.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { TokenBucket } from '../tree/index.ts';

/** What is kept of a boot. Base64 for bytes. */
export interface TokenRecord {
  readonly boot: string;
  /** 32 bytes, made for this boot. */
  readonly secret: string;
  /**
   * `unclaimed`: the next claim gets a token. `claimed`: it was given out and not used. `used`. `returned`: it was handed
   * back, which allows one more claim.
   */
  readonly state: 'unclaimed' | 'claimed' | 'used' | 'returned';
  /** SHA-256 of the nonce and of the token that were last; '' while unclaimed. */
  readonly nonceHash: string;
  readonly tokenHash: string;
  /** Counts tokens of this boot. */
  readonly issue: number;
  /** Milliseconds since 1970: when it was given out last, and first used. */
  readonly claimedAtMs?: number | undefined;
  readonly usedAtMs?: number | undefined;
  /** Somebody was refused before its first use: nobody has a token in this boot any more. */
  readonly compromised?: boolean | undefined;
  /** Of this boot or the one before, until it was told. */
  readonly untold?: Incident | undefined;
}

/** Who was refused before the first use came over `channel`; milliseconds since 1970. */
export interface Incident {
  readonly boot: string;
  readonly channel: string;
  readonly atMs: number;
}

/** What may be told of a boot's token. */
export type TokenState = Pick<TokenRecord, 'boot' | 'state' | 'claimedAtMs' | 'usedAtMs' | 'compromised'>;

/**
 * What checks a token without knowing it: the SHA-256 of its text, base64. Undefined while there is none. Whoever has checked one
 * by it says so (`TokenDesk.used`).
 */
export interface TokenVerifier {
  readonly boot: string;
  readonly tokenHash: string | undefined;
}

/** Keeps the record of one VM. */
export interface TokenStore {
  /** What was last saved, or undefined. */
  load(): Promise<TokenRecord | undefined>;
  /** Resolves once it outlives this machine's power. */
  save(record: TokenRecord): Promise<void>;
}

export type TokenEvent =
  /** Refused before the token's first use: somebody was faster. The VM is to be stopped. */
  | ({ readonly event: 'compromised' } & Incident)
  /** Refused after it. `dropped`: so many more since the last of these. */
  | { readonly event: 'token-refused'; readonly boot: string; readonly channel: string; readonly dropped: number };

export type Claim =
  | { readonly token: string }
  | { readonly refused: 'taken' | 'not-privileged' | 'malformed' | 'no-boot' };

export interface TokenDeskOptions {
  readonly store: TokenStore;
  /** False: it was not taken. An incident is told again, at the next daemon's start and by `tellIncident`, until it is. */
  readonly onEvent: (event: TokenEvent) => boolean;
  /** Told of each change that is kept, and of a new boot. */
  readonly onChange?: ((state: TokenState) => void) | undefined;
  readonly randomBytes: (count: number) => Uint8Array;
  readonly monotonicMs: () => number;
  /** Milliseconds since 1970. */
  readonly wallMs: () => number;
}

/** What a claimant chooses: 128 bits or more, as base64url or hexadecimal digits. */
const NONCE = /^[\w-]{22,128}$/;
/** 256 bits as base64url. */
const TOKEN = /^[\w-]{43}$/;
const SECRET_BYTES = 32;
/** Events of refusals after first use. */
const refusals = { burst: 5, perSecond: 0.1 } as const;

/** Of a boot whose token nobody has asked for. `untold`: of the boot before. */
export const newTokenRecord = (
  boot: string,
  randomBytes: (count: number) => Uint8Array,
  untold?: Incident,
): TokenRecord => ({
  boot,
  secret: Buffer.from(randomBytes(SECRET_BYTES)).toString('base64'),
  state: 'unclaimed',
  nonceHash: '',
  tokenHash: '',
  issue: 0,
  ...(untold && { untold }),
});

const sha256 = (text: string): Buffer => createHash('sha256').update(text).digest();

const sameHash = (text: string, hash: string): boolean => {
  const kept = Buffer.from(hash, 'base64');
  const given = sha256(text);
  return kept.length === given.length && timingSafeEqual(kept, given);
};

/** One for each VM. Claims, first uses and returns come one after the other, and each is kept before it is answered. */
export class TokenDesk {
  readonly #options: TokenDeskOptions;
  readonly #refusals: TokenBucket;
  #record: TokenRecord | undefined;
  /** The boot that was told last. */
  #boot: string | undefined;
  #dropped = 0;
  #tail: Promise<unknown> = Promise.resolve();

  constructor(options: TokenDeskOptions) {
    this.#options = options;
    this.#refusals = new TokenBucket(refusals, options.monotonicMs());
  }

  /** The id of the boot whose token this is; undefined before `boot`. */
  get currentBoot(): string | undefined {
    return this.#record?.boot;
  }

  /** Whether this boot's token was ever used. */
  get wasUsed(): boolean {
    return this.#record?.state === 'used' || this.#record?.state === 'returned';
  }

  get state(): TokenState | undefined {
    return this.#record && stateOf(this.#record);
  }

  /** What is to be told yet, whatever boots meanwhile. */
  get untold(): Incident | undefined {
    return this.#record?.untold;
  }

  /** For whoever checks this boot's tokens elsewhere; another one after each `onChange`. */
  get verifier(): TokenVerifier | undefined {
    const record = this.#record;
    return record && { boot: record.boot, tokenHash: holds(record) ? record.tokenHash : undefined };
  }

  /**
   * Takes up what is kept of this boot, or, of another boot, begins anew: every token of before is worth nothing from the
   * moment this is called. Rejects with what the store rejects with; then there is no token, and `boot` may be called again.
   */
  boot(boot: string): Promise<void> {
    this.#boot = boot;
    if (this.#record?.boot !== boot) this.#record = undefined;
    return this.#next(async () => {
      // Another was told while this one waited.
      if (this.#boot !== boot || this.#record !== undefined) return;
      const kept = await this.#options.store.load();
      if (this.#boot !== boot) return;
      try {
        if (kept?.boot === boot) this.#take(kept);
        else await this.#keep(newTokenRecord(boot, this.#options.randomBytes, kept?.untold));
        await this.#tellIncident();
      } catch (error) {
        if (this.#boot === boot) throw error;
      }
    });
  }

  /**
   * `privileged`: the channel is one that takes root in the guest. `channel` names it, for the event. Rejects when it can't be
   * kept: then nothing was given out, and the same or another claimant may ask again.
   */
  claim(nonce: string, channel: string, privileged: boolean): Promise<Claim> {
    if (!privileged) return Promise.resolve({ refused: 'not-privileged' });
    if (!NONCE.test(nonce)) return Promise.resolve({ refused: 'malformed' });
    return this.#next(async () => {
      const record = this.#record;
      if (record === undefined) return { refused: 'no-boot' };
      if (record.state === 'claimed' && !record.compromised && sameHash(nonce, record.nonceHash))
        return { token: tokenOf(record, nonce) };
      if (record.compromised || record.state === 'claimed' || record.state === 'used') {
        await this.#refuse(record, channel);
        return { refused: 'taken' };
      }
      const issued = { ...record, issue: record.issue + 1 };
      const token = tokenOf(issued, nonce);
      const nonceHash = sha256(nonce).toString('base64');
      const tokenHash = sha256(token).toString('base64');
      const claimedAtMs = this.#options.wallMs();
      await this.#keep({ ...issued, state: 'claimed', nonceHash, tokenHash, claimedAtMs });
      return { token };
    });
  }

  /** Whether a token is this boot's. Its first use is kept before this answers; rejects when it can't be. */
  async verify(token: string): Promise<boolean> {
    if (!this.#isToken(token)) return false;
    if (this.#record!.state === 'used') return true;
    return this.#next(async () => {
      if (!this.#isToken(token)) return false;
      await this.#use(this.#record!);
      return true;
    });
  }

  /** The token with this hash was shown to whoever checks by `verifier`. Rejects when that can't be kept. */
  used(tokenHash: string): Promise<void> {
    return this.#next(async () => {
      if (this.#record !== undefined && this.verifier?.tokenHash === tokenHash) await this.#use(this.#record);
    });
  }

  /** Ends the token, and allows one more claim. True also for the token that was handed back last: its answer may have been lost. */
  handBack(token: string): Promise<boolean> {
    return this.#next(async () => {
      const record = this.#record;
      if (record === undefined || !TOKEN.test(token) || record.tokenHash === '') return false;
      if (!sameHash(token, record.tokenHash)) return false;
      if (record.state !== 'returned') await this.#keep({ ...record, state: 'returned' });
      return true;
    });
  }

  /** Events are taken again. */
  tellIncident(): Promise<void> {
    return this.#next(() => this.#tellIncident());
  }

  async #tellIncident(): Promise<void> {
    const record = this.#record;
    if (record?.untold === undefined) return;
    if (!this.#options.onEvent({ event: 'compromised', ...record.untold })) return;
    const { untold: _, ...told } = record;
    this.#record = told;
    // Were that not kept it would be told twice, rather than never.
    await this.#keep(told).catch(() => {});
  }

  /** 32 bytes that are this boot's and `label`'s alone, the same after a restart of this process. */
  derive(label: string): Uint8Array | undefined {
    const record = this.#record;
    if (record === undefined) return undefined;
    return createHmac('sha256', Buffer.from(record.secret, 'base64')).update(`derived\0${label}`).digest();
  }

  async #use(record: TokenRecord): Promise<void> {
    if (record.state !== 'claimed') return;
    const { usedAtMs = this.#options.wallMs() } = record;
    await this.#keep({ ...record, state: 'used', usedAtMs });
  }

  #isToken(token: string): boolean {
    const record = this.#record;
    return record !== undefined && holds(record) && TOKEN.test(token) && sameHash(token, record.tokenHash);
  }

  /** Rejects when an incident can't be kept: then it was not told either, and whoever was refused asks again. */
  async #refuse(record: TokenRecord, channel: string): Promise<void> {
    const { boot } = record;
    if (record.state === 'claimed' && !record.compromised) {
      await this.#keep({ ...record, compromised: true, untold: { boot, channel, atMs: this.#options.wallMs() } });
      await this.#tellIncident();
      return;
    }
    if (!this.#refusals.has(this.#options.monotonicMs())) {
      this.#dropped++;
      return;
    }
    this.#refusals.take();
    const dropped = this.#dropped;
    this.#dropped = 0;
    if (!this.#options.onEvent({ event: 'token-refused', boot, channel, dropped })) this.#dropped += dropped + 1;
  }

  async #keep(record: TokenRecord): Promise<void> {
    await this.#options.store.save(record);
    // Another boot was told while this was being kept: nobody is answered for this one any more.
    if (this.#boot !== record.boot) throw new Error('the machine was booted anew meanwhile');
    this.#take(record);
  }

  #take(record: TokenRecord): void {
    this.#record = record;
    this.#options.onChange?.(stateOf(record));
  }

  #next<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(run);
    this.#tail = result.catch(() => {});
    return result;
  }
}

const stateOf = ({ boot, state, claimedAtMs, usedAtMs, compromised }: TokenRecord): TokenState => ({
  boot,
  state,
  claimedAtMs,
  usedAtMs,
  compromised,
});

/** Whether the token that was given out last is worth anything. */
const holds = ({ state, compromised }: TokenRecord): boolean =>
  compromised !== true && (state === 'claimed' || state === 'used');

const tokenOf = ({ secret, boot, issue }: TokenRecord, nonce: string): string =>
  createHmac('sha256', Buffer.from(secret, 'base64')).update(`token\0${boot}\0${issue}\0${nonce}`).digest('base64url');

/** Keeps it for the life of this process. */
export const tokenStoreInMemory = (): TokenStore => {
  let kept: TokenRecord | undefined;
  return {
    load: () => Promise.resolve(kept),
    save: (record) => {
      kept = record;
      return Promise.resolve();
    },
  };
};
