/**
 * Images: names in the global store, which images the region has in the region's, bytes where `ImagePort` keeps them. A version
 * of an image never changes.
 */

import { z } from 'zod';
import type { BlobBytes, ImageRequest, Progress } from '../records/index.ts';
import { ImageAddRecord, ImageRecord, type OperationRecord } from '../records/index.ts';
import { type Condition, keyText, type Operation, prefixRange } from '../store/index.ts';
import type { Accounts } from './accounts.ts';
import { follow } from './follow.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { ImageIndex, type ImageName, imageAddPrefix, ownImagePrefix, quoted } from './image-index.ts';
import { ImageSource } from './image-source.ts';
import { entriesOf, getRecord, type Kept, type Kit, kept, put, remove, unchanged } from './kit.ts';
import type { ManagerLease } from './manager-lease.ts';
import { withOpening } from './openings.ts';
import { isFinished, type Operations } from './operations.ts';
import type { Outbox } from './outbox.ts';
import type { Peers } from './peers.ts';
import { ApiError, isHostError, toApiError } from './problem.ts';
import { Telling } from './telling.ts';

/** That the region has it. */
const ownKey = ({ name, version }: ImageName): string => `${ownImagePrefix}${name}/${version}`;
/** Changes whenever the image is removed, so that no VM is made from one that goes at the same time. It stays. */
const gateKey = (name: string, version: string): string => `imageremoval/${name}/${version}`;
/** Who is adding it. Its revision is in each transaction of theirs: who takes over changes it. */
const addKey = (name: string, version: string): string => `${imageAddPrefix}${name}/${version}`;
/** Under the lease of the manager that is at it. */
const runPrefix = 'imagerun/';
const runKey = ({ name, version }: ImageName): string => `${runPrefix}${name}/${version}`;
/** That an operation is to end: whoever runs it is told. */
const cancelPrefix = 'imagecancel/';
const cancelKey = (operation: string): string => `${cancelPrefix}${operation}`;
const usePrefix = (name: string, version: string): string => `imageuse/${name}/${version}/`;

/** What an operation does until its image is here. `fence`: that no other manager has taken over. */
type Work = (
  operation: OperationRecord,
  fence: Condition,
  signal: AbortSignal,
  progress: (progress: Progress) => void,
) => Promise<void>;

interface Running {
  readonly runKey: string;
  readonly cancel: AbortController;
  readonly end: Promise<void>;
}

interface Ending {
  readonly fence: Condition;
  readonly operations: readonly Operation[];
  readonly isSettled: boolean;
}

/** Another manager has taken this one for dead, and ended what it was at. */
class Overtaken extends Error {}

const addedOutcome: Partial<OperationRecord> = { state: 'succeeded', step: '', done: 1, total: 1 };

export class Images {
  readonly #kit: Kit;
  readonly #operations: Operations;
  readonly #outbox: Outbox;
  readonly #accounts: Accounts;
  readonly #peers: Peers;
  readonly #index: ImageIndex;
  readonly #lease: ManagerLease;
  /** Of this start of the manager. */
  readonly #runner: string;
  #recovering: Promise<void> = Promise.resolve();
  readonly #running = new Map<string, Running>();

  constructor(
    kit: Kit,
    parts: {
      readonly operations: Operations;
      readonly outbox: Outbox;
      readonly accounts: Accounts;
      readonly peers: Peers;
      readonly lease: ManagerLease;
    },
  ) {
    this.#kit = kit;
    this.#operations = parts.operations;
    this.#outbox = parts.outbox;
    this.#accounts = parts.accounts;
    this.#peers = parts.peers;
    this.#index = new ImageIndex(kit);
    this.#lease = parts.lease;
    this.#runner = kit.randomBytes(8).toString('hex');
  }

  /** Of all regions. */
  async list(account: string): Promise<ImageRecord[]> {
    const all = await this.#index.list();
    return all.map(({ record }) => record).filter((image) => image.account === account);
  }

  async get(account: string, name: string, version: string): Promise<ImageRecord> {
    const found = await this.#index.find({ name, version });
    if (found === undefined || found.account !== account) throw noImage(name, version);
    return found;
  }

