/**
 * Brings what the global store must know of the region's transactions there. No transaction spans the two stores: who
 * changes the region puts an entry `outbox/…` in the same transaction, and this applies entries in the order in which the
 * region committed them. How far it came is kept with the effect, in one transaction of the global store and under a
 * condition, so that a crash at any point, or a second manager, neither loses, repeats nor reorders one.
 */

import { OutboxReadRecord, OutboxRecord } from '../records/index.ts';
import { type Operation, prefixRange, StoreError } from '../store/index.ts';
import { entriesOf, getRecord, type Kit, kept, newId, pause, put, remove } from './kit.ts';
import { isOfBefore, realign } from './realign.ts';

const prefix = 'outbox/';
/** Operations of one transaction of the global store; an entry has at most `entryOperations`. */
const batchOperations = 80;
export const entryOperations = 20;
const retryMs = 500;

/** How far a region's was read. */
export const outboxReadKey = (region: string): string => `outboxread/${region}`;

/** The region's half of it: an operation for the transaction that has an effect. */
export const outboxEntry = (kit: Kit, operations: OutboxRecord['operations']): Operation =>
  put(`${prefix}${newId(kit, 'e')}`, { operations } satisfies OutboxRecord);

export class Outbox {
  readonly #kit: Kit;
  readonly #readKey: string;
  #draining: Promise<void> = Promise.resolve();

  constructor(kit: Kit) {
    this.#kit = kit;
    this.#readKey = outboxReadKey(kit.regionName);
  }

  /** Until the signal: applies what comes. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { region, log } = this.#kit;
    while (!signal.aborted) {
      try {
        const from = (await region.revision()) + 1;
        await this.#align();
        await this.drain();
        for await (const { events } of region.watch(prefixRange(prefix), { from, signal }))
          if (events.some(({ type }) => type === 'put')) await this.drain();
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof StoreError && error.code === 'STORE_COMPACTED'))
          log.error({ err: error }, 'applying the outbox failed; trying again');
        await pause(retryMs, signal);
      }
    }
  }

  /** After a restore of one of the stores: whoever follows the region's entries only would not see what is missing. */
  async #align(): Promise<void> {
    for (;;) {
      const read = await getRecord(this.#kit.global, OutboxReadRecord, this.#readKey);
      if (!isOfBefore(this.#kit, read)) return;
      await realign(this.#kit, this.#readKey, read);
    }
  }

  /** Everything that the region committed before this call is in the global store when it resolves. */
  drain(): Promise<void> {
    const turn = this.#draining.catch(() => {}).then(() => this.#drainNow());
    this.#draining = turn;
    // Whoever waits for this very turn is told; nobody has to.
    turn.catch(() => {});
    return turn;
  }

  async #drainNow(): Promise<void> {
    for (;;) {
      const entries = (await entriesOf(this.#kit.region, prefix)).entries
        .map((entry) => kept(OutboxRecord, entry))
        .toSorted((a, b) => a.createRevision - b.createRevision);
      if (entries.length === 0) return;
      const done = await this.#apply(entries);
      for (let i = 0; i < done.length; i += 100)
        await this.#kit.region.commit({ operations: done.slice(i, i + 100).map(remove) });
    }
  }

  /** @returns keys of entries whose effect is in the global store */
  async #apply(entries: readonly { key: string; createRevision: number; record: OutboxRecord }[]): Promise<string[]> {
    const { global, region } = this.#kit;
    const read = await getRecord(global, OutboxReadRecord, this.#readKey);
    if (read === undefined || isOfBefore(this.#kit, read)) {
      await realign(this.#kit, this.#readKey, read);
      return [];
    }
    const position = read.record.revision;
    const done: string[] = [];
    const operations = new Map<string, Operation>();
    let revision = position;
    for (const entry of entries) {
      if (entry.createRevision > position) {
        if (operations.size + entry.record.operations.length > batchOperations) break;
        for (const operation of entry.record.operations)
          operations.set(
            operation.key,
            operation.type === 'put' ? { ...operation, value: new TextEncoder().encode(operation.value) } : operation,
          );
        ({ createRevision: revision } = entry);
      }
      done.push(entry.key);
    }
    if (revision === position) return done;
    const outcome = await global.commit({
      conditions: [{ key: this.#readKey, modRevision: read.modRevision }],
      operations: [
        ...operations.values(),
        put(this.#readKey, { epoch: region.epoch, globalEpoch: global.epoch, revision }),
      ],
    });
    // Another manager was faster: what it did is seen in the next round.
    return outcome.committed ? done : [];
  }
}
