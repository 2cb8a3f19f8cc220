/** Session tokens of the EC2 façade: they say until when they hold, and are kept nowhere. Nothing to do with this boot's token. */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

export const sessionLimits = { minTtlSeconds: 1, maxTtlSeconds: 21_600 } as const;

const NONCE_BYTES = 8;
const TIME_BYTES = 8;
const MAC_BYTES = 26;
const TOKEN_BYTES = NONCE_BYTES + TIME_BYTES + MAC_BYTES;
/** Of 42 bytes, base64url makes 56 characters, as long as Amazon's. */
const TOKEN_CHARACTERS = 56;

/** Seconds in a header, or undefined for anything else than a whole number in the range. */
export const parseTtl = (header: string | undefined): number | undefined => {
  if (header === undefined || !/^\d{1,5}$/.test(header)) return undefined;
  const seconds = Number(header);
  return seconds >= sessionLimits.minTtlSeconds && seconds <= sessionLimits.maxTtlSeconds ? seconds : undefined;
};

export class SessionTokens {
  readonly #secret: () => Uint8Array;
  readonly #nowMs: () => number;

  /** `secret`: whoever has it can make tokens; with another one, all that were given out are worth nothing. */
  constructor(secret: () => Uint8Array, nowMs: () => number) {
    this.#secret = secret;
    this.#nowMs = nowMs;
  }

  issue(ttlSeconds: number): string {
    const head = Buffer.alloc(NONCE_BYTES + TIME_BYTES);
    randomBytes(NONCE_BYTES).copy(head);
    head.writeBigUInt64BE(BigInt(Math.floor(this.#nowMs()) + ttlSeconds * 1000), NONCE_BYTES);
    return Buffer.concat([head, this.#mac(head)]).toString('base64url');
  }

  isValid(token: string): boolean {
    if (token.length !== TOKEN_CHARACTERS || !/^[\w-]+$/.test(token)) return false;
    const bytes = Buffer.from(token, 'base64url');
    if (bytes.length !== TOKEN_BYTES) return false;
    const head = bytes.subarray(0, NONCE_BYTES + TIME_BYTES);
    if (!timingSafeEqual(this.#mac(head), bytes.subarray(head.length))) return false;
    return Number(head.readBigUInt64BE(NONCE_BYTES)) > this.#nowMs();
  }

  #mac(head: Uint8Array): Buffer {
    return createHmac('sha256', this.#secret())
      .update('porthole ec2 session\0')
      .update(head)
      .digest()
      .subarray(0, MAC_BYTES);
  }
}
