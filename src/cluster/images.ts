/** Images: records in the global store, bytes on the host. A version of an image never changes. */

import type { ImageRequest } from '../records/index.ts';
import { ImageRecord, type OperationRecord } from '../records/index.ts';
import { type Condition, keyText, prefixRange } from '../store/index.ts';
import type { Accounts } from './accounts.ts';
import type { Answer, CommitOnce } from './idempotency.ts';
import { entriesOf, getRecord, type Kit, kept, put, remove } from './kit.ts';
import type { Operations } from './operations.ts';
import { type Outbox, outboxEntry } from './outbox.ts';
import { ApiError, toApiError } from './problem.ts';

const imageKey = (name: string, version: string): string => `image/${name}/${version}`;
/** Changes whenever the image is removed, so that no VM is made from one that goes at the same time. It stays. */
const gateKey = (name: string, version: string): string => `imageremoval/${name}/${version}`;
/** Who is adding it. */
const addKey = (name: string, version: string): string => `imageadd/${name}/${version}`;
const usePrefix = (name: string, version: string): string => `imageuse/${name}/${version}/`;

/** Between two writes of an operation's progress. */
const progressMs = 500;

const addedOutcome: Partial<OperationRecord> = { state: 'succeeded', step: '', done: 1, total: 1 };

export class Images {
  readonly #kit: Kit;
  readonly #operations: Operations;
  readonly #outbox: Outbox;
  readonly #accounts: Accounts;
  /** Of this start of the manager: work of another one is not under way any more. */
  readonly #runner: string;
  readonly #running = new Map<string, { readonly cancel: AbortController; readonly end: Promise<void> }>();

  constructor(
    kit: Kit,
    parts: { readonly operations: Operations; readonly outbox: Outbox; readonly accounts: Accounts },
  ) {
    this.#kit = kit;
    this.#operations = parts.operations;
    this.#outbox = parts.outbox;
    this.#accounts = parts.accounts;
    this.#runner = kit.randomBytes(8).toString('hex');
  }

  async list(account: string): Promise<ImageRecord[]> {
    const { entries } = await entriesOf(this.#kit.global, 'image/');
    return entries.map((entry) => kept(ImageRecord, entry).record).filter((image) => image.account === account);
  }

  async get(account: string, name: string, version: string): Promise<ImageRecord> {
    const found = await getRecord(this.#kit.global, ImageRecord, imageKey(name, version));
    if (found === undefined || found.record.account !== account) throw noImage(name, version);
    return found.record;
  }

  /**
   * For a VM that is made from it: the condition fails when the image is removed meanwhile. Without a version: the one added
   * last.
   */
  async forUse(
    account: string,
    { name, version }: { readonly name: string; readonly version: string | undefined },
  ): Promise<{ readonly record: ImageRecord; readonly condition: Condition }> {
    const wanted = version ?? (await this.#newest(account, name));
    if (wanted === undefined) throw noImage(name, undefined);
    const condition = await this.#isOpen(name, wanted);
    return { record: await this.get(account, name, wanted), condition };
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
    const key = addKey(name, version);
    const owner = await this.#accounts.forUse(account);
    const open = await this.#isOpen(name, version);
    if ((await this.#kit.global.get(imageKey(name, version))) !== undefined) throw taken(name, version);
    const { operation, operations } = this.#operations.begin({
      account,
      kind: 'image.add',
      target: { name, version },
      runner: this.#runner,
    });
    const done = await commit(
      {
        conditions: [{ key, exists: false }, open, owner.condition],
        operations: [...operations, put(key, { operation: operation.id })],
      },
      answer(operation),
    );
    if (!done) throw taken(name, version);
    const cancel = new AbortController();
    const end = this.#add(operation, { ...request, version }, cancel.signal).catch((error: unknown) => {
      this.#kit.log.error({ err: error, operation: operation.id }, 'adding an image failed to tell its end');
    });
    this.#running.set(operation.id, { cancel, end });
    return answer(operation);
  }

  async #add(operation: OperationRecord, request: ImageRequest, signal: AbortSignal): Promise<void> {
    const { images, wallMs } = this.#kit;
    let told = 0;
    let telling: Promise<unknown> = Promise.resolve();
    try {
      let outcome: Partial<OperationRecord>;
      let image: ImageRecord | undefined;
      try {
        const facts = await images.addImage(request, {
          signal,
          progress: ({ step, done, total }) => {
            const now = wallMs();
            if (now - told < progressMs && now >= told) return;
            told = now;
            telling = this.#tellProgress(telling, operation, { step, done, ...(total ? { total } : {}) });
            // A progress that could not be written is made up for by the end, whose failure is told.
            telling.catch(() => {});
          },
        });
        const { name, version } = request;
        const { digest, sizeBytes, virtualSizeBytes } = facts;
        image = {
          name,
          version,
          account: operation.account,
          digest,
          sizeBytes,
          virtualSizeBytes,
          createdAtMs: wallMs(),
        };
        outcome = addedOutcome;
      } catch (error) {
        const { code, message } = toApiError(error);
        if (code === 'INTERNAL' && !signal.aborted) this.#kit.log.error({ err: error }, 'adding an image failed');
        outcome = signal.aborted
          ? { state: 'cancelled', error: { code: 'CANCELLED', detail: 'it was cancelled' } }
          : { state: 'failed', error: { code, detail: message } };
      }
      await telling.catch(() => {});
      await this.#finish(operation, outcome, image);
    } finally {
      this.#running.delete(operation.id);
    }
  }

