/** The tree of one VM in the host daemon: kept in a store, served by a device process, edited and watched from outside. */
import type { Once, TreeCondition, TreeEdit } from '../records/index.ts';
import { StoreError } from '../store/index.ts';
import {
  type Answered,
  type AuditRecord,
  Authority,
  type AuthorityOptions,
  type Edited,
  type Loaded,
  type Node,
  type PolicySpec,
  type Replica,
  ruleName,
  type Spec,
  TreeError,
  type TreeErrorCode,
} from '../tree/index.ts';
import type { DeviceSession } from './device-session.ts';
import { HostRefusal } from './host-error.ts';
import { keepingErrno } from './keeping-errno.ts';
import { digestOf } from './node-record.ts';
import { TreeHistory } from './tree-history.ts';
import { TreeStoreError } from './tree-store.ts';
import { statusPath } from './vm-statistics.ts';
import type { WriteRate } from './write-rate.ts';

export interface VmTreeOptions {
  readonly vm: string;
  /** Of the store: revisions of other epochs mean nothing in this one. */
  readonly epoch: number;
  /** Keeps all of the records, or none and says false. */
  readonly audit: (records: readonly AuditRecord[]) => boolean;
  readonly kept: Pick<AuthorityOptions, 'persist' | 'restored'> & {
    /** What the tree's history left before it was opened, and where this one leaves it. */
    readonly history?: Uint8Array | undefined;
    readonly keepHistory?: (history: Uint8Array) => Promise<void>;
  };
  /** At which `persist` keeps what guests write. */
  readonly rate?: Pick<WriteRate, 'urgently'> | undefined;
}

/** Whether what it serves from has a revision, within milliseconds. */
type Applying = (revision: number, withinMs: number) => Promise<boolean>;

/** No user of a guest has this id. */
const nobody = 0xffff_ffff;

interface Changed {
  readonly revision: number;
  readonly changes: number;
}

/** Everything that changes it from outside goes through here. Refusals are `HostRefusal`. */
export class VmTree {
  readonly vm: string;
  readonly epoch: number;
  readonly authority: Authority;
  readonly history: TreeHistory;
  readonly #audit: VmTreeOptions['audit'];
  readonly #keepHistory: VmTreeOptions['kept']['keepHistory'];
  readonly #rate: VmTreeOptions['rate'];
  /** What serves it, while something does. */
  #session: DeviceSession | undefined;
  #metadata: Applying | undefined;

  constructor(options: VmTreeOptions) {
    this.vm = options.vm;
    this.epoch = options.epoch;
    this.#audit = options.audit;
    const { history, keepHistory, ...kept } = options.kept;
    this.#keepHistory = keepHistory;
    this.#rate = options.rate;
    this.authority = new Authority({
      vm: options.vm,
      wallMs: Date.now,
      digest: digestOf,
      errnoOf: keepingErrno,
      audit: (record) => options.audit([record]),
      holdersOutlive: true,
      apart: statusPath,
      gather: setImmediate,
      ...kept,
    });
    this.history = new TreeHistory(options.epoch, this.authority.snapshot.revision, history);
    this.authority.replica.onApply(({ revision, changes, policy }) => {
      if (changes.length === 0 && policy === undefined) return this.history.passed(revision);
      this.history.add({
        epoch: this.epoch,
        revision,
        changes: changes.map(({ path, what }) => ({ path, what })),
        policyChanged: policy !== undefined,
      });
    });
  }

  get replica(): Replica {
    return this.authority.replica;
  }

  get policyRevision(): number {
    return this.authority.policyRevision;
  }

  /** Once nothing is committed any more: watchers go on with the next daemon. What the store throws. */
  async leaveHistory(): Promise<void> {
    const left = this.history.leave();
    if (left !== undefined) await this.#keepHistory?.(left);
  }

  servedBy(session: DeviceSession | undefined): void {
    this.#session = session;
  }

  /** The metadata server that serves it as well, while one does. */
  metadataServedBy(applied: Applying | undefined): void {
    this.#metadata = applied;
  }

  /** Whether a replica is connected. */
  get isServed(): boolean {
    return this.#session?.connected === true;
  }

  /** Resolves with the names of replicas that have not applied a revision in time: whoever opens there may see older values. */
  async applied(revision: number, timeoutMs: number): Promise<readonly string[]> {
    const session = this.#session;
    const [hasDevice = true, hasAgent = true] = await Promise.all([
      session?.applied(revision, timeoutMs),
      this.#metadata?.(revision, timeoutMs),
    ]);
    // One that was ended on purpose meanwhile serves nobody.
    const isDeviceLate = !hasDevice && this.#session === session;
    return [...(isDeviceLate ? ['virtiofs'] : []), ...(hasAgent ? [] : ['agent'])];
  }

