/** A region in one process: a store, managers that hosts can connect to, and hosts with certificates. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { encodeRecord, hostVmKey, type ImageBytes, type VmRecord } from '../../src/records/index.ts';
import { type Operation, openStores, type Stores } from '../../src/store/index.ts';
import {
  enrol,
  type Identity,
  Uplink,
  type UplinkOptions,
  UplinkServer,
  type UplinkServerOptions,
} from '../../src/uplink/index.ts';
import { temporaryStore } from '../store/temporary.ts';

export const regionName = 'eu';

export const noImages: ImageBytes = {
  blob: () => Promise.reject(new Error('there are no images')),
};

export interface TestRegion {
  readonly stores: Stores;
  readonly troubles: string[];
  /** Another manager on the same store. */
  manager(more?: Partial<UplinkServerOptions>): Promise<UplinkServer>;
  joinKey(host?: string, seconds?: number): Promise<string>;
  identity(host: string, server: UplinkServer, joinKey?: string, directory?: string): Promise<Identity>;
  directory(): string;
  /** Assigns a VM, as managers do. */
  assign(record: VmRecord, more?: readonly Operation[]): Promise<void>;
  uplink(identity: Identity, more: Partial<UplinkOptions> & Pick<UplinkOptions, 'managers'>): Promise<Uplink>;
}

export const at = ({ port }: { readonly port: number }) => ({ host: '127.0.0.1', port });

export const vmRecord = (name: string, host: string, more: Partial<VmRecord> = {}): VmRecord => ({
  id: `i-${Buffer.from(name).toString('hex').padStart(17, '0').slice(-17)}`,
  name,
  account: 'default',
  kind: 'managed',
  type: 'nano',
  vcpus: 1,
  memoryMiB: 256,
  network: { mode: 'none' },
  labels: {},
  restart: 'never',
  desired: 'running',
  generation: 1,
  rebootGeneration: 0,
  stopGraceSeconds: 0,
  createdAtMs: 0,
  host,
  ...more,
});

export const openRegion = async (t: TestContext): Promise<TestRegion> => {
  const stores = await openStores(temporaryStore(t));
  const base = mkdtempSync(join(tmpdir(), 'porthole-uplink-'));
  const troubles: string[] = [];
  const open: AsyncDisposable[] = [];
  let directories = 0;
  t.after(async () => {
    for (const part of open.toReversed()) await part[Symbol.asyncDispose]();
    await stores.close();
    rmSync(base, { recursive: true, force: true });
  });
  const own = <T extends AsyncDisposable>(part: T): T => {
    open.push(part);
    return part;
  };
  const directory = (): string => join(base, `host${directories++}`);
  const joinKey = async (host?: string, seconds = 60): Promise<string> => {
    const server = open.find((part) => part instanceof UplinkServer)!;
    const { text, operation } = server.enrolment.newKey(host, seconds);
    await stores.region.commit({ operations: [operation] });
    return text;
  };
  return {
    stores,
    troubles,
    directory,
    joinKey,
    manager: async (more = {}) =>
      own(
        await UplinkServer.open({
          region: stores.region,
          regionName,
          images: noImages,
          address: { host: '127.0.0.1', port: 0 },
          checkSpec: async () => [],
          version: 'test',
          onTrouble: (what) => troubles.push(what),
          ...more,
        }),
      ),
    identity: async (host, server, key, into) =>
      enrol({
        managers: [at(server)],
        region: regionName,
        host,
        joinKey: key ?? (await joinKey()),
        facts: { version: 'test', capacity: { vcpus: 8, memoryMiB: 8192, diskBytes: 2 ** 40 } },
        directory: into ?? directory(),
      }),
    assign: async (record, more = []) => {
      await stores.region.commit({
        operations: [
          { type: 'put', key: `vm/${record.name}`, value: encodeRecord(record) },
          { type: 'put', key: hostVmKey(record.host!, record.name), value: encodeRecord({ id: record.id }) },
          ...more,
        ],
      });
    },
    uplink: async (identity, more) =>
      own(
        await Uplink.open(
          {
            identity,
            directory: directory(),
            facts: { version: 'test' },
            onConnection: () => {},
            onEnd: () => {},
            onTrouble: (what) => troubles.push(what),
            ...more,
          },
          AbortSignal.timeout(30_000),
        ),
      ),
  };
};
