/** The metadata server of one VM of this host: over its tree, at its sockets, with its token in the region's store. */
import { randomBytes } from 'node:crypto';
import type { FacadeName, TokenEvent, TokenState } from '../imds/index.ts';
import type { MetadataServerRecord, VmStatusRecord } from '../records/index.ts';
import type { Operation, Store } from '../store/index.ts';
import type { AuditRecord, AuditSink } from '../tree/index.ts';
import type { DeviceOwner, DevicePaths } from './device-paths.ts';
import { MetadataSockets } from './metadata-sockets.ts';
import { MetadataWay } from './metadata-way.ts';
import { TokenKeeper } from './token-keeper.ts';
import type { VmTree } from './vm-tree.ts';

/** Why a VM is compromised. */
export const tokenIncident =
  "somebody else asked for this boot's token before its agent had used it; look at the audit, then start it anew";

/** What is told of a token in the VM's status. */
export const tokenOf = ({ state, compromised, claimedAtMs, usedAtMs }: TokenState): VmStatusRecord['token'] => ({
  state: compromised === true ? 'compromised' : state,
  ...(claimedAtMs !== undefined && { claimedAtMs }),
  ...(usedAtMs !== undefined && { usedAtMs }),
});

/** No user of a guest has this id: the server knows of whoever asks for a token no more than the channel. */
const nobody = 0xffff_ffff;

/** A claim that was refused, as a record. */
export const tokenAudit = (vm: string, event: TokenEvent): AuditRecord => ({
  timeMs: event.event === 'compromised' ? event.atMs : Date.now(),
  vm,
  way: 'agent',
  operation: event.event === 'compromised' ? 'token-compromised' : 'token-refused',
  path: '',
  uid: nobody,
  gid: nobody,
  pid: 0,
  revision: 0,
  verdict: 'denied',
  rule: event.channel,
  errno: 'EEXIST',
  ...(event.event === 'token-refused' && event.dropped > 0 && { dropped: event.dropped }),
});

export interface VmMetadataOptions {
  readonly vm: { readonly name: string; readonly id: string };
  readonly tree: VmTree;
  readonly store: Store;
  readonly wish: MetadataServerRecord;
  /** The tap device of a VM that has one. */
  readonly tap: string | undefined;
  /** PEM. */
  readonly tls: { readonly cert: string; readonly key: string } | undefined;
  readonly paths: DevicePaths;
  readonly owner: DeviceOwner;
  readonly audit: AuditSink;
  /** The last boot that was committed. */
  readonly boot: string | undefined;
  /** Whether the audit has it. */
  readonly onToken: (event: TokenEvent) => boolean;
  readonly onTokenState: (state: TokenState) => void;
  /** As of `MetadataWay`. */
  readonly onVerifier: (hash: Uint8Array | undefined) => void;
  readonly onTrouble: (what: string) => void;
}

export class VmMetadata implements AsyncDisposable {
  readonly #way: MetadataWay;
  readonly #sockets: MetadataSockets;
  readonly #keeper: TokenKeeper;

  private constructor(way: MetadataWay, sockets: MetadataSockets, keeper: TokenKeeper) {
    this.#way = way;
    this.#sockets = sockets;
    this.#keeper = keeper;
  }

  /** StoreError, and what `listen` of `node:net` rejects with. */
  static async open(options: VmMetadataOptions): Promise<VmMetadata> {
    const { vm, tree, store, wish, audit, boot, onToken, onTokenState, onVerifier, onTrouble } = options;
    const keeper = new TokenKeeper(store, vm);
    const way = await MetadataWay.start({
      vm: vm.name,
      authority: tree.authority,
      audit,
      store: keeper,
      boot,
      allowImdsV1: wish.imdsV1,
      // What a newer version knew is not served by this one.
      facades: wish.facades as readonly FacadeName[] | undefined,
      onToken,
      onTokenState,
      onVerifier,
      onTrouble,
    });
    try {
      return new VmMetadata(way, await MetadataSockets.open({ ...options, server: way.server }), keeper);
    } catch (error) {
      await way[Symbol.asyncDispose]();
      throw error;
    }
  }

  get tokenState(): TokenState | undefined {
    return this.#way.tokenState;
  }

  /** As of `MetadataWay`. */
  tokenUsed(hash: Uint8Array): void {
    this.#way.tokenUsed(hash);
  }

  counters(): Readonly<Record<string, number>> {
    return this.#way.server.counters();
  }

  applied(revision: number, withinMs: number): Promise<boolean> {
    return this.#way.server.applied(revision, withinMs);
  }

  /** The audit can be written again. */
  auditAgain(): void {
    this.#way.tellIncident();
  }

  /** Before each boot, and where one goes on. Throws, in words for people, where the VM could not reach it. */
  beReached(): Promise<void> {
    return this.#sockets.listenOnTap();
  }

  /** Committed with the boot, so that no token of before is worth anything from then on. */
  ofBoot(boot: string): Operation {
    return this.#keeper.ofBoot(boot, randomBytes, this.#way.untold);
  }

  /** The boot is committed. StoreError. */
  boot(boot: string): Promise<void> {
    return this.#way.boot(boot);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#sockets[Symbol.asyncDispose](), this.#way[Symbol.asyncDispose]()]);
  }
}