  /** Records that somebody outside is shown the values of nodes of this tree, as it is or was in `replica`. HOST_UNAVAILABLE when the log can't keep that. */
  recordShown(nodes: readonly Node[], operation: 'read' | 'export', by: string, replica = this.replica): void {
    const { vm } = this;
    const { snapshot } = replica;
    const records = nodes.map(
      (node): AuditRecord => ({
        timeMs: Date.now(),
        vm,
        way: 'api',
        operation,
        path: snapshot.path(node),
        uid: nobody,
        gid: nobody,
        pid: 0,
        by,
        revision: snapshot.revision,
        verdict: 'allowed',
        rule: ruleName(replica.facts(node).effective.rule),
      }),
    );
    if (records.length > 0 && !this.#audit(records))
      throw new HostRefusal(
        'HOST_UNAVAILABLE',
        'a value that not everybody may read is not shown, as the audit log cannot be written: make room for it, then try again',
      );
  }

  /** Resolves when it is kept. */
  async edit(
    edits: readonly TreeEdit[],
    conditions: readonly TreeCondition[],
    once?: Once,
  ): Promise<Changed & Pick<Edited, 'dataRevisions'>> {
    return this.#refusing(async () => {
      const before = await this.#before(once);
      if (before !== undefined) {
        const { dataRevision } = before;
        return {
          ...before,
          dataRevisions: new Map(dataRevision === undefined ? [] : [[edits[0]!.path, dataRevision]]),
        };
      }
      const { revision, changes, dataRevisions } = await this.authority.edit(edits, conditions, once?.id);
      return { revision, changes: changes.length, dataRevisions };
    });
  }

  async load(spec: Spec, ifRevision?: number, once?: Once): Promise<Changed> {
    return this.#loading(once, (request) => this.authority.load(spec, ifRevision, request));
  }

  async setPolicy(
    policy: PolicySpec,
    ifRevision?: number,
    once?: Once,
  ): Promise<Changed & { readonly policyRevision: number }> {
    return this.#loading(once, (request) => this.authority.setPolicy(policy, ifRevision, request));
  }

  #loading(
    once: Once | undefined,
    load: (request: string | undefined) => Loaded,
  ): Promise<Changed & { readonly policyRevision: number }> {
    return this.#refusing(async () => {
      const before = await this.#before(once);
      if (before !== undefined) return before;
      const { revision, changes, policyRevision, durable } = load(once?.id);
      await durable;
      return { revision, changes: changes.length, policyRevision };
    });
  }

  /** What a request that is repeated was answered, if it took effect. */
  async #before(once: Once | undefined): Promise<Answered | undefined> {
    if (once?.isRepeat !== true) return undefined;
    await this.authority.settled();
    return this.authority.answered(once.id);
  }

  async #refusing<T>(change: () => Promise<T>): Promise<T> {
    try {
      return await (this.#rate === undefined ? change() : this.#rate.urgently(change));
    } catch (error) {
      throw this.#refusalOf(error);
    }
  }

  #refusalOf(error: unknown): unknown {
    if (error instanceof TreeError && error.code !== 'NOT_KEPT')
      return new HostRefusal(refusals[error.code], error.message, {
        cause: error,
        ...(error.condition !== undefined && { condition: error.condition }),
      });
    const cause = error instanceof TreeError ? error.cause : error;
    const failure = cause instanceof Error && cause === this.authority.persistFailure ? cause : undefined;
    if (cause instanceof StoreError || failure !== undefined) {
      const isFull = cause instanceof StoreError && cause.code === 'STORE_FULL';
      const words =
        cause instanceof TreeStoreError && cause.code === 'TREE_IN_DOUBT'
          ? `whether it was done is not known (${cause.cause instanceof Error ? cause.cause.message : cause.message}); read it before you repeat it`
          : `nothing was changed: ${(cause as Error).message}`;
      return new HostRefusal(isFull ? 'HOST_FULL' : 'HOST_UNAVAILABLE', words, { cause: error });
    }
    return error;
  }
}

const refusals: Readonly<Record<Exclude<TreeErrorCode, 'NOT_KEPT'>, HostRefusal['code']>> = {
  CONDITION_UNMET: 'HOST_CONDITION_UNMET',
  NOT_FOUND: 'HOST_NOT_FOUND',
  NOT_A_DIRECTORY: 'HOST_NOT_DIRECTORY',
  IS_A_DIRECTORY: 'HOST_IS_DIRECTORY',
  NOT_EMPTY: 'HOST_NOT_EMPTY',
  PATH_INVALID: 'HOST_INVALID',
  NAME_INVALID: 'HOST_INVALID',
  TARGET_INVALID: 'HOST_INVALID',
  PATH_RESERVED: 'HOST_INVALID',
  TOO_LARGE: 'HOST_TOO_LARGE',
  QUOTA: 'HOST_FULL',
};
