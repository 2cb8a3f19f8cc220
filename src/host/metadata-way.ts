/** The metadata server of one tree, on the addresses that were asked for. */
import { randomBytes } from 'node:crypto';
import { unlinkSync } from 'node:fs';
import { isIP } from 'node:net';
import {
  type FacadeName,
  type Incident,
  type MetadataAddress,
  MetadataServer,
  TokenDesk,
  type TokenEvent,
  type TokenState,
  type TokenStore,
} from '../imds/index.ts';
import { type AuditSink, type Authority, type Mutation, Replica, type Settle, type Way } from '../tree/index.ts';
import { EIO } from '../wire/index.ts';
import { ServeError } from './serve-targets.ts';

/** Of its replica, among the holders of a tree. */
export const METADATA_HOLDER = 'metadata server';

/** Sequences count from 1 in each boot. */
const bootHolder = (boot: string | undefined): string => `${METADATA_HOLDER} ${boot}`;

/** As whom it changes a tree: what is remembered of them is needed until the next boot. */
export const metadataHolders = (boot: string | undefined): readonly string[] => [METADATA_HOLDER, bootHolder(boot)];

export interface MetadataWayOptions {
  readonly vm: string;
  readonly authority: Authority;
  readonly audit: AuditSink;
  readonly store: TokenStore;
  /** Id of the boot whose token is given out; undefined: none was told yet. */
  readonly boot: string | undefined;
  readonly tls?: { readonly cert: string; readonly key: string } | undefined;
  readonly allowImdsV1?: boolean | undefined;
  readonly facades?: readonly FacadeName[] | undefined;
  /** As `TokenDeskOptions.onEvent`. */
  readonly onToken: (event: TokenEvent) => boolean;
  /** SHA-256 of this boot's token, told when it may have changed; undefined while there is none. */
  readonly onVerifier?: ((hash: Uint8Array | undefined) => void) | undefined;
  /** How far the token is; told of each change. */
  readonly onTokenState?: ((state: TokenState) => void) | undefined;
  readonly onTrouble: (what: string) => void;
}

export class MetadataWay implements AsyncDisposable {
  readonly server: MetadataServer;
  readonly #options: MetadataWayOptions;
  readonly #tokens: TokenDesk;
  readonly #leave: () => void;
  readonly #sockets: string[] = [];
  #boot: string | undefined;

  private constructor(options: MetadataWayOptions, tokens: TokenDesk) {
    const { vm, authority, audit } = options;
    this.#options = options;
    this.#tokens = tokens;
    this.#boot = options.boot;
    const replica = new Replica();
    this.#leave = authority.subscribe(METADATA_HOLDER, (delta) => replica.apply(delta));
    this.server = new MetadataServer({
      vm,
      replica,
      audit,
      tokens,
      commit: (mutation, way, sequence, settle) => this.#commit(mutation, way, sequence, settle),
      clock: { wallMs: Date.now, monotonicMs: () => performance.now() },
      sessionSecret: () => tokens.derive('ec2 sessions') ?? noBoot,
      allowImdsV1: options.allowImdsV1,
      facades: options.facades,
      tls: options.tls,
      onError: (error) => options.onTrouble(`the metadata server: ${messageOf(error)}`),
    });
  }

  /** What the store rejects with. */
  static async start(options: MetadataWayOptions): Promise<MetadataWay> {
    const tokens: TokenDesk = new TokenDesk({
      store: options.store,
      onEvent: options.onToken,
      onChange: (state) => {
        options.onTokenState?.(state);
        tellVerifier(tokens, options);
      },
      randomBytes,
      monotonicMs: () => performance.now(),
      wallMs: Date.now,
    });
    if (options.boot !== undefined) await tokens.boot(options.boot);
    return new MetadataWay(options, tokens);
  }

  /** ServeError. Resolves with the port, or 0. */
  async listen(address: MetadataAddress): Promise<number> {
    try {
      const port = await this.server.listen(address);
      if ('unix' in address) this.#sockets.push(address.unix);
      return port;
    } catch (error) {
      const where = 'unix' in address ? address.unix : `${address.host}:${address.port}`;
      throw new ServeError(`listening on "${where}" failed: ${messageOf(error)}; give another address`);
    }
  }

  get tokenState(): TokenState | undefined {
    return this.#tokens.state;
  }

  get untold(): Incident | undefined {
    return this.#tokens.untold;
  }

  /** Events are taken again. */
  tellIncident(): void {
    this.#tokens.tellIncident().catch((error: unknown) => this.#options.onTrouble(messageOf(error)));
  }

  /** The VM was booted anew: tokens and streams of before are worth nothing. */
  async boot(boot: string): Promise<void> {
    const before = this.#bootHolder;
    this.#boot = boot;
    const ready = this.#tokens.boot(boot);
    tellVerifier(this.#tokens, this.#options);
    this.server.endStreams();
    await ready;
    if (before !== this.#bootHolder) await this.#options.authority.forgetHolder(before);
  }

  get #bootHolder(): string {
    return bootHolder(this.#boot);
  }

  /** The token with this SHA-256 was used by another way in. */
  tokenUsed(hash: Uint8Array): void {
    this.#tokens.used(Buffer.from(hash).toString('base64')).catch((error: unknown) => {
      this.#options.onTrouble(`that the token was used could not be kept: ${messageOf(error)}`);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    this.#leave();
    for (const path of this.#sockets) {
      try {
        unlinkSync(path);
      } catch {
        // node:net removes what it made; somebody else may have.
      }
    }
  }

  #commit(mutation: Mutation, way: Way, sequence: number | undefined, settle: Settle): void {
    const { authority, onTrouble } = this.#options;
    // Open files are the server's, whatever the boot.
    const holder = mutation.op === 'drop' ? METADATA_HOLDER : this.#bootHolder;
    try {
      authority.commit(mutation, way, holder, sequence, settle);
    } catch (error) {
      onTrouble(`a ${mutation.op} failed by a mistake in Porthole: ${messageOf(error)}`);
      settle({ errno: EIO, revision: 0, ino: 0 });
    }
  }
}

const tellVerifier = ({ verifier }: TokenDesk, { onVerifier }: MetadataWayOptions): void =>
  onVerifier?.(verifier?.tokenHash === undefined ? undefined : Buffer.from(verifier.tokenHash, 'base64'));

/** Between two boots: nobody has a token of it. */
const noBoot = randomBytes(32);

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** `unix:PATH`, `unix:PATH,privileged`, `HOST:PORT`, `[HOST]:PORT`. ServeError for anything else. */
export const parseAddress = (text: string): MetadataAddress => {
  if (text.startsWith('unix:')) {
    const privileged = text.endsWith(',privileged');
    const unix = text.slice('unix:'.length, privileged ? -',privileged'.length : undefined);
    if (unix === '') throw new ServeError(`"${text}" names no socket; write unix:PATH`);
    return { unix, privileged };
  }
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2] ?? '';
  const port = Number(match?.[3]);
  if (isIP(host) === 0 || !(port <= 65_535))
    throw new ServeError(`"${text}" is no address; write unix:PATH, 127.0.0.1:PORT or [::1]:PORT`);
  return { host, port };
};
