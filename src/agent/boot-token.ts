/** This boot's token: claimed once, with a nonce that is kept until there is an answer, so that a lost one does no harm. */
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { AgentError } from './agent-error.ts';
import type { Answered, ServerClient } from './server-client.ts';

const NONCE_BYTES = 32;
const ASK_MS = 5_000;
const RETRIES_MS = [50, 100, 250, 500, 1_000, 2_000] as const;

/** What has to outlive a process of the agent: whoever has it is believed about who asks. */
export interface KeptToken {
  readonly nonce: string;
  /** '' while it is not known. */
  readonly token: string;
}

export interface BootTokenOptions {
  readonly client: ServerClient;
  readonly kept?: KeptToken | undefined;
  /** Before a nonce is used, and when there is a token. */
  readonly keep: (kept: KeptToken) => void;
  /** Why there is no token yet; it is tried again. */
  readonly onWaiting: (why: string) => void;
}

export class BootToken {
  readonly #options: BootTokenOptions;
  readonly #stop = new AbortController();
  #kept: KeptToken;
  #claiming: Promise<string> | undefined;
  /** Whether the nonce may have arrived: then the token may have been given out to it. */
  #mayBeOurs: boolean;

  constructor(options: BootTokenOptions) {
    this.#options = options;
    this.#kept = options.kept ?? { nonce: '', token: '' };
    this.#mayBeOurs = this.#kept.nonce !== '';
  }

  get current(): string | undefined {
    return this.#kept.token === '' ? undefined : this.#kept.token;
  }

  /** Resolves with it, once there is one. Rejects with an AgentError `TOKEN_DENIED`. */
  get(): Promise<string> {
    const { current } = this;
    if (current !== undefined) return Promise.resolve(current);
    this.#claiming ??= this.#claim().finally(() => {
      this.#claiming = undefined;
    });
    return this.#claiming;
  }

  /** The server knows `token` no more: it was told of a new boot. */
  forget(token: string): void {
    if (token === this.#kept.token) this.#keep({ nonce: '', token: '' });
  }

  /** Claims no more. */
  stop(): void {
    this.#stop.abort();
  }

  /**
   * Ends it, so that a later agent of this boot can claim one; also one that was claimed and whose answer did not come. False:
   * it is not known to have ended.
   */
  async handBack(): Promise<boolean> {
    this.stop();
    await this.#claiming?.catch(() => {});
    try {
      if (this.current === undefined && this.#mayBeOurs) await this.#ask();
      const { current: token } = this;
      if (token === undefined) return true;
      const { status } = await this.#options.client.ask('POST', 'token/return', {}, { token, withinMs: ASK_MS });
      if (status !== 200) return false;
      this.#keep({ nonce: '', token: '' });
      return true;
    } catch (error) {
      return error instanceof AgentError && isRefusal(error);
    }
  }

  async #claim(): Promise<string> {
    if (this.#kept.nonce === '') this.#keep({ nonce: randomBytes(NONCE_BYTES).toString('base64url'), token: '' });
    for (let attempt = 0; ; attempt++) {
      if (this.#stop.signal.aborted) throw new AgentError('SERVER_AWAY', 'the agent ends');
      try {
        return await this.#ask();
      } catch (error) {
        if (error instanceof AgentError && isRefusal(error)) throw error;
        this.#options.onWaiting(error instanceof Error ? error.message : String(error));
      }
      const { signal } = this.#stop;
      await pause(RETRIES_MS[Math.min(attempt, RETRIES_MS.length - 1)], undefined, { signal }).catch(() => {});
    }
  }

  /** Asks once, with the nonce that is kept. */
  async #ask(): Promise<string> {
    const { nonce } = this.#kept;
    const wasOurs = this.#mayBeOurs;
    this.#mayBeOurs = true;
    let answered: Answered;
    try {
      const { client } = this.#options;
      answered = await client.ask('POST', 'token', { nonce }, { withinMs: ASK_MS, privileged: true });
    } catch (error) {
      if (error instanceof AgentError && error.code === 'SERVER_UNREACHED') this.#mayBeOurs = wasOurs;
      throw error;
    }
    const { status, body } = answered;
    const token = status === 200 ? (body as { readonly token?: unknown } | undefined)?.token : undefined;
    if (typeof token === 'string' && /^[\w-]{1,128}$/.test(token)) {
      this.#keep({ nonce, token });
      return token;
    }
    if (status === 409) throw new AgentError('TOKEN_DENIED', "the server has given this boot's token to somebody else");
    if (status === 403)
      throw new AgentError('ADDRESS', 'the server gives no token by this way in: it is not for root alone');
    // Said before anything is given out: no boot that was told of, or too much asked.
    if (status === 429 || status === 503) this.#mayBeOurs = wasOurs;
    throw new AgentError('SERVER_AWAY', `the server answered the claim of a token with ${status}`);
  }

  #keep(kept: KeptToken): void {
    this.#options.keep(kept);
    this.#kept = kept;
    if (kept.nonce === '') this.#mayBeOurs = false;
  }
}

/** The server has given out nothing to this nonce, and will not. */
const isRefusal = ({ code }: AgentError): boolean => code === 'TOKEN_DENIED' || code === 'ADDRESS';
