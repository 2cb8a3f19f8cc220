/**
 * What a host daemon and the device process of one VM say to each other about its tree: over one connection after another,
 * whoever started the process.
 */
import {
  type LinkConfig,
  type LinkTarget,
  type LinkWay,
  monotonicMs,
  type ToDevice,
  type ToHost,
} from '../device/index.ts';
import { type Authority, type Mutation, type Outcome, type Settle, ways } from '../tree/index.ts';
import { EIO, printable } from '../wire/index.ts';
import { DeviceFeed } from './device-feed.ts';

/** What people or programs are told of. */
export type DeviceEvent =
  | { readonly event: 'ready'; readonly target: LinkTarget }
  | { readonly event: 'failed'; readonly target: LinkTarget; readonly reason: string }
  | { readonly event: 'target'; readonly target: LinkTarget; readonly what: string; readonly detail: string }
  | { readonly event: 'trouble'; readonly what: string };

/** Values of the device process by name, such as `fuse.OPEN`. */
export type Counters = Readonly<Record<string, number>>;

interface DeviceSessionOptions {
  readonly authority: Authority;
  readonly config: () => LinkConfig;
  readonly onEvent: (event: DeviceEvent) => void;
  /** There are records in the audit ring. */
  readonly onAuditWaiting: () => void;
  /** A device process that ends is succeeded by one of the same holder: what it had open stays open (a keeper). */
  readonly isSucceeded?: () => boolean;
  /** A 9P client was let in by the token of this hash (`bootToken`). */
  readonly onTokenUsed?: (hash: Uint8Array) => void;
  /** Who else has a replica of the tree. */
  readonly otherHolders?: () => readonly string[];
}

const applyWithinMs = 2_000;
const answerWithinMs = 2_000;
/** So long before a mutation runs out, its sender is told that it is being kept. */
const takenBeforeMs = 1_000;
const longestTimerMs = 2 ** 31 - 1;
/** The protocols of the link that have `taken`, `bootToken` and `cutOff` first. */
const [takenSince, tokensSince, cutOffSince] = [4, 4, 5];
const refused: Outcome = { errno: EIO, revision: 0, ino: 0 };

export const targetsOf = ({
  vhostUser,
  mounts,
  vsock = [],
  ninep = [],
}: Pick<LinkConfig, 'vhostUser' | 'mounts' | 'vsock' | 'ninep'>): readonly LinkTarget[] => [
  ...vhostUser.map(({ path }): LinkTarget => ({ kind: 'vhost-user', path })),
  ...vsock.map(({ path }): LinkTarget => ({ kind: 'vsock', path })),
  ...mounts.map(({ path }): LinkTarget => ({ kind: 'mount', path })),
  ...ninep.map(({ path }): LinkTarget => ({ kind: '9p', path })),
];

/** Which kind of target a way in needs. */
const kindOf = { virtiofs: 'vhost-user', mount: 'mount', ninep: '9p' } as const satisfies Record<LinkWay, unknown>;

interface Connection {
  readonly holder: string;
  readonly send: (message: ToDevice) => void;
  readonly protocol: number;
}

/** The caller gives it each message of the connection, and tells when the connection begins and ends. */
export class DeviceSession {
  readonly #options: DeviceSessionOptions;
  readonly #targets: readonly LinkTarget[];
  #connection: Connection | undefined;
  #feed: { readonly holder: string; readonly feed: DeviceFeed } | undefined;
  /** The commit up to which the device process has told that it applied them. */
  #appliedRevision = 0;
  readonly #unapplied = new Set<{ readonly revision: number; readonly tell: (applied: boolean) => void }>();
  /** What was told last of this boot's token: its hash, or that there is none. Before, nobody knows. */
  #token: { readonly hash: Uint8Array | undefined } | undefined;
  #cutOffSinceMs: number | undefined;
  #questions = 0;
  /** Told of once, until commits are kept again. */
  #toldFailure: string | undefined;
  readonly #asked = new Map<number, (counters: Counters | undefined) => void>();

  constructor(options: DeviceSessionOptions) {
    this.#options = options;
    this.#targets = targetsOf(options.config());
  }

  get connected(): boolean {
    return this.#connection !== undefined;
  }

