/**
 * Accounts: records of the global store, of which each region keeps a copy that it works by, so that it goes on when it is cut
 * off. A copy is made anew from what stands in the global store, never from what was heard, so that two managers cannot set it
 * back.
 */
import {
  AccountRecord,
  accountKey,
  defaultAccount,
  ImageAddRecord,
  ImageRecord,
  KeyRecord,
  LeavingRecord,
  OperationRecord,
  RegionRecord,
} from '../records/index.ts';
import { type Condition, keyText, limits, prefixRange } from '../store/index.ts';
import { follow } from './follow.ts';
import { type Answer, type CommitOnce, idempotencyPrefix } from './idempotency.ts';
import { imageAddPrefix } from './image-index.ts';
import {
  entriesOf,
  getRecord,
  type Kept,
  type Kit,
  kept,
  knownOf,
  pagesOf,
  pause,
  put,
  remove,
  unchanged,
} from './kit.ts';
import { isFinished, operationPrefix } from './operations.ts';
import { ApiError } from './problem.ts';
import { slotsPrefix } from './slots.ts';

const prefix = 'account/';
const leavingKey = (account: string, region: string): string => `leaving/${account}/${region}`;
/** How long regions have to say what they have of an account, and how often that is looked at. */
const leavingMs = 5_000;
const lookMs = 50;
/** Of one transaction, beside its condition. */
const keysAtOnce = limits.operations - 1;

export type Quotas = AccountRecord['quotas'];

export class Accounts {
  readonly #kit: Kit;

  constructor(kit: Kit) {
    this.#kit = kit;
  }

