/** What every daemon with an API needs. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync } from 'node:fs';
import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { type ManagerOptions, readSite, type Site, type SitePack, type TcpOptions } from '../cluster/index.ts';
import type { ImageLibraryOptions } from '../images/index.ts';
import { builtConsole } from '../parts/index.ts';
import {
  createKeyFile,
  type EtcdStoresOptions,
  mustBeWhole,
  openEtcdStores,
  openStores,
  type Stores,
} from '../store/index.ts';
import { mustBeReachable } from './this-machine.ts';
import { readTls, type TlsFiles } from './tls-files.ts';

/** Where the API is on TCP. */
export interface ApiAddress {
  readonly host: string;
  readonly port: number;
  readonly tls?: TlsFiles | undefined;
  readonly names: readonly string[];
}

export const toTcpOptions = ({ host, port, names, tls }: ApiAddress): TcpOptions => ({
  host,
  port,
  names,
  ...(tls && { tls: readTls(tls) }),
});

/**
 * Where a region's images are: below the state directory, or where several managers of the region have them. Error with words
 * for people: who reads what strangers uploaded can't get there.
 */
export const placeOfImages = (
  stateDirectory: string,
  images: string | undefined,
): Pick<ImageLibraryOptions, 'directory' | 'makingName'> => {
  if (images === undefined) return { directory: join(stateDirectory, 'oci') };
  const directory = resolve(images);
  mkdirSync(directory, { recursive: true, mode: 0o711 });
  if (process.getuid?.() === 0) mustBeReachable(directory);
  const own = createHash('sha256').update(`${hostname()}:${stateDirectory}`).digest('hex').slice(0, 12);
  return { directory, makingName: `making-${own}` };
};

/** Where the stores are. */
export interface StoresLocation {
  /** Key-encryption key of the stores; made where there is no store yet. Default: in the state directory. */
  readonly keyFile?: string | undefined;
  /** They are in an etcd, and `url` says where; else in the state directory. */
  readonly etcd?: { readonly url: string; readonly options: Omit<EtcdStoresOptions, 'keyFile'> } | undefined;
}

/** StoreError. */
export const openDaemonStores = async (stateDirectory: string, { keyFile, etcd }: StoresLocation): Promise<Stores> => {
  const key = resolve(keyFile ?? join(stateDirectory, 'key'));
  const directory = join(stateDirectory, 'store');
  if (etcd === undefined) {
    if (!existsSync(key) && !existsSync(directory)) createKeyFile(key);
    return openStores({ directory, keyFile: key });
  }
  const stores = await openEtcdStores({ ...etcd.options, keyFile: key });
  try {
    await mustBeWhole(stores);
    return stores;
  } catch (error) {
    await stores.close();
    throw error;
  }
};

/** How the API backs up and restores them: an etcd is looked after with its own tools. */
/** The web console; undefined in a checkout where it was not built. */
export const siteOf = (): Site | undefined => {
  const pack = builtConsole();
  return pack === undefined ? undefined : readSite(JSON.parse(pack) as SitePack);
};

export const upkeepOf = (
  stores: Stores,
  stateDirectory: string,
  { etcd }: StoresLocation,
): Pick<ManagerOptions, 'upkeep'> =>
  etcd === undefined ? { upkeep: { stores, outgoingFile: join(stateDirectory, 'store', 'outgoing.backup') } } : {};