  async #tellProgress(
    before: Promise<unknown>,
    operation: OperationRecord,
    change: Partial<OperationRecord>,
  ): Promise<void> {
    await before;
    const { operations } = await this.#operations.change(operation, change);
    await this.#kit.region.commit({ operations });
  }

  /** The image appears first: whoever waits for the operation may use it at once. */
  async #finish(
    operation: OperationRecord,
    outcome: Partial<OperationRecord>,
    image: ImageRecord | undefined,
  ): Promise<void> {
    const { name, version } = operation.target;
    if (image !== undefined) {
      const entry = outboxEntry(this.#kit, [
        { type: 'put', key: imageKey(name, version!), value: JSON.stringify(image) },
      ]);
      await this.#kit.region.commit({ operations: [entry] });
      await this.#outbox.drain();
    }
    const { operations } = await this.#operations.change(operation, outcome);
    await this.#kit.region.commit({ operations: [...operations, remove(addKey(name, version!))] });
  }

  /** False when it does not run here, or not any more. */
  runs(operationId: string): boolean {
    return this.#running.has(operationId);
  }

  cancel(operationId: string): void {
    this.#running.get(operationId)?.cancel.abort();
  }

  /** IMAGE_IN_USE, NOT_FOUND. Done, or not done at all, when it resolves; a crash in between is made good by `recover`. */
  async remove(account: string, name: string, version: string): Promise<void> {
    await this.get(account, name, version);
    const begun = await this.#kit.region.commit({
      conditions: [{ key: addKey(name, version), exists: false }],
      operations: [put(gateKey(name, version), { state: 'removing' })],
    });
    if (!begun.committed) throw conflict(name, version, 'added');
    const users = await this.#kit.region.range(prefixRange(usePrefix(name, version)), { limit: 5 });
    if (users.entries.length > 0) {
      await this.#kit.region.commit({ operations: [put(gateKey(name, version), { state: 'kept' })] });
      const names = users.entries.map(({ key }) => `"${keyText(key).slice(usePrefix(name, version).length)}"`);
      throw new ApiError(
        'IMAGE_IN_USE',
        `VMs were made from the image "${name}" version "${version}": ${names.join(', ')}; delete them first`,
      );
    }
    await this.#removeUnused(name, version);
  }

  /** The gate says `removed` only when the global store does not know the image any more. */
  async #removeUnused(name: string, version: string): Promise<void> {
    await this.#kit.images.removeImage({ name, version });
    await this.#kit.region.commit({
      operations: [outboxEntry(this.#kit, [{ type: 'delete', key: imageKey(name, version) }])],
    });
    await this.#outbox.drain();
    await this.#kit.region.commit({ operations: [put(gateKey(name, version), { state: 'removed' })] });
  }

  /** After a start: ends what the last one left half done. */
  async recover(): Promise<void> {
    await this.#outbox.drain();
    for (const { key, value } of (await entriesOf(this.#kit.region, 'imageadd/')).entries) {
      const { operation: id } = JSON.parse(new TextDecoder().decode(value)) as { operation: string };
      if (this.#running.has(id)) continue;
      const found = await this.#operations.find(id);
      const [, name, version] = keyText(key).split('/') as [string, string, string];
      const isThere = (await this.#kit.global.get(imageKey(name, version))) !== undefined;
      const error = { code: 'UNAVAILABLE', detail: 'the manager stopped meanwhile; add the image again' };
      const outcome = isThere ? addedOutcome : ({ state: 'failed', error } as const);
      const change =
        found?.record.state === 'running' ? await this.#operations.change(found.record, outcome) : undefined;
      await this.#kit.region.commit({ operations: [...(change?.operations ?? []), remove(keyText(key))] });
    }
    for (const { key, value } of (await entriesOf(this.#kit.region, 'imageremoval/')).entries) {
      if (stateOf({ value }) !== 'removing') continue;
      const [, name, version] = keyText(key).split('/') as [string, string, string];
      const { count } = await this.#kit.region.count(prefixRange(usePrefix(name, version)));
      if (count === 0)
        await this.#removeUnused(name, version).catch((error: unknown) =>
          this.#kit.log.warn({ err: error, image: name, version }, 'an image is still to be removed; remove it again'),
        );
      else await this.#kit.region.commit({ operations: [put(keyText(key), { state: 'kept' })] });
    }
  }

  /** Cancels what runs and waits for its end. */
  async close(): Promise<void> {
    const running = [...this.#running.values()];
    for (const { cancel } of running) cancel.abort();
    await Promise.all(running.map(({ end }) => end));
  }

  async #newest(account: string, name: string): Promise<string | undefined> {
    const { entries } = await entriesOf(this.#kit.global, `image/${name}/`);
    const own = entries.map((entry) => kept(ImageRecord, entry)).filter(({ record }) => record.account === account);
    return own.toSorted((a, b) => b.createRevision - a.createRevision)[0]?.record.version;
  }

  async #highestNumber(name: string): Promise<number> {
    const [added, adding] = await Promise.all([
      entriesOf(this.#kit.global, `image/${name}/`),
      entriesOf(this.#kit.region, `imageadd/${name}/`),
    ]);
    const versions = [...added.entries, ...adding.entries].map(({ key }) => keyText(key).split('/')[2]!);
    return Math.max(0, ...versions.filter((version) => /^\d{1,9}$/.test(version)).map(Number));
  }
}

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
