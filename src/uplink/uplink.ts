/**
 * A host's connections to its region's managers: by one it has the region's store, whichever manager that leads to; by one
 * to each manager it is asked. They are made again for as long as it runs.
 */
import { connect as connectHttp2, performServerHandshake } from 'node:http2';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import type { BlobBytes, BlobOptions, HostPort } from '../records/index.ts';
import { endOf, renewalOf } from './authority.ts';
import { answerCalls, Caller, endConnection, keepAlive, sessionOptions } from './calls.ts';
import { type Address, addressText, dial } from './dial.ts';
import { hostCalls } from './host-calls.ts';
import { hostHandlers } from './host-service.ts';
import { type Identity, recordFile, renewalRequest, renewed } from './identity.ts';
import { heartbeat } from './protocols.ts';
import { remoteBlob } from './remote-images.ts';
import { RemoteStore, type RemoteStoreOptions } from './remote-store.ts';
import { type HostFacts, type StoreCalls, storeCalls } from './store-calls.ts';
import { UplinkError } from './uplink-error.ts';

export interface LeaseHolder {
  /** This boot of this machine. */
  readonly machine: string;
  /** A clock that goes on while the machine is suspended. */
  readonly nowMs: () => number;
  /** `fromMs`: before it was asked for. It is granted for `seconds` from then on at least. */
  readonly onLease: (lease: { readonly id: string; readonly fromMs: number; readonly seconds: number }) => void;
}

export interface UplinkOptions extends RemoteStoreOptions {
  readonly managers: readonly Address[];
  readonly identity: Identity;
  /** Where the identity is kept. */
  readonly directory: string;
  readonly facts: HostFacts;
  /** Keeps a lease, of which it is told whenever it goes on for longer. */
  readonly lease?: LeaseHolder | undefined;
  /** It has the store's connection, through which manager; or has lost it, and why. Told when that changes. */
  readonly onConnection: (is: { readonly manager: string } | { readonly lost: string }) => void;
  /** The store is closed: another process has this certificate, or the region's store was restored. */
  readonly onEnd: (why: string) => void;
  readonly onTrouble: (what: string) => void;
}

const firstPauseMs = 100;
const longestPauseMs = 4_000;
/** In one lease it is asked for so often. */
const askedInOneLease = 4;
const askAgainMs = 500;
const lookAtCertificateMs = 3_600_000;

export class Uplink implements AsyncDisposable {
  readonly store: RemoteStore;
  readonly #options: UplinkOptions;
  #identity: Identity;
  readonly #stop = new AbortController();
  readonly #sockets = new Set<TLSSocket>();
  #loops: Promise<unknown>[] = [];
  #caller: Caller<StoreCalls> | undefined;
  readonly #renewal: NodeJS.Timeout;
  #told = '';

  private constructor(options: UplinkOptions) {
    this.#options = options;
    this.#identity = options.identity;
    this.store = new RemoteStore(options);
    this.#renewal = setInterval(() => void this.#renew(), lookAtCertificateMs).unref();
  }