  /**
   * For a VM that is made from it: the condition fails when the image is removed meanwhile. Without a version: the one added
   * last of those that the region has.
   */
  async forUse(
    account: string,
    { name, version }: { readonly name: string; readonly version: string | undefined },
  ): Promise<{ readonly record: ImageRecord; readonly condition: Condition }> {
    const wanted = version ?? (await this.#newest(account, name));
    if (wanted === undefined) throw await this.#absent(account, name);
    const condition = await this.#isOpen(name, wanted);
    return { record: await this.#own(account, name, wanted), condition };
  }

  /** One that the region has. NOT_FOUND, with the regions that have it. */
  async #own(account: string, name: string, version: string): Promise<ImageRecord> {
    const own = await getRecord(this.#kit.region, ImageRecord, ownKey({ name, version }));
    if (own?.record.account === account) return own.record;
    const found = await this.get(account, name, version);
    if (found.regions === undefined) return found;
    throw this.#elsewhere(found);
  }

  async #absent(account: string, name: string): Promise<ApiError> {
    const found = (await this.#index.list(name)).findLast(({ record }) => record.account === account);
    return found === undefined ? noImage(name, undefined) : this.#elsewhere(found.record);
  }

  #elsewhere(image: ImageRecord): ApiError {
    const { regionName } = this.#kit;
    const { name, version, regions = [] } = image;
    return new ApiError(
      'NOT_FOUND',
      `${quoted(image)} is in ${regions.join(', ')}, and not in ${regionName}; copy it: porthole image copy ${name}:${version} --region ${regionName}`,
    );
  }

  /** That nobody removes it now, and a condition that fails when somebody began to. Ask before looking for the image. */
  async #isOpen(name: string, version: string): Promise<Condition> {
    const key = gateKey(name, version);
    const gate = await this.#kit.region.get(key);
    if (gate !== undefined && stateOf(gate) === 'removing') throw conflict(name, version, 'removed');
    return gate === undefined ? { key, exists: false } : { key, modRevision: gate.modRevision };
  }

