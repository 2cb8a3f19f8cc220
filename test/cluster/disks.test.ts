/** What a manager asks of the network disks on its machine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import type { DiskWish, NetworkDisks, OpenDisk } from '../../src/records/index.ts';
import { DiskExportRecord, diskExportKey, VmRecord } from '../../src/records/index.ts';
import { until } from '../until.ts';
import { inSqlite } from './connections.ts';
import { addHost } from './hosts.ts';
import { create, managerOf, obeying, parsed, remove, wish } from './placement.ts';

class Machine implements NetworkDisks {
  readonly id: string;
  readonly exports = new Map<string, DiskWish>();
  opened = 0;
  readonly #known = new Set<string>();

  constructor(id: string) {
    this.id = id;
  }

  async open(of: DiskWish): Promise<OpenDisk> {
    if (!this.exports.has(of.id)) this.opened++;
    this.exports.set(of.id, of);
    this.#known.add(of.id);
    return { address: '127.0.0.1', port: 10_809, key: '00' };
  }

  lost(): readonly string[] {
    return [...this.#known].filter((id) => !this.exports.has(id));
  }

  async remove(id: string): Promise<void> {
    this.exports.delete(id);
    this.#known.delete(id);
  }
}

test('a manager opens the network disk of a VM, again where its export ended, and removes it with the VM', async () => {
  await using connections = inSqlite();
  const stores = await connections.connect();
  const { region } = stores;
  await addHost(region, 'h1');
  const disks = new Machine('one');
  await using manager = await managerOf(stores, { disks });
  await until('the region to have network disks', () => region.get('storage'));
  await create(manager, wish('db', { disk: 'network', diskBytes: 1024 * 1024 }));
  const { id } = VmRecord.parse(parsed((await region.get('vm/db'))!));
  const told = async (): Promise<DiskExportRecord | undefined> => {
    const entry = await region.get(diskExportKey('db'));
    return entry && DiskExportRecord.parse(parsed(entry));
  };
  assert.equal((await until('it to be open', told)).id, id);
  assert.deepEqual(disks.exports.get(id), { id, epoch: 1, sizeBytes: 1024 * 1024 });

  disks.exports.delete(id);
  await until('it to be open again', () => disks.exports.has(id));
  assert.equal(disks.opened, 2);

  await using _ = obeying(stores);
  await remove(manager, 'db');
  await until('it to be removed', () => disks.exports.size === 0);
  await until('that to be known', async () => (await told()) === undefined);
});

test('a second directory of network disks is refused, as it has other ones', async () => {
  await using connections = inSqlite();
  const stores = await connections.connect();
  const { region } = stores;
  await addHost(region, 'h1');
  const [own, other] = [new Machine('one'), new Machine('two')];
  const told: string[] = [];
  await using manager = await managerOf(stores, { disks: own });
  await until('the region to have network disks', () => region.get('storage'));
  const log = pino({ level: 'error' }, { write: (line) => void told.push(line) });
  await using _ = await managerOf(stores, { disks: other, log });
  await create(manager, wish('db', { disk: 'network', diskBytes: 1024 * 1024 }));
  await until('it to be open', () => own.exports.size === 1);
  await until('the other to be refused', () => told.some((line) => /write \\"one\\" into the file/.test(line)));
  assert.equal(other.opened, 0);
});
