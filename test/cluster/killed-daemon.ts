/**
 * A daemon that is to be killed: `killed-daemon.ts DIRECTORY [STAGE]`. The API over real stores, and trees and boots as the host
 * keeps them; no process is started. Says `up` when it listens. A request with a key that has got as far as STAGE goes no
 * further, and is said to be `held`: `begun` (nothing happened yet), `effect` (nothing more happened), `done` (it was not
 * answered).
 */
import { join } from 'node:path';
import { pino } from 'pino';
import { listen, Manager } from '../../src/cluster/index.ts';
import { Boots } from '../../src/host/boots.ts';
import type { TreePort, VmRef } from '../../src/records/index.ts';
import { IdempotencyRecord } from '../../src/records/index.ts';
import { openStores, type Store } from '../../src/store/index.ts';
import { tell } from '../store/tell.ts';
import { TestHost } from './host-on-authority.ts';
import { keptTree } from './kept-tree.ts';

export const stages = ['begun', 'effect', 'done'] as const;
export type Stage = (typeof stages)[number];

type Transaction = Parameters<Store['commit']>[0];

const stageOf = ({ operations }: Transaction): Stage | undefined => {
  for (const operation of operations) {
    if (operation.type !== 'put') continue;
    const key = String(operation.key);
    if (/^(tree\/[^/]+\/answered|boot)\//.test(key)) return 'effect';
    if (key.startsWith('idempotency/'))
      return IdempotencyRecord.parse(JSON.parse(new TextDecoder().decode(operation.value))).state;
  }
  return undefined;
};

const held = (store: Store, stage: Stage): Store =>
  new Proxy(store, {
    get: (target, name) => {
      const value = Reflect.get(target, name) as unknown;
      if (name !== 'commit') return typeof value === 'function' ? value.bind(target) : value;
      return async (transaction: Transaction) => {
        const outcome = await target.commit(transaction);
        if (!outcome.committed || stageOf(transaction) !== stage) return outcome;
        tell('held');
        return new Promise(() => {});
      };
    },
  });

class Daemon extends TestHost {
  readonly #region: Store;
  readonly #trees = new Map<string, Promise<TreePort>>();
  readonly #boots = new Map<string, Promise<Boots>>();

  constructor(region: Store) {
    super();
    this.#region = region;
    this.portOf = ({ id }) => {
      const tree = this.#trees.get(id) ?? keptTree(region, id);
      this.#trees.set(id, tree);
      return new Proxy({} as TreePort, {
        get:
          (_, name) =>
          async (...args: unknown[]) => {
            const port = await tree;
            return Reflect.apply(port[name as keyof TreePort] as (...all: unknown[]) => unknown, port, args);
          },
      });
    };
  }

  override async boot({ name }: VmRef, { once }: Parameters<TestHost['boot']>[1] = {}) {
    const opened = this.#boots.get(name) ?? this.#openBoots(name);
    this.#boots.set(name, opened);
    const { bootId, number } = await (await opened).commit({ bootId: crypto.randomUUID(), reason: 'told', once });
    return { bootId, number };
  }

  async #openBoots(name: string): Promise<Boots> {
    const boots = new Boots(this.#region, name, 0);
    await boots.last();
    return boots;
  }
}

if (import.meta.main) {
  const [directory, stage] = process.argv.slice(2) as [string, Stage | undefined];
  const stores = await openStores({ directory: join(directory, 'stores'), keyFile: join(directory, 'key') });
  const region = stage === undefined ? stores.region : held(stores.region, stage);
  const host = new Daemon(region);
  const log = pino({ level: 'silent' });
  const manager = await Manager.open({ region, global: stores.global, host, images: host, log });
  void host.obey(region, new AbortController().signal);
  await listen({ manager, version: '0.1.0', socketPath: join(directory, 'api.sock') });
  tell('up');
}