  /** A message of the process; the first is `hello`, which `send` answers with what to serve and the whole tree. */
  take(message: ToHost, send: (message: ToDevice) => void): void {
    const { onEvent, onAuditWaiting } = this.#options;
    if (message.type === 'hello') return this.#greet(message, send);
    const connection = this.#connection;
    if (connection?.send !== send) return;
    switch (message.type) {
      case 'mutation': {
        const settle: Settle = (outcome) => send({ type: 'outcome', sequence: message.sequence, outcome });
        const { holder } = connection;
        // The guest has been told that it failed, so it must not take effect any more. If it has, before, it was not told.
        if (monotonicMs() > message.expiresMs && !this.#options.authority.hasTaken(holder, message.sequence))
          return settle(refused);
        return this.#commit(message.mutation, message.way, holder, message.sequence, this.#promising(message, settle));
      }
      case 'auditWaiting':
        return onAuditWaiting();
      case 'tokenUsed':
        return this.#options.onTokenUsed?.(message.hash);
      case 'ready':
      case 'failed':
      case 'event': {
        // Whatever else it may name was not asked for.
        const target = this.#targets.find(
          ({ kind, path }) => kind === message.target.kind && path === message.target.path,
        );
        if (target === undefined) return;
        if (message.type === 'ready') return onEvent({ event: 'ready', target });
        if (message.type === 'failed') return onEvent({ event: 'failed', target, reason: printable(message.reason) });
        return onEvent({ event: 'target', target, what: message.event, detail: printable(message.detail) });
      }
      case 'applied':
        this.#feed?.feed.applied(message.revision);
        this.#appliedRevision = message.revision;
        for (const waiting of this.#unapplied) if (waiting.revision <= message.revision) waiting.tell(true);
        return;
      case 'statistics':
        this.#asked.get(message.id)?.(message.counters);
        return;
    }
  }

  /** SHA-256 of this boot's token, undefined while there is none: 9P clients that show the token are let in. */
  bootToken(hash: Uint8Array | undefined): void {
    this.#token = { hash };
    this.#tellToken();
  }

  /** Since when (`performance.now`) nothing of the cluster is heard here: what is read grows old. Undefined: it is heard. */
  cutOff(sinceMs: number | undefined): void {
    this.#cutOffSinceMs = sinceMs;
    this.#tellCutOff();
  }

  #tellCutOff(): void {
    if (this.#connection === undefined || this.#connection.protocol < cutOffSince) return;
    const sinceMs = this.#cutOffSinceMs;
    const ageMs = sinceMs === undefined ? undefined : Math.max(0, Math.round(performance.now() - sinceMs));
    this.#connection.send({ type: 'cutOff', ...(ageMs !== undefined && { ageMs }) });
  }

  #tellToken(): void {
    if (this.#token === undefined || this.#connection === undefined) return;
    if (this.#connection.protocol >= tokensSince) this.#connection.send({ type: 'bootToken', ...this.#token });
  }

  #greet({ holder, protocol }: Extract<ToHost, { type: 'hello' }>, send: (message: ToDevice) => void): void {
    this.disconnect();
    // A VM has one device process at a time; a successor has the name of the one before.
    this.#options.authority.holdersAre([holder, ...(this.#options.otherHolders?.() ?? [])]);
    if (this.#feed?.holder !== holder) {
      this.#feed?.feed.close();
      this.#feed = { holder, feed: new DeviceFeed(this.#options.authority, holder) };
    }
    const { feed } = this.#feed;
    send({ ...this.#options.config(), resumeAt: feed.revision });
    this.#connection = { holder, send, protocol };
    this.#tellToken();
    feed.attach((delta) => send({ type: 'delta', delta }));
    // After the tree, with which a device process takes itself to be up to date.
    if (this.#cutOffSinceMs !== undefined) this.#tellCutOff();
  }

  /** The connection is over. */
  disconnect(): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    this.#connection = undefined;
    this.#feed?.feed.detach();
    if (this.#options.isSucceeded?.() !== true) this.#endFeed();
    this.#appliedRevision = 0;
    for (const answer of this.#asked.values()) answer(undefined);
  }

  /** Who waits for anything is told that it does not come. */
  close(): void {
    this.disconnect();
    this.#endFeed();
    for (const { tell } of this.#unapplied) tell(false);
  }

  #endFeed(): void {
    this.#feed?.feed.close();
    this.#feed = undefined;
  }

  /**
   * Resolves with true once the device process has applied the commit: whoever opens a file from then on sees it. With false
   * when it did not say so in time.
   */
  applied(revision: number, withinMs = applyWithinMs): Promise<boolean> {
    if (revision <= this.#appliedRevision) return Promise.resolve(true);
    return new Promise((resolve) => {
      const tell = (applied: boolean): void => {
        clearTimeout(late);
        this.#unapplied.delete(waiting);
        resolve(applied);
      };
      const waiting = { revision, tell };
      const late = setTimeout(tell, withinMs, false);
      this.#unapplied.add(waiting);
    });
  }

  /** Counters of the device process, summed over its ways in; undefined when there is none, or it does not answer in time. */
  statistics(withinMs = answerWithinMs): Promise<Counters | undefined> {
    return new Promise((resolve) => {
      const id = ++this.#questions;
      const answer = (counters: Counters | undefined): void => {
        clearTimeout(late);
        this.#asked.delete(id);
        resolve(counters);
      };
      const late = setTimeout(answer, withinMs, undefined);
      this.#asked.set(id, answer);
      if (this.#connection === undefined) answer(undefined);
      else this.#connection.send({ type: 'askStatistics', id });
    });
  }

  /** `settle`; when that takes as long as the mutation may wait, its sender is told to wait on. */
  #promising({ sequence, expiresMs }: Extract<ToHost, { type: 'mutation' }>, settle: Settle): Settle {
    const connection = this.#connection;
    if (connection === undefined || connection.protocol < takenSince) return settle;
    const tell = (): void => connection.send({ type: 'taken', sequence });
    const inMs = expiresMs - takenBeforeMs - monotonicMs();
    const late = setTimeout(tell, Math.min(Math.max(0, inMs), longestTimerMs));
    return (outcome) => {
      clearTimeout(late);
      settle(outcome);
    };
  }

  /** Only a way in that was asked for: a device process can't claim the rights of another. */
  #commit(mutation: Mutation, way: LinkWay, holder: string, sequence: number, settle: Settle): void {
    const { authority, onEvent } = this.#options;
    if (!this.#targets.some(({ kind }) => kind === kindOf[way])) return settle(refused);
    try {
      authority.commit(mutation, ways[way], holder, sequence, (outcome) => {
        const failure = authority.persistFailure?.message;
        if (failure !== undefined && failure !== this.#toldFailure)
          onEvent({ event: 'trouble', what: `a guest's write was refused: ${failure}` });
        this.#toldFailure = failure;
        settle(outcome);
      });
    } catch (error) {
      const what = error instanceof Error ? error.message : String(error);
      onEvent({ event: 'trouble', what: `a ${mutation.op} failed by a mistake in Porthole: ${what}` });
      settle(refused);
    }
  }
}