  /** Until the signal: keeps the region's copies. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const nameOf = (key: string): string => key.slice(prefix.length);
    /** Also what a manager that died had not done. */
    const forget = async (name: string): Promise<void> => {
      await this.#removeKeys(name);
      await this.#copy(name);
    };
    await follow(
      this.#kit,
      { store: this.#kit.global, prefix, schema: AccountRecord, signal },
      {
        all: async (accounts) => {
          const copies = (await entriesOf(this.#kit.region, prefix)).entries.map((entry) => kept(AccountRecord, entry));
          const names = new Set([...accounts, ...copies].map(({ record }) => record.name));
          const there = new Set(accounts.map(({ record }) => record.name));
          for (const name of names) await (there.has(name) ? this.#copy(name) : forget(name));
        },
        put: ({ record }) => this.#copy(record.name),
        removed: (key) => forget(nameOf(key)),
      },
    );
  }

  /** The account that everything belongs to where there are no others. */
  async ensureDefault(): Promise<void> {
    const record = this.#newRecord(defaultAccount, {});
    const key = accountKey(defaultAccount);
    await this.#kit.global.commit({ conditions: [{ key, exists: false }], operations: [put(key, record)] });
    await this.#copy(defaultAccount);
  }

  #newRecord(name: string, quotas: Quotas): AccountRecord {
    return { name, state: 'active', quotas, createdAtMs: this.#kit.wallMs() };
  }

  /** Has the region's copy say what the global store says. The copy is read first: a later write of another then stands. */
  async #copy(name: string): Promise<void> {
    const { region, global } = this.#kit;
    const key = accountKey(name);
    for (;;) {
      const copy = await region.get(key);
      const original = await global.get(key);
      const condition = unchanged(key, copy);
      if (
        copy !== undefined &&
        (original === undefined || !isSame(kept(AccountRecord, copy), kept(AccountRecord, original)))
      )
        await this.#removeTraces(name, condition);
      if (original === undefined) {
        if (copy === undefined) return;
        if ((await region.commit({ conditions: [condition], operations: [remove(key)] })).committed) return;
        continue;
      }
      const account = kept(AccountRecord, original);
      if (copy === undefined || JSON.stringify(kept(AccountRecord, copy).record) !== JSON.stringify(account.record)) {
        const written = await region.commit({ conditions: [condition], operations: [put(key, account.record)] });
        if (!written.committed) continue;
      }
      if (account.record.state === 'leaving') await this.#tellLeaving(account);
      return;
    }
  }

  /** The copy says so, and what makes VMs and images has a condition on it: what is there now is all that there will be. */
  async #tellLeaving({ record: { name }, modRevision, key }: Kept<AccountRecord>): Promise<void> {
    const { region, global, regionName } = this.#kit;
    const { count: vms } = await region.count(prefixRange(slotsPrefix(name)));
    const adding = (await entriesOf(region, imageAddPrefix)).entries.map((entry) => kept(ImageAddRecord, entry));
    const images = adding.filter(({ record }) => record.account === name).length;
    await global.commit({
      conditions: [{ key, modRevision }],
      operations: [put(leavingKey(name, regionName), { vms, images, atRevision: modRevision } satisfies LeavingRecord)],
    });
  }

  /** For what is made for it: the condition fails when the account changes meanwhile. NOT_FOUND, WRONG_STATE. */
  async forUse(name: string): Promise<{ readonly record: AccountRecord; readonly condition: Condition }> {
    const found = await getRecord(this.#kit.region, AccountRecord, accountKey(name));
    if (found === undefined) throw noAccount(name);
    if (found.record.state === 'leaving') throw isLeaving(name);
    return { record: found.record, condition: { key: found.key, modRevision: found.modRevision } };
  }

  async list(): Promise<AccountRecord[]> {
    const { entries } = await entriesOf(this.#kit.global, prefix);
    return entries.map((entry) => kept(AccountRecord, entry).record);
  }

  /** NOT_FOUND. */
  async get(name: string): Promise<Kept<AccountRecord>> {
    const found = await getRecord(this.#kit.global, AccountRecord, accountKey(name));
    if (found === undefined) throw noAccount(name);
    return found;
  }

  /** NAME_TAKEN. */
  async create(
    { name, quotas, mayUseHostNetworks }: Pick<AccountRecord, 'name' | 'quotas' | 'mayUseHostNetworks'>,
    commit: CommitOnce,
    answer: (account: AccountRecord) => Answer,
  ): Promise<Answer> {
    const record = { ...this.#newRecord(name, quotas), ...(mayUseHostNetworks && { mayUseHostNetworks }) };
    const key = accountKey(name);
    const told = answer(record);
    if (!(await commit({ conditions: [{ key, exists: false }], operations: [put(key, record)] }, told)))
      throw new ApiError('NAME_TAKEN', `there is an account "${name}" already; choose another name`);
    // So that it can be used at once, here at least.
    await this.#copy(name);
    return told;
  }

  /** NOT_FOUND, CONFLICT. */
  async setQuotas(
    name: string,
    quotas: Quotas,
    commit: CommitOnce,
    answer: (account: AccountRecord) => Answer,
  ): Promise<Answer> {
    const { key, record, modRevision } = await this.get(name);
    const changed: AccountRecord = { ...record, quotas };
    const told = answer(changed);
    if (!(await commit({ conditions: [{ key, modRevision }], operations: [put(key, changed)] }, told)))
      throw new ApiError('CONFLICT', `the account "${name}" was changed at the same time; try again`);
    await this.#copy(name);
    return told;
  }

  /**
   * Deletes an account that owns no VM in any region and no image, and its keys with it. Nothing is made for it while the
   * regions are asked; what was begun and not ended, the same request ends. IN_USE, UNAVAILABLE, NOT_FOUND.
   */
  async delete(name: string): Promise<void> {
    const { global } = this.#kit;
    if (name === defaultAccount) throw new ApiError('WRONG_STATE', `the account "${name}" stays: it has the cluster`);
    const begun = await this.#setState(name, 'leaving');
    try {
      // In this order: what was on its way is among the images then, or was seen on it.
      await this.#checkRegions(name, begun.modRevision);
      await this.#checkImages(name);
    } catch (error) {
      await this.#setState(name, 'active');
      throw error;
    }
    const marks = (await entriesOf(global, `leaving/${name}/`)).entries.map((entry) => kept(LeavingRecord, entry).key);
    const outcome = await global.commit({
      conditions: [{ key: begun.key, modRevision: begun.modRevision }],
      operations: [begun.key, ...marks].map(remove),
    });
    if (!outcome.committed)
      throw new ApiError('CONFLICT', `the account "${name}" was changed at the same time; try again`);
    // Then the copy: while it is there, a manager that starts ends what this one leaves.
    await this.#removeKeys(name);
    await this.#copy(name);
  }

  async #setState(name: string, state: AccountRecord['state']): Promise<Kept<AccountRecord>> {
    for (;;) {
      const found = await this.get(name);
      if (found.record.state !== state) {
        const { key, modRevision } = found;
        const operations = [put(key, { ...found.record, state })];
        if (!(await this.#kit.global.commit({ conditions: [{ key, modRevision }], operations })).committed) continue;
      }
      await this.#copy(name);
      return this.get(name);
    }
  }

  async #checkImages(name: string): Promise<void> {
    const { entries } = await entriesOf(this.#kit.global, 'image/');
    const own = entries.map((entry) => kept(ImageRecord, entry).record).filter(({ account }) => account === name);
    if (own.length > 0)
      throw new ApiError('IN_USE', `the account "${name}" has ${own.length} versions of images; remove them first`);
  }

  async #checkRegions(name: string, revision: number): Promise<void> {
    const { global } = this.#kit;
    const { entries } = await entriesOf(global, 'region/');
    const regions = entries.map((entry) => kept(RegionRecord, entry).record.name);
    const untilMs = performance.now() + leavingMs;
    for (const region of regions) {
      for (;;) {
        const said = await getRecord(global, LeavingRecord, leavingKey(name, region));
        if (said !== undefined && said.record.atRevision >= revision) {
          const { vms, images } = said.record;
          if (vms === 0 && images === 0) break;
          throw new ApiError(
            'IN_USE',
            vms > 0
              ? `the account "${name}" has ${vms} VMs in the region "${region}"; delete them first`
              : `the account "${name}" has ${images} images on their way to the region "${region}"; cancel that, or remove them then`,
          );
        }
        if (performance.now() > untilMs)
          throw new ApiError(
            'UNAVAILABLE',
            `the region "${region}" does not say what the account "${name}" has there; delete it when the region is connected`,
          );
        await pause(lookMs);
      }
    }
  }

  /** What the region keeps for a day of an account that is gone: nothing is told of it to whoever has its name next. */
  async #removeTraces(name: string, condition: Condition): Promise<void> {
    const { region } = this.#kit;
    const keys = (await entriesOf(region, idempotencyPrefix(name))).entries.map(({ key }) => keyText(key));
    for await (const { entries } of pagesOf(region, operationPrefix))
      for (const { key, record } of knownOf(this.#kit, OperationRecord, entries))
        if (record.account === name && isFinished(record)) keys.push(key);
    for (let i = 0; i < keys.length; i += keysAtOnce)
      await region.commit({ conditions: [condition], operations: keys.slice(i, i + keysAtOnce).map(remove) });
  }

  /** And answers to its requests, of an account that is gone, unless another has its name by now. */
  async #removeKeys(name: string): Promise<void> {
    const { global } = this.#kit;
    const { entries } = await entriesOf(global, 'key/');
    const own = knownOf(this.#kit, KeyRecord, entries).filter(({ record }) => record.account === name);
    const answers = (await entriesOf(global, idempotencyPrefix(name))).entries.map(({ key }) => keyText(key));
    const keys = [...own.map(({ key }) => key), ...answers];
    const conditions = [{ key: accountKey(name), exists: false }];
    for (let i = 0; i < keys.length; i += keysAtOnce) {
      const operations = keys.slice(i, i + keysAtOnce).map(remove);
      if (!(await global.commit({ conditions, operations })).committed) return;
    }
  }
}

/** Whether it is not another that has been given the name meanwhile. */
const isSame = (one: Kept<AccountRecord>, other: Kept<AccountRecord>): boolean =>
  one.record.createdAtMs === other.record.createdAtMs;

export const noAccount = (name: string): ApiError => new ApiError('NOT_FOUND', `there is no account "${name}"`);

export const isLeaving = (name: string): ApiError =>
  new ApiError('WRONG_STATE', `the account "${name}" is being deleted, so nothing is made for it`);
