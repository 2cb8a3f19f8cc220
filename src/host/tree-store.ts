/**
 * Keeps one VM's tree in a store. A batch of commits is one transaction where it fits into one. What does not fit is written
 * beside the tree first, as a log; one transaction on the head makes the log part of the tree; then it is rolled forward. So
 * each batch is kept as a whole or not at all, wherever the host daemon ends.
 *
 * Every transaction has a condition on the head. Opening a tree writes the head, so that who had it open before can write no
 * more: two can never write one tree.
 */
import { hostLimits, keyText, type Operation, prefixRange, type Store, StoreError } from '../store/index.ts';
import {
  ANSWERED_KEPT,
  type Answered,
  APPLIED_KEPT,
  type Applied,
  type Commit,
  type Kept,
  type Restored,
} from '../tree/index.ts';
import { decodeKept, encodeKept } from './node-record.ts';
import {
  type AppliedEntry,
  type Changes,
  decodeAnswered,
  decodeApplied,
  decodeHead,
  decodeLogPart,
  decodePolicy,
  encodeAnswered,
  encodeApplied,
  encodeHead,
  encodeLogPart,
  encodePolicy,
  type Head,
  headFormat,
  inlineBytes,
  partBytes,
  putParts,
  TreeKeys,
  takeParts,
} from './tree-records.ts';

export type TreeStoreErrorCode =
  /** Another has opened the tree since: this one is to be opened anew before it is served again. */
  | 'TREE_TAKEN'
  /** The store could not say whether it kept a batch: the tree is to be opened anew. */
  | 'TREE_IN_DOUBT'
  /** A record cannot be read. */
  | 'TREE_DAMAGED'
  /** Written by a later version. */
  | 'TREE_TOO_NEW';

/** Messages name the VM and say what to do. */
export class TreeStoreError extends Error {
  readonly code: TreeStoreErrorCode;

  constructor(code: TreeStoreErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'TreeStoreError';
    this.code = code;
  }
}

/** What is known of a node that the store has. */
interface StoredNode {
  /** 0: the value is in the record. */
  readonly parts: number;
  readonly dataRevision: number;
}

/** What the store has, as far as it decides what is to be written. */
interface Stored {
  readonly nodes: Map<number, StoredNode>;
  /** Oldest first. */
  readonly applied: Map<string, readonly AppliedEntry[]>;
  /** Records of answered requests, oldest first. */
  readonly answered: AnsweredRecord[];
  policyParts: number;
  policyRevision: number;
}

/** What one batch answered; its key has this revision. */
interface AnsweredRecord {
  readonly revision: number;
  readonly count: number;
}

interface Batch {
  readonly changes: Changes;
  /** Nodes that are other than in `Stored`; undefined: gone. */
  readonly nodes: Map<number, StoredNode | undefined>;
  readonly applied: Map<string, readonly AppliedEntry[]>;
  readonly answered: readonly Answered[];
  /** How many of the oldest records of answered requests go. */
  readonly outdated: number;
  readonly isLossy: boolean;
  readonly revision: number;
  readonly nextIno: number;
  readonly policyParts: number;
  readonly policyRevision: number;
}

/**
 * Revisions and inode numbers start here in an epoch of the store, which rises (to the time in seconds, if that is higher) when
 * it was restored from a backup: below it are all that the lost store can have given out, at less than a million a second.
 */
const numbersPerEpoch = 2 ** 20;
/** How many numbers are set aside at once for commits of which nothing is kept (`durable: none`). */
const reserved = 1024;
const logPartBytes = 3 * partBytes;
/** Room for the head and its key. */
const headBytes = 1024;

type Change = readonly [key: string, value: Uint8Array | undefined];

