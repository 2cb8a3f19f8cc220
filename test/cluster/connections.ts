/** One region's stores, as several managers have them. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createKeyFile, openEtcdStores, openStores, type Stores } from '../../src/store/index.ts';
import type { EtcdCluster } from '../etcd/cluster.ts';

export class Connections implements AsyncDisposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'porthole-connections-'));
  readonly #open: (directory: string) => Promise<Stores>;
  readonly #opened = new Set<Stores>();

  constructor(open: (directory: string) => Promise<Stores>) {
    this.#open = open;
  }

  /** For one manager; it ends with all others. */
  async connect(): Promise<Stores> {
    const stores = await this.#open(this.#directory);
    this.#opened.add(stores);
    return stores;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const stores of this.#opened) await stores.close();
    rmSync(this.#directory, { recursive: true });
  }
}

/** All have the same stores, as the managers of one process would. */
export const inSqlite = (): Connections => {
  let stores: Promise<Stores> | undefined;
  return new Connections(async (directory) => {
    const keyFile = join(directory, 'key');
    if (stores === undefined) createKeyFile(keyFile);
    return await (stores ??= openStores({ directory: join(directory, 'stores'), keyFile }));
  });
};

/** Each has its own connections to all members. */
export const inEtcd = ({ endpoints }: EtcdCluster, prefix: string): Connections =>
  new Connections((directory) => openEtcdStores({ endpoints, prefix, keyFile: join(directory, 'key') }));
