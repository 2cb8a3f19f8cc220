/** What every moment of a region's store must keep to, whoever died meanwhile. */
import assert from 'node:assert/strict';
import { decodeRecord, HostRecord, HostUseRecord, VmRecord } from '../../src/records/index.ts';
import { type Entry, keyText, prefixRange, type Store } from '../../src/store/index.ts';

export interface Moment {
  readonly vms: readonly VmRecord[];
  /** What lies below a prefix at the same revision. */
  at(prefix: string): Promise<readonly Entry[]>;
}

const sizes = ['vcpus', 'memoryMiB', 'diskBytes'] as const;

/** No host is overcommitted, no VM is lost, doubled or at two hosts, no uid is given out twice. */
export const checkPlaces = async (region: Store): Promise<Moment> => {
  const revision = await region.revision();
  const at = async (prefix: string): Promise<readonly Entry[]> => {
    const entries: Entry[] = [];
    const { start, end } = prefixRange(prefix);
    for (let from: Uint8Array | string | undefined = start; from !== undefined; ) {
      const page = await region.range({ start: from, end }, { revision });
      entries.push(...page.entries);
      from = page.next;
    }
    return entries;
  };
  const [found, hosts, uses, assigned] = await Promise.all(['vm/', 'host/', 'hostuse/', 'hostvm/'].map(at));
  const vms = found!.map(({ key, value }) => decodeRecord(VmRecord, keyText(key), value));
  const used = new Map(uses!.map(({ key, value }) => [keyText(key), decodeRecord(HostUseRecord, keyText(key), value)]));
  for (const { key, value } of hosts!) {
    const { name, capacity } = decodeRecord(HostRecord, keyText(key), value);
    const own = vms.filter(({ host }) => host === name);
    const real = { vcpus: 0, memoryMiB: 0, diskBytes: 0, vms: own.length };
    for (const { takes } of own) for (const size of sizes) real[size] += takes![size];
    const noted = used.get(`hostuse/${name}`) ?? { vcpus: 0, memoryMiB: 0, diskBytes: 0, vms: 0 };
    assert.deepEqual(noted, real, `what is taken of ${name}`);
    for (const size of sizes)
      assert.ok(real[size] <= capacity![size], `${name} has ${real[size]} ${size} of ${capacity![size]}`);
    const uids = own.flatMap(({ uid }) => uid ?? []);
    assert.equal(new Set(uids).size, uids.length, `uids of ${name}`);
  }
  assert.deepEqual(
    assigned!.map(({ key }) => keyText(key)),
    vms.map(({ host, name }) => `hostvm/${host}/${name}`).toSorted(),
  );
  assert.equal(new Set(vms.map(({ id }) => id)).size, vms.length, 'ids of VMs');
  return { vms, at };
};