/** One tree in a store, opened. `persist` is for `Authority`. */
export class TreeStore {
  readonly vmId: string;
  /** What the store had when it was opened; undefined: it has no such tree yet. */
  readonly restored: Restored | undefined;
  /** What was last given to `keepHistory`. */
  readonly history: Uint8Array | undefined;
  readonly #store: Store;
  readonly #keys: TreeKeys;
  readonly #stored: Stored;
  #head: Head;
  /** Undefined until there is one. */
  #headRevision: number | undefined;
  /** A log that is the tree's and is not rolled forward yet. */
  #log: readonly Change[] | undefined;
  #serial = 0;
  #writtenBytes = 0;
  /** Something was committed of which nothing is kept: the head stays ahead, so that a restart is seen to have lost it. */
  #isLossy = false;
  #broken: TreeStoreError | undefined;
  /** Why it is open whether the last transaction happened; undefined: it is known. */
  #doubt: StoreError | undefined;

  private constructor(store: Store, vmId: string, opened: Opened) {
    this.vmId = vmId;
    this.#store = store;
    this.#keys = opened.keys;
    this.#head = opened.head;
    this.#headRevision = opened.headRevision;
    this.#stored = opened.stored;
    this.restored = opened.restored;
    this.history = opened.history;
  }

  /** Takes the tree from whoever has it open. TreeStoreError: TREE_DAMAGED, TREE_TOO_NEW, TREE_TAKEN; StoreError. */
  static async open(store: Store, vmId: string): Promise<TreeStore> {
    return new TreeStore(store, vmId, await new Opening(store, vmId).run());
  }