  /** Begins to add one. Resolves when the operation is in the store; the rest goes on by itself. NAME_TAKEN, WRONG_STATE. */
  async add(
    account: string,
    request: Omit<ImageRequest, 'version'> & { readonly version: string | undefined },
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const { name } = request;
    const version = request.version ?? String((await this.#highestNumber(name)) + 1);
    const owner = await this.#accounts.forUse(account);
    const open = await this.#isOpen(name, version);
    if (await this.#index.isTaken({ name, version })) throw taken(name, version);
    const work: Work = async (operation, fence, signal, progress) => {
      const image = { name, version };
      if (!(await this.#index.claim(image, operation.id))) throw taken(name, version);
      await this.#clear(image, fence);
      const facts = await this.#kit.images.addImage({ ...request, ...image }, { signal, progress });
      signal.throwIfAborted();
      await this.#have({ ...image, account, ...facts, createdAtMs: this.#kit.wallMs() }, operation.id, fence);
    };
    const conditions = [{ key: ownKey({ name, version }), exists: false }, open, owner.condition];
    const wish = { account, kind: 'image.add', target: { name, version } } as const;
    const begun = await this.#begin(wish, conditions, work, commit, answer);
    if (begun === undefined) throw taken(name, version);
    return begun;
  }

  /**
   * Begins to bring one here from another region, by its digest; `moves`: the copy there is removed at the end. NOT_FOUND,
   * WRONG_STATE (it is here), BAD_REQUEST (it is not there), CONFLICT.
   */
  async copy(
    account: string,
    { from, moves, ...image }: ImageName & { readonly from: string | undefined; readonly moves: boolean },
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer> {
    const { regionName } = this.#kit;
    const { name, version } = image;
    const owner = await this.#accounts.forUse(account);
    const open = await this.#isOpen(name, version);
    const record = await this.get(account, name, version);
    const others = record.regions?.filter((region) => region !== regionName) ?? [];
    const isHere = (await this.#kit.region.get(ownKey(image))) !== undefined;
    if (isHere && !(moves && others.length > 0))
      throw new ApiError('WRONG_STATE', `${quoted(image)} is in ${regionName} already`);
    const region = from ?? others[0];
    if (region === undefined || !others.includes(region))
      throw new ApiError(
        'BAD_REQUEST',
        `${quoted(image)} is not in ${region ?? 'any other region'}; it is in: ${record.regions?.join(', ') ?? 'a host of before'}`,
      );
    const source = new ImageSource(this.#peers, region, account);
    const work: Work = async (operation, fence, signal, progress) => {
      if (!isHere) {
        await this.#clear(image, fence);
        await this.#kit.images.copyImage(record, source, { signal, progress });
        signal.throwIfAborted();
        await this.#have(record, operation.id, fence);
      }
      if (moves) await source.remove(image, signal);
    };
    const wish = { account, kind: moves ? 'image.migrate' : 'image.copy', target: { name, version } } as const;
    const conditions = [{ key: ownKey(image), exists: isHere }, open, owner.condition];
    const begun = await this.#begin(wish, conditions, work, commit, answer);
    if (begun === undefined) throw conflict(name, version, 'copied, added or removed');
    return begun;
  }

  /** Undefined when a condition does not hold, or another operation brings the image. TOO_MANY_REQUESTS. */
  async #begin(
    wish: { readonly account: string; readonly kind: OperationRecord['kind']; readonly target: ImageName },
    conditions: readonly Condition[],
    work: Work,
    commit: CommitOnce,
    answer: (operation: OperationRecord) => Answer,
  ): Promise<Answer | undefined> {
    const key = addKey(wish.target.name, wish.target.version);
    const { operation, operations } = this.#operations.begin({
      ...wish,
      target: { ...wish.target },
      runner: this.#runner,
    });
    const { account } = wish;
    const begin = (opening: string): Promise<boolean> => {
      const add: ImageAddRecord = { operation: operation.id, account, opening };
      return this.#lease.under((leaseId) =>
        commit(
          {
            conditions: [{ key, exists: false }, { key: opening, exists: false }, ...conditions],
            operations: [
              ...operations,
              put(key, add),
              put(opening, { operation: operation.id }),
              put(runKey(wish.target), {}, leaseId),
            ],
          },
          answer(operation),
        ),
      );
    };
    const done = await withOpening(this.#kit, { kind: 'image', account }, begin);
    if (!done) return undefined;
    const cancel = new AbortController();
    const end = this.#bring(operation, work, cancel.signal).catch((error: unknown) => {
      this.#kit.log.error({ err: error, operation: operation.id }, 'bringing an image here failed to tell its end');
    });
    this.#running.set(operation.id, { runKey: runKey(wish.target), cancel, end });
    return answer(operation);
  }

  async #bring(operation: OperationRecord, work: Work, signal: AbortSignal): Promise<void> {
    const { name, version } = operation.target as ImageName & OperationRecord['target'];
    try {
      const key = addKey(name, version);
      const add = await getRecord(this.#kit.region, ImageAddRecord, key);
      if (add?.record.operation !== operation.id) throw new Overtaken();
      // Before it was known here that it runs here.
      if ((await this.#kit.region.get(cancelKey(operation.id))) !== undefined) this.#abort(operation.id);
      const fence = unchanged(key, add);
      const telling = new Telling(this.#kit, this.#operations, operation, [fence]);
      let outcome: Partial<OperationRecord> = addedOutcome;
      let isSettled = true;
      try {
        signal.throwIfAborted();
        await work(operation, fence, signal, telling.progress);
      } catch (error) {
        if (error instanceof Overtaken) throw error;
        if (signal.reason instanceof Overtaken) throw signal.reason;
        outcome = this.#failure(error, signal);
        isSettled = await this.#dropped({ name, version }, operation.id, fence);
      }
      await telling.end();
      const { operations } = await this.#operations.change(operation, outcome);
      await this.#end({ name, version }, add.record, { fence, operations, isSettled });
    } finally {
      this.#running.delete(operation.id);
    }
  }

  /** `isSettled`: its name is free for others. Overtaken. */
  async #end(
    image: ImageName,
    { operation, opening }: ImageAddRecord,
    { fence, operations, isSettled }: Ending,
  ): Promise<void> {
    const keys = [addKey(image.name, image.version), runKey(image), ...(opening === undefined ? [] : [opening])];
    const ended = [cancelKey(operation), ...(isSettled ? keys : [])];
    await this.#fenced(fence, [...operations, ...ended.map(remove)]);
  }

  async #fenced(fence: Condition, operations: readonly Operation[]): Promise<void> {
    if (!(await this.#kit.region.commit({ conditions: [fence], operations })).committed) throw new Overtaken();
  }

  /** Its bytes are here: whoever waits for the operation may use it at once. Overtaken. */
  async #have(image: ImageRecord, operation: string, fence?: Condition): Promise<void> {
    const own = { ...image, regions: [this.#kit.regionName] };
    const operations = [put(ownKey(image), own)];
    await (fence === undefined ? this.#kit.region.commit({ operations }) : this.#fenced(fence, operations));
    await this.#index.addRegion(own, operation);
  }

  /** Nothing of what an operation brought stays, unless all of it is here. Overtaken. */
  async #drop(image: ImageName, operation: string, fence: Condition): Promise<void> {
    if (!(await this.#isWhole(image))) await this.#clear(image, fence);
    await this.#index.disclaim(image, operation);
  }

  /** What is under its name is of who came before, or too late. What others add there later stays. Overtaken. */
  async #clear({ name, version }: ImageName, fence: Condition): Promise<void> {
    const digest = await this.#kit.images.findImage({ name, version });
    await this.#fenced(fence, [remove(ownKey({ name, version }))]);
    if (digest !== undefined) await this.#kit.images.removeImage({ name, version, digest });
  }

  async #isWhole(image: ImageName): Promise<boolean> {
    return (await this.#index.find(image))?.regions?.includes(this.#kit.regionName) === true;
  }

  /** False when that is left to the next start of a manager. */
  async #dropped(image: ImageName, operation: string, fence: Condition): Promise<boolean> {
    try {
      await this.#drop(image, operation, fence);
      return true;
    } catch (error) {
      this.#kit.log.warn({ err: error, ...image }, 'what an image left is to be removed; its name is taken until then');
      return false;
    }
  }

  #failure(error: unknown, signal: AbortSignal): Partial<OperationRecord> {
    if (signal.aborted) return { state: 'cancelled', error: { code: 'CANCELLED', detail: 'it was cancelled' } };
    const { code, message } = toApiError(error);
    if (code === 'INTERNAL') this.#kit.log.error({ err: error }, 'bringing an image here failed');
    return { state: 'failed', error: { code, detail: message } };
  }

  /** A blob of one that the region has. NOT_FOUND. */
  async blob(
    account: string,
    { name, version }: ImageName,
    digest: string,
    options: { readonly offset: number; readonly signal: AbortSignal },
  ): Promise<BlobBytes> {
    const record = await this.#own(account, name, version);
    try {
      return await this.#kit.images.blob(record, digest, options);
    } catch (error) {
      if (isHostError(error) && error.code === 'HOST_NOT_FOUND') throw new ApiError('NOT_FOUND', error.message);
      throw error;
    }
  }

  /** Of one that brings an image, at whichever manager. WRONG_STATE. */
  async cancel({ id, target }: OperationRecord, commit: CommitOnce, answer: Answer): Promise<Answer> {
    const key = addKey(target.name, target.version!);
    const add = await getRecord(this.#kit.region, ImageAddRecord, key);
    const transaction = { conditions: [unchanged(key, add)], operations: [put(cancelKey(id), {})] };
    if (add?.record.operation !== id || !(await commit(transaction, answer)))
      throw new ApiError('WRONG_STATE', `the operation "${id}" has finished`);
    return answer;
  }

  #abort(operationId: string): void {
    this.#running.get(operationId)?.cancel.abort();
  }

  /** The region's copy, and the name with the last of them. IMAGE_IN_USE, NOT_FOUND. Done, or not done at all, when it resolves; a crash in between is made good by `recover`. */
  async remove(account: string, name: string, version: string): Promise<void> {
    const { region } = this.#kit;
    const own = await getRecord(region, ImageRecord, ownKey({ name, version }));
    const image = await this.#own(account, name, version);
    const gate = gateKey(name, version);
    const begun = await region.commit({
      conditions: [{ key: addKey(name, version), exists: false }, unchanged(ownKey(image), own)],
      operations: [put(gate, { state: 'removing' })],
    });
    if (!begun.committed) throw conflict(name, version, 'added or removed');
    const users = await region.range(prefixRange(usePrefix(name, version)), { limit: 5 });
    if (users.entries.length > 0) {
      await this.#keep({ key: gate, modRevision: begun.revision });
      const names = users.entries.map(({ key }) => `"${keyText(key).slice(usePrefix(name, version).length)}"`);
      throw new ApiError(
        'IMAGE_IN_USE',
        `VMs were made from the image "${name}" version "${version}": ${names.join(', ')}; delete them first`,
      );
    }
    await this.#removeUnused(own?.record ?? image, own);
  }

  /** VMs use it, unless another removes it, who sees that too. */
  async #keep(gate: { readonly key: string; readonly modRevision: number }): Promise<void> {
    await this.#kit.region.commit({ conditions: [gate], operations: [put(gate.key, { state: 'kept' })] });
  }

  /**
   * The gate says `removed` only when the global store does not know the image any more. Several may be at it, and one that
   * comes late leaves alone what was added anew under the name.
   */
  async #removeUnused(image: ImageRecord, own: Kept<ImageRecord> | undefined): Promise<void> {
    await this.#kit.images.removeImage(image);
    await this.#index.removeRegion(image);
    await this.#kit.region.commit({
      conditions: [unchanged(ownKey(image), own)],
      operations: [remove(ownKey(image)), put(gateKey(image.name, image.version), { state: 'removed' })],
    });
  }

  /** After a start: ends what the last one left half done. */
  async recover(): Promise<void> {
    await this.#outbox.drain();
    await this.#adopt();
    await this.#recoverAdds();
    for (const { key, value, modRevision } of (await entriesOf(this.#kit.region, 'imageremoval/')).entries)
      if (stateOf({ value }) === 'removing') await this.#recoverRemoval({ key: keyText(key), modRevision });
  }

  async #recoverRemoval(gate: { readonly key: string; readonly modRevision: number }): Promise<void> {
    const { region } = this.#kit;
    const [, name, version] = gate.key.split('/') as [string, string, string];
    const { count } = await region.count(prefixRange(usePrefix(name, version)));
    if (count > 0) return this.#keep(gate);
    try {
      const own = await getRecord(region, ImageRecord, ownKey({ name, version }));
      const found = own === undefined ? await this.#index.find({ name, version }) : undefined;
      const image = own?.record ?? (found?.regions === undefined ? found : undefined);
      if (image !== undefined) await this.#removeUnused(image, own);
      else await region.commit({ conditions: [gate], operations: [put(gate.key, { state: 'removed' })] });
    } catch (error) {
      this.#kit.log.warn({ err: error, image: name, version }, 'an image is still to be removed; remove it again');
    }
  }

  /** Until the signal: ends what managers that died were at, and here what is cancelled elsewhere. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { region: store } = this.#kit;
    const abort = ({ key }: { readonly key: string }): void => this.#abort(key.slice(cancelPrefix.length));
    await Promise.all([
      follow(
        this.#kit,
        { store, prefix: runPrefix, schema: Mark, signal },
        { all: () => this.#recoverAdds(), put: () => {}, removed: (key) => this.#left(key) },
      ),
      follow(
        this.#kit,
        { store, prefix: cancelPrefix, schema: Mark, signal },
        { all: (cancels) => cancels.forEach(abort), put: abort, removed: () => {} },
      ),
    ]);
  }

  /** By whoever was at it: it has ended, or that manager is taken for dead, which may be this one. */
  async #left(key: string): Promise<void> {
    // The next one may be at it by now.
    if ((await this.#kit.region.get(key)) !== undefined) return;
    const own = this.#running.values().find((one) => one.runKey === key);
    own?.cancel.abort(new Overtaken());
    await own?.end;
    await this.#recoverAdds();
  }

  #recoverAdds(): Promise<void> {
    const recover = async (): Promise<void> => {
      for (const entry of (await entriesOf(this.#kit.region, imageAddPrefix)).entries) {
        const add = kept(ImageAddRecord, entry);
        if (this.#running.has(add.record.operation)) continue;
        try {
          await this.#recoverAdd(add);
        } catch (error) {
          this.#kit.log.warn({ err: error, key: add.key }, 'what an image left is ended when a manager starts next');
        }
      }
    };
    const after = this.#recovering.then(recover);
    this.#recovering = after.catch(() => {});
    return after;
  }

  /** Ends what the manager left that began to bring an image, where none is at it. */
  async #recoverAdd({ key, record, modRevision }: Kept<ImageAddRecord>): Promise<void> {
    const { region } = this.#kit;
    const { operation: id } = record;
    const [, name, version] = key.split('/') as [string, string, string];
    const image = { name, version };
    const taken = await this.#lease.under((leaseId) =>
      region.commit({
        conditions: [
          { key, modRevision },
          { key: runKey(image), exists: false },
        ],
        operations: [put(key, record), put(runKey(image), {}, leaseId)],
      }),
    );
    if (!taken.committed) return;
    const found = await this.#operations.find(id);
    const fence = { key, modRevision: taken.revision };
    const isHere = await this.#isHere(image, id);
    if (!isHere) await this.#drop(image, id, fence);
    const error = { code: 'UNAVAILABLE', detail: 'the manager stopped meanwhile; ask for it again' };
    // The other region was not asked to remove its copy, or not heard.
    const isDone = isHere && found?.record.kind !== 'image.migrate';
    const outcome = isDone ? addedOutcome : ({ state: 'failed', error } as const);
    const isOpen = found !== undefined && !isFinished(found.record);
    const { operations } = isOpen ? await this.#operations.change(found.record, outcome) : { operations: [] };
    await this.#end(image, record, { fence, operations, isSettled: true });
  }

  /** Whether all of it is here, and under its name. */
  async #isHere(image: ImageName, operation: string): Promise<boolean> {
    const own = await getRecord(this.#kit.region, ImageRecord, ownKey(image));
    if (own === undefined) return false;
    try {
      await this.#index.addRegion(own.record, operation);
      return true;
    } catch (error) {
      // Its name was given to another meanwhile.
      if (error instanceof ApiError && error.code === 'CONFLICT') return false;
      throw error;
    }
  }

  /** Images of before regions kept them are the region's that has their bytes. */
  async #adopt(): Promise<void> {
    for (const { record } of await this.#index.list()) {
      if (record.regions !== undefined) continue;
      const facts = await this.#kit.images.adoptImage(record);
      if (facts === undefined) continue;
      await this.#have({ ...record, ...facts }, '');
      await this.#kit.region.commit({ operations: [remove(`hostimage/${record.name}/${record.version}`)] });
    }
  }

  /** Cancels what runs and waits for its end. */
  async close(): Promise<void> {
    const running = [...this.#running.values()];
    for (const { cancel } of running) cancel.abort();
    await Promise.all(running.map(({ end }) => end));
  }

  /** By what the region has; where that is none, of before regions kept what they have. */
  async #newest(account: string, name: string): Promise<string | undefined> {
    const { entries } = await entriesOf(this.#kit.region, `${ownImagePrefix}${name}/`);
    const newestOf = (images: readonly Kept<ImageRecord>[]): string | undefined =>
      images
        .filter(({ record }) => record.account === account)
        .toSorted((a, b) => b.record.createdAtMs - a.record.createdAtMs || b.createRevision - a.createRevision)[0]
        ?.record.version;
    const own = newestOf(entries.map((entry) => kept(ImageRecord, entry)));
    return own ?? newestOf((await this.#index.list(name)).filter(({ record }) => record.regions === undefined));
  }

  async #highestNumber(name: string): Promise<number> {
    const [added, adding] = await Promise.all([
      this.#index.list(name),
      entriesOf(this.#kit.region, `imageadd/${name}/`),
    ]);
    const versions = [
      ...added.map(({ record }) => record.version),
      ...adding.entries.map(({ key }) => keyText(key).split('/')[2]!),
    ];
    return Math.max(0, ...versions.filter((version) => /^\d{1,9}$/.test(version)).map(Number));
  }
}

/** That something is so: all there is to it is its key. */
const Mark = z.looseObject({});

const stateOf = ({ value }: { readonly value: Uint8Array }): unknown =>
  (JSON.parse(new TextDecoder().decode(value)) as { readonly state?: unknown }).state;

const conflict = (name: string, version: string, what: string): ApiError =>
  new ApiError('CONFLICT', `the image "${name}" version "${version}" is being ${what}; try again in a moment`, {
    retryAfterSeconds: 1,
  });

const noImage = (name: string, version: string | undefined): ApiError =>
  new ApiError(
    'NOT_FOUND',
    version === undefined ? `there is no image "${name}"` : `there is no image "${name}" version "${version}"`,
  );

const taken = (name: string, version: string): ApiError =>
  new ApiError(
    'NAME_TAKEN',
    `the image "${name}" has a version "${version}" already, or it is being added; give another version`,
  );