  /** Resolves when a manager has answered. The signal's reason. */
  static async open(options: UplinkOptions, signal: AbortSignal): Promise<Uplink> {
    const uplink = new Uplink(options);
    const first = Promise.withResolvers<void>();
    const abort = (): void => first.reject(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    uplink.#loops.push(uplink.#holdStore(() => first.resolve()));
    try {
      signal.throwIfAborted();
      await first.promise;
      return uplink;
    } catch (error) {
      await uplink.close();
      throw error;
    } finally {
      signal.removeEventListener('abort', abort);
    }
  }

  /** From now on managers can ask it, and its store says when none of them can be reached. */
  serve(host: HostPort): void {
    this.store.hurry();
    for (const manager of this.#options.managers) this.#loops.push(this.#answer(manager, host));
  }

  /** As `blob` of `ImageBytes`, of the image of a VM of this host. HOST_UNAVAILABLE where asking again may help. */
  imageBlob(vm: string, digest: string, options: BlobOptions): Promise<BlobBytes> {
    return remoteBlob(this.#caller, { vm, digest }, options);
  }

  async close(): Promise<void> {
    this.#stop.abort();
    clearInterval(this.#renewal);
    this.store.close();
    for (const socket of this.#sockets) endConnection(socket);
    await Promise.all(this.#loops);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #holdStore(onFirst: () => void): Promise<void> {
    const { managers, facts, onEnd } = this.#options;
    let turn = Math.floor(Math.random() * managers.length);
    await this.#again(async () => {
      this.#mustBeValid();
      const manager = managers[turn++ % managers.length]!;
      const socket = await dial(manager, 'store', this.#dialing);
      const session = connectHttp2('https://manager.invalid', { ...sessionOptions, createConnection: () => socket });
      const ended = new Promise<void>((resolve) => void session.once('close', () => resolve()));
      session.on('error', () => {});
      this.#sockets.add(socket);
      try {
        keepAlive(session, socket, heartbeat);
        const caller = new Caller(session, socket, storeCalls);
        const hello = await caller.ask('hello', { instance: this.store.instance, facts }, this.#stop.signal);
        try {
          this.store.connect(caller, hello);
        } catch (error) {
          if (!this.#stop.signal.aborted) onEnd((error as Error).message);
          this.#stop.abort();
          return;
        }
        this.#caller = caller;
        this.#tell({ manager: addressText(manager) });
        void this.#renew();
        void this.#keepLease(caller);
        onFirst();
        await ended;
        this.store.disconnect(caller);
        this.#caller = undefined;
        this.#tell({ lost: `the connection to the manager at ${addressText(manager)} ended` });
      } finally {
        this.#sockets.delete(socket);
        endConnection(socket);
      }
    });
  }

  /** For as long as the connection holds. */
  async #keepLease(caller: Caller<StoreCalls>): Promise<void> {
    const { lease, onTrouble } = this.#options;
    const { signal } = this.#stop;
    if (lease === undefined) return;
    for (let told = ''; !signal.aborted && this.#caller === caller; ) {
      let waitMs = askAgainMs;
      try {
        const fromMs = lease.nowMs();
        const { id, seconds } = await caller.ask('lease', { machine: lease.machine }, signal);
        lease.onLease({ id, fromMs, seconds });
        waitMs = (seconds * 1000) / askedInOneLease;
      } catch (error) {
        if (signal.aborted || this.#caller !== caller) return;
        const { message } = error as Error;
        if (message !== told) onTrouble(`the host's lease was not granted, asking again: ${message}`);
        told = message;
      }
      await pause(waitMs, undefined, { signal, ref: false }).catch(() => {});
    }
  }

  async #answer(manager: Address, host: HostPort): Promise<void> {
    const { onTrouble } = this.#options;
    await this.#again(async () => {
      const socket = await dial(manager, 'calls', this.#dialing);
      const session = performServerHandshake(socket, sessionOptions);
      const ended = new Promise<void>((resolve) => void session.once('close', () => resolve()));
      session.on('error', () => {});
      this.#sockets.add(socket);
      keepAlive(session, socket, heartbeat);
      answerCalls(session, {
        table: hostCalls,
        handlers: hostHandlers(host),
        onBug: (call, error) => onTrouble(`"${call}" of a manager failed: ${(error as Error).stack}`),
      });
      await ended;
      this.#sockets.delete(socket);
    }, false);
  }

  /** Until the end: soon after it held for a while, else later and later. */
  async #again(connect: () => Promise<void>, tells = true): Promise<void> {
    const { signal } = this.#stop;
    let waitMs = firstPauseMs;
    while (!signal.aborted) {
      const beganAtMs = performance.now();
      try {
        await connect();
      } catch (error) {
        if (signal.aborted) return;
        if (tells) this.#tell({ lost: (error as Error).message });
      }
      if (performance.now() - beganAtMs > longestPauseMs) waitMs = firstPauseMs;
      // Not all hosts of a region at once.
      await pause(waitMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
      waitMs = Math.min(longestPauseMs, waitMs * 2);
    }
  }

  /** A manager would end the connection and not say why. */
  #mustBeValid(): void {
    const { certificate, host } = this.#identity;
    const endMs = endOf(certificate);
    if (Date.now() < endMs) return;
    const file = join(this.#options.directory, recordFile);
    throw new UplinkError(
      'UPLINK_REFUSED',
      `the certificate of host "${host}" ended at ${new Date(endMs).toISOString()}, for it was away too long (or this machine's clock is wrong); to enrol it anew: "porthole host rm ${host}" and "porthole host token" at a manager, then remove "${file}" here and start it with --join-key`,
    );
  }

  get #dialing() {
    const { region, authority, certificate, key } = this.#identity;
    return { region, authority, credentials: { certificate, key }, signal: this.#stop.signal };
  }

  #tell(is: Parameters<UplinkOptions['onConnection']>[0]): void {
    const told = JSON.stringify(is);
    if (told === this.#told || this.#stop.signal.aborted) return;
    this.#told = told;
    this.#options.onConnection(is);
  }

  /** Has the certificate go on for longer when half of its time is over. Connections that are there stay. */
  async #renew(): Promise<void> {
    const caller = this.#caller;
    if (caller === undefined || Date.now() < renewalOf(this.#identity.certificate)) return;
    try {
      const request = await renewalRequest(this.#identity);
      const { certificate } = await caller.ask('renew', { request }, this.#stop.signal);
      this.#identity = renewed(this.#options.directory, this.#identity, certificate);
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      this.#options.onTrouble(`renewing the host's certificate failed, trying again: ${(error as Error).message}`);
    }
  }
}