  /** What was written since it was opened. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** Keeps all of the commits or none. TreeStoreError: TREE_TAKEN, TREE_IN_DOUBT; StoreError when it is full. */
  readonly persist = async (commits: readonly Commit[]): Promise<void> => {
    if (this.#broken !== undefined) throw this.#broken;
    await this.#rollForward();
    const batch = this.#fold(commits);
    const { revision, nextIno } = this.#head;
    this.#isLossy ||= batch.isLossy;
    const isCovered = batch.revision < revision || (batch.revision === revision && !this.#isLossy);
    if (batch.changes.size === 0 && isCovered && batch.nextIno <= nextIno) return;
    const ahead = batch.changes.size === 0 ? reserved : 0;
    const head: Head = {
      ...this.#head,
      revision: isCovered ? revision : batch.revision + (this.#isLossy ? reserved : 0),
      nextIno: Math.max(nextIno, batch.nextIno + ahead),
      policyParts: batch.policyParts,
      policyRevision: batch.policyRevision,
    };
    const changes = [...batch.changes];
    for (const change of changes) this.#writtenBytes += sizeOf(change);
    if (fits(changes)) await this.#commit(changes, head);
    else await this.#commitByLog(changes, head);
    this.#adopt(batch);
    // The batch is kept. What fails now is met again by the next.
    if (this.#log !== undefined) await this.#rollForward().catch(() => {});
  };

  /** For whoever opens the tree next. Nothing is kept where it is too large, or the tree is another's. StoreError. */
  async keepHistory(history: Uint8Array): Promise<void> {
    if (this.#broken !== undefined || history.length > hostLimits.transactionBytes - headBytes) return;
    const put: Operation = { type: 'put', key: this.#keys.history, value: history };
    await this.#store.commit({ conditions: [this.#condition()], operations: [put] });
  }

  #fold(commits: readonly Commit[]): Batch {
    const changes: Changes = new Map();
    const nodes: Batch['nodes'] = new Map();
    const applied: Batch['applied'] = new Map();
    const answered: Answered[] = [];
    const keys = this.#keys;
    let { policyParts, policyRevision } = this.#stored;
    let isLossy = false;
    const known = (ino: number) => (nodes.has(ino) ? nodes.get(ino) : this.#stored.nodes.get(ino));
    const appliedOf = (holder: string) => applied.get(holder) ?? this.#stored.applied.get(holder) ?? [];
    const forget = (holder: string, entries: readonly AppliedEntry[]) => {
      for (const { sequence, burnedParts } of entries)
        putParts(changes, (part) => keys.burned(holder, sequence, part), undefined, burnedParts);
    };
    for (const commit of commits) {
      let keeps = commit.put.length > 0 || commit.policy !== undefined;
      for (const ino of commit.remove) {
        const before = known(ino);
        if (before === undefined) {
          isLossy = true;
          continue;
        }
        keeps = true;
        nodes.set(ino, undefined);
        changes.set(keys.node(ino), undefined);
        putParts(changes, (part) => keys.value(ino, part), undefined, before.parts);
      }
      for (const kept of commit.put) this.#foldNode(kept, known(kept.node.ino), changes, nodes);
      if (commit.policy !== undefined) {
        policyParts = putParts(changes, keys.policy, encodePolicy(commit.policy), policyParts);
        policyRevision = commit.revision;
      }
      // A mutation of which nothing is kept need not be remembered longer than what it did.
      if (commit.applied !== undefined && keeps) {
        const { holder, sequence, outcome } = commit.applied;
        const keyOf = (part: number) => keys.burned(holder, sequence, part);
        const burnedParts = putParts(changes, keyOf, outcome.bytes, 0);
        const entries = [...appliedOf(holder), { sequence, outcome, burnedParts }];
        forget(holder, entries.slice(0, -APPLIED_KEPT));
        applied.set(holder, entries.slice(-APPLIED_KEPT));
      }
      // A request is to have its effect once, also where nothing of that is left: what it removed may be somebody else's next time.
      if (commit.answered !== undefined) answered.push(commit.answered);
      if (commit.forgotten !== undefined) {
        forget(commit.forgotten, appliedOf(commit.forgotten));
        applied.set(commit.forgotten, []);
      }
    }
    for (const [holder, entries] of applied)
      changes.set(keys.applied(holder), entries.length === 0 ? undefined : encodeApplied(entries));
    const { revision, nextIno } = commits.at(-1)!;
    const outdated = answered.length === 0 ? 0 : this.#outdatedWith(answered.length);
    if (answered.length > 0) changes.set(keys.answered(revision), encodeAnswered(answered));
    for (const old of this.#stored.answered.slice(0, outdated)) changes.set(keys.answered(old.revision), undefined);
    return { changes, nodes, applied, answered, outdated, isLossy, revision, nextIno, policyParts, policyRevision };
  }

  /** How many of the oldest records of answered requests are not needed with `more` of them. */
  #outdatedWith(more: number): number {
    const { answered } = this.#stored;
    let count = more;
    for (let at = answered.length - 1; at >= 0; at--) {
      if (count >= ANSWERED_KEPT) return at + 1;
      count += answered[at]!.count;
    }
    return 0;
  }

  #foldNode(kept: Kept, before: StoredNode | undefined, changes: Changes, nodes: Batch['nodes']): void {
    const { ino, bytes, dataRevision } = kept.node;
    const isLong = bytes !== undefined && bytes.length > inlineBytes;
    const isThere = isLong && before !== undefined && before.parts > 0 && before.dataRevision === dataRevision;
    const keyOf = (part: number) => this.#keys.value(ino, part);
    const parts = isThere ? before.parts : putParts(changes, keyOf, isLong ? bytes : undefined, before?.parts ?? 0);
    changes.set(this.#keys.node(ino), encodeKept(kept, isLong ? { parts } : { bytes }));
    nodes.set(ino, { parts, dataRevision });
  }

  #adopt(batch: Batch): void {
    const stored = this.#stored;
    for (const [ino, node] of batch.nodes) {
      if (node === undefined) stored.nodes.delete(ino);
      else stored.nodes.set(ino, node);
    }
    for (const [holder, entries] of batch.applied) {
      if (entries.length === 0) stored.applied.delete(holder);
      else stored.applied.set(holder, entries);
    }
    if (batch.answered.length > 0) stored.answered.push({ revision: batch.revision, count: batch.answered.length });
    stored.answered.splice(0, batch.outdated);
    stored.policyParts = batch.policyParts;
    stored.policyRevision = batch.policyRevision;
  }

  /** One transaction, that becomes the head. */
  async #commit(changes: readonly Change[], head: Head): Promise<void> {
    const headPut: Operation = { type: 'put', key: this.#keys.head, value: encodeHead(head) };
    this.#headRevision = await this.#transact([...operationsOf(changes), headPut]);
    this.#head = head;
  }

  async #commitByLog(changes: readonly Change[], head: Head): Promise<void> {
    const name = { generation: head.generation, serial: this.#serial++ };
    const parts = logPartsOf(changes);
    try {
      for (const [part, entries] of parts.entries())
        await this.#transact([{ type: 'put', key: this.#keys.logPart(name, part), value: encodeLogPart(entries) }]);
      await this.#commit([], { ...head, log: { ...name, parts: parts.length } });
    } catch (error) {
      // Parts of a log that never became the tree's only take room.
      if (this.#broken === undefined && this.#doubt === undefined)
        await sweep(this.#store, this.#keys.log, this.#condition()).catch(() => {});
      throw error;
    }
    this.#log = changes;
  }

  async #rollForward(): Promise<void> {
    if (this.#log === undefined) return;
    for (const group of transactionsOf(this.#log)) await this.#transact(operationsOf(group));
    const { log: _rolled, ...head } = this.#head;
    await this.#commit([], head);
    this.#log = undefined;
    // What is left takes room until the next log, or the next opening.
    await sweep(this.#store, this.#keys.log, this.#condition()).catch(() => {});
  }

  #condition() {
    const { head } = this.#keys;
    return this.#headRevision === undefined
      ? { key: head, exists: false }
      : { key: head, modRevision: this.#headRevision };
  }

  /** @returns the revision of the store. After a failure that leaves it open what is kept, or when the tree is another's, nothing is written any more. */
  async #transact(operations: readonly Operation[]): Promise<number> {
    try {
      const outcome = await this.#store.commit({ conditions: [this.#condition()], operations });
      if (!outcome.committed) throw this.#doubt === undefined ? taken(this.vmId) : inDoubt(this.vmId, this.#doubt);
      this.#doubt = undefined;
      return outcome.revision;
    } catch (error) {
      if (error instanceof StoreError && withoutEffect.has(error.code)) throw error;
      if (error instanceof StoreError && error.code === 'STORE_UNAVAILABLE') {
        // By its condition the next transaction makes it impossible, or finds that it happened.
        this.#doubt = error;
        throw inDoubt(this.vmId, error);
      }
      this.#broken = error instanceof TreeStoreError ? error : inDoubt(this.vmId, error);
      throw this.#broken;
    }
  }
}

/** Of these it is known that nothing was kept. */
const withoutEffect: ReadonlySet<string> = new Set(['STORE_FULL', 'STORE_INVALID', 'STORE_CUT_OFF']);

const taken = (vmId: string): TreeStoreError =>
  new TreeStoreError(
    'TREE_TAKEN',
    `the tree of VM "${vmId}" was opened by another process, or removed: this one keeps nothing of it any more; end one of them, and open the tree anew`,
  );

const inDoubt = (vmId: string, cause: unknown): TreeStoreError => {
  const why = cause instanceof Error ? cause.message : String(cause);
  const message = `whether the last change of the tree of VM "${vmId}" was kept is not known (${why}); open the tree anew`;
  return new TreeStoreError('TREE_IN_DOUBT', message, cause);
};

const sizeOf = ([key, value]: Change): number => key.length + (value?.length ?? 0);

/** Into one transaction, with the head and the condition on it. */
const fits = (changes: readonly Change[]): boolean =>
  changes.length + 2 <= hostLimits.operations &&
  changes.reduce((sum, change) => sum + sizeOf(change), headBytes) <= hostLimits.transactionBytes;

const operationsOf = (changes: readonly Change[]): Operation[] =>
  changes.map(([key, value]) => (value === undefined ? { type: 'delete', key } : { type: 'put', key, value }));

/** In order, as many together as there may be. */
function* grouped(changes: readonly Change[], mostChanges: number, mostBytes: number): Generator<readonly Change[]> {
  let group: Change[] = [];
  let bytes = 0;
  for (const change of changes) {
    if (group.length > 0 && (group.length === mostChanges || bytes + sizeOf(change) > mostBytes)) {
      yield group;
      group = [];
      bytes = 0;
    }
    group.push(change);
    bytes += sizeOf(change);
  }
  if (group.length > 0) yield group;
}

const transactionsOf = (changes: readonly Change[]) =>
  grouped(changes, hostLimits.operations - 1, hostLimits.transactionBytes - headBytes);
/** A change takes a few bytes more in a log than in a transaction. */
const logPartsOf = (changes: readonly Change[]) => [...grouped(changes, 2_000, logPartBytes)];

/** Deletes all below a prefix, by as many transactions as it takes. */
const sweep = async (
  store: Store,
  prefix: string,
  condition?:
    | { readonly key: string; readonly modRevision: number }
    | { readonly key: string; readonly exists: boolean },
): Promise<void> => {
  const range = prefixRange(prefix);
  for (;;) {
    const { entries } = await store.range(range, { limit: hostLimits.operations - 1 });
    if (entries.length === 0) return;
    const operations = entries.map(({ key }): Operation => ({ type: 'delete', key }));
    const outcome = await store.commit({ ...(condition && { conditions: [condition] }), operations });
    if (!outcome.committed) return;
  }
};

/**
 * Removes a tree for good. Whoever has it open keeps nothing any more. The tree is gone with the first transaction; what a
 * crash leaves of it goes when it is removed again, or a tree is opened under its name.
 */
export const removeTree = async (store: Store, vmId: string): Promise<void> => {
  const { head, prefix } = new TreeKeys(vmId);
  await store.commit({ operations: [{ type: 'delete', key: head }] });
  await sweep(store, prefix);
};

interface Opened {
  readonly keys: TreeKeys;
  readonly head: Head;
  readonly headRevision: number | undefined;
  readonly stored: Stored;
  readonly restored: Restored | undefined;
  readonly history: Uint8Array | undefined;
}

/** The steps of opening a tree. */
class Opening {
  readonly #store: Store;
  readonly #vmId: string;
  readonly #keys: TreeKeys;

  constructor(store: Store, vmId: string) {
    this.#store = store;
    this.#vmId = vmId;
    this.#keys = new TreeKeys(vmId);
  }

  async run(): Promise<Opened> {
    const { epoch } = this.#store;
    const entry = await this.#reading('head', () => this.#store.get(this.#keys.head));
    if (entry === undefined) {
      await sweep(this.#store, this.#keys.prefix, { key: this.#keys.head, exists: false });
      const none = { revision: 0, nextIno: 0, policyRevision: 0, policyParts: 0 };
      const stored = { nodes: new Map(), applied: new Map(), answered: [], policyParts: 0, policyRevision: 0 };
      const head = { format: headFormat, epoch, generation: 1, ...none };
      return { keys: this.#keys, head, headRevision: undefined, stored, restored: undefined, history: undefined };
    }
    let found = await this.#reading('head', () => decodeHead(entry.value));
    if (found.format > headFormat)
      throw new TreeStoreError(
        'TREE_TOO_NEW',
        `the tree of VM "${this.#vmId}" was written by a later version of Porthole (format ${found.format}); install that version`,
      );
    let { modRevision: headRevision } = entry;
    if (found.log !== undefined) {
      for (const group of transactionsOf(await this.#readLog(found.log)))
        await this.#transact(operationsOf(group), headRevision);
      const { log: _rolled, ...rest } = found;
      found = rest;
    }
    // From here on nobody else writes this tree.
    const start = epoch > found.epoch ? epoch * numbersPerEpoch : 0;
    const head: Head = {
      ...found,
      epoch,
      generation: found.generation + 1,
      revision: Math.max(found.revision, start),
      nextIno: Math.max(found.nextIno, start),
    };
    headRevision = await this.#transact([{ type: 'put', key: this.#keys.head, value: encodeHead(head) }], headRevision);
    await sweep(this.#store, this.#keys.log, { key: this.#keys.head, modRevision: headRevision });
    return { keys: this.#keys, head, headRevision, ...(await this.#read(head)) };
  }

  async #transact(operations: readonly Operation[], headRevision: number): Promise<number> {
    const conditions = [{ key: this.#keys.head, modRevision: headRevision }];
    const outcome = await this.#store.commit({ conditions, operations });
    if (!outcome.committed) throw taken(this.#vmId);
    return outcome.revision;
  }

  async #readLog({ parts, ...name }: NonNullable<Head['log']>): Promise<Change[]> {
    const changes: Change[] = [];
    for (let part = 0; part < parts; part++) {
      const key = this.#keys.logPart(name, part);
      const entry = await this.#reading(key, () => this.#store.get(key));
      if (entry === undefined) throw this.#damaged(key, new RangeError(`part ${part} of ${parts} is missing`));
      changes.push(...(await this.#reading(key, () => decodeLogPart(entry.value))));
    }
    return changes;
  }

  async #read(head: Head): Promise<Pick<Opened, 'stored' | 'history'> & { readonly restored: Restored }> {
    const entries = new Map<string, Uint8Array>();
    const { start: first, end } = prefixRange(this.#keys.prefix);
    for (let start = first; ; ) {
      const from = start;
      const page = await this.#reading('some record', () => this.#store.range({ start: from, end }));
      for (const { key, value } of page.entries) entries.set(keyText(key), value);
      if (page.next === undefined) break;
      start = page.next;
    }
    const { policyParts, policyRevision } = head;
    const stored: Stored = { nodes: new Map(), applied: new Map(), answered: [], policyParts, policyRevision };
    const nodes: Kept[] = [];
    const applied: Applied[] = [];
    const answered: Answered[] = [];
    const keys = this.#keys;
    for (const [key, value] of entries) {
      const [kind, name = ''] = key.slice(keys.prefix.length).split('/');
      if (kind === 'node') {
        const kept = await this.#reading(key, () => this.#readNode(key, value, head, entries, stored));
        nodes.push(kept);
      } else if (kind === 'applied') {
        const holder = decodeURIComponent(name);
        const found = await this.#reading(key, () =>
          decodeApplied(value).map((entry) => {
            const { sequence, outcome, burnedParts } = entry;
            if (burnedParts === 0) return entry;
            const bytes = takeParts(entries, (part) => keys.burned(holder, sequence, part), burnedParts);
            return { ...entry, outcome: { ...outcome, bytes } };
          }),
        );
        stored.applied.set(holder, found);
        for (const { sequence, outcome } of found) applied.push({ holder, sequence, outcome });
      } else if (kind === 'answered') {
        const found = await this.#reading(key, () => decodeAnswered(value));
        stored.answered.push({ revision: Number.parseInt(name, 16), count: found.length });
        answered.push(...found);
      }
    }
    const policy = await this.#reading('policy', () =>
      policyParts === 0 ? undefined : decodePolicy(takeParts(entries, keys.policy, policyParts)),
    );
    const { revision, nextIno } = head;
    return {
      stored,
      history: entries.get(keys.history),
      restored: { revision, nextIno, nodes, ...(policy && { policy }), policyRevision, applied, answered },
    };
  }

  #readNode(
    key: string,
    value: Uint8Array,
    { nextIno, revision }: Head,
    entries: ReadonlyMap<string, Uint8Array>,
    stored: Stored,
  ): Kept {
    const { kept, parts } = decodeKept(value);
    const { ino } = kept.node;
    if (this.#keys.node(ino) !== key || ino >= nextIno || kept.node.revision > revision)
      throw new RangeError(`inode ${ino} of revision ${kept.node.revision} is beyond the head`);
    stored.nodes.set(ino, { parts, dataRevision: kept.node.dataRevision });
    const bytes = parts === 0 ? kept.node.bytes : takeParts(entries, (part) => this.#keys.value(ino, part), parts);
    if ((bytes?.length ?? 0) !== kept.node.sizeBytes)
      throw new RangeError(`its value has ${bytes?.length ?? 0} bytes, not ${kept.node.sizeBytes}`);
    // msgpack gives a view of the record that was read.
    return { ...kept, node: { ...kept.node, bytes: bytes && new Uint8Array(bytes) } };
  }

  async #reading<T>(what: string, read: () => T | Promise<T>): Promise<T> {
    try {
      return await read();
    } catch (error) {
      if (error instanceof StoreError && error.code !== 'STORE_DAMAGED') throw error;
      throw this.#damaged(what, error);
    }
  }

  #damaged(what: string, cause: unknown): TreeStoreError {
    const message = `the record "${what}" of the tree of VM "${this.#vmId}" is damaged; restore the store from a backup, or delete the VM and create it anew`;
    return new TreeStoreError('TREE_DAMAGED', message, cause);
  }
}
