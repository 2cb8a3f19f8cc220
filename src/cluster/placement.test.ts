import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { anywhere } from '../../test/cluster/hosts.ts';
import type { HostRecord, Resources } from '../records/index.ts';
import { type Candidate, type Need, nothingUsed, plus, ranked, reasonOf, refusalOf } from './placement.ts';

const host = (name: string, fields: Partial<HostRecord> = {}): HostRecord => ({
  name,
  id: `h-${name}`,
  capacity: { vcpus: 8, memoryMiB: 8192, diskBytes: 100 },
  labels: {},
  cordoned: false,
  draining: false,
  addedAtMs: 0,
  ...fields,
});

const candidate = (of: HostRecord, used: Partial<Resources> = {}, fields: Partial<Candidate> = {}): Candidate => ({
  host: of,
  use: { ...nothingUsed, ...used },
  isLive: true,
  isLeased: false,
  isTaken: false,
  ...fields,
});

const need = (fields: Partial<Need['placement']> = {}): Need => ({
  takes: { vcpus: 1, memoryMiB: 2048, diskBytes: 10 },
  placement: { ...anywhere, ...fields },
});

const names = (candidates: readonly Candidate[]): string[] => candidates.map((one) => one.host.name);

test('ranked spreads to the emptiest host and packs onto the fullest that has room', () => {
  const all = [
    candidate(host('half'), { memoryMiB: 4096 }),
    candidate(host('empty')),
    candidate(host('full'), { memoryMiB: 7000 }),
    candidate(host('most'), { vcpus: 7 }),
  ];
  assert.deepEqual(names(ranked(all, need())), ['empty', 'half', 'most']);
  assert.deepEqual(names(ranked(all, need({ strategy: 'pack' }))), ['most', 'half', 'empty']);
});

test('reasonOf tells how many hosts are out of the question, and why', () => {
  const labelled = host('ssd', { labels: { disk: 'ssd', rack: 'a=b' } });
  const all = [
    candidate(host('a', { cordoned: true })),
    candidate(host('b', { cordoned: true })),
    candidate(host('c'), { memoryMiB: 7000 }),
    candidate(host('d', { draining: true, cordoned: true })),
    candidate(host('e'), {}, { isLive: false }),
    candidate(host('f'), {}, { isTaken: true }),
    candidate(host('g'), { vcpus: 8 }),
    candidate(host('h'), { diskBytes: 91 }),
  ];
  assert.deepEqual(ranked(all, need({ apart: 'app' })), []);
  assert.equal(
    reasonOf(all, need({ apart: 'app' })),
    '2 hosts are cordoned, 1 host has less than 2048 MiB of memory free, 1 host is being drained, 1 host is not connected, 1 host has a VM of the same app already, 1 host has less than 1 vCPUs free, 1 host has less than 10 bytes of disk free',
  );
  assert.equal(reasonOf([], need()), 'there are no hosts yet');
  assert.equal(reasonOf([candidate(labelled)], need({ host: 'other' })), '1 host is not "other"');
  assert.equal(
    reasonOf([candidate(host('i'))], need({ hostLabels: ['disk=ssd'] })),
    '1 host has not the label disk=ssd',
  );
  assert.equal(refusalOf(candidate(labelled), need({ hostLabels: ['disk', 'disk=ssd', 'rack=a=b'] })), undefined);
});

test('a host without a capacity takes all there is', () => {
  const { capacity: _, ...open } = host('open');
  assert.equal(refusalOf(candidate(open, { memoryMiB: 1e9, vcpus: 1e6 }), need()), undefined);
});

test('ranked gives only hosts that stay within their capacity, and every one of them', () => {
  const size = fc.integer({ min: 0, max: 20 });
  const resources = fc.record({ vcpus: size, memoryMiB: size, diskBytes: size });
  fc.assert(
    fc.property(fc.array(fc.tuple(resources, resources), { maxLength: 8 }), resources, (hosts, takes) => {
      const all = hosts.map(([capacity, used], i) => candidate(host(String(i), { capacity }), used));
      const fitting = all.filter(({ use, host: { capacity } }) => {
        const after = plus(use, takes, 1);
        return (['vcpus', 'memoryMiB', 'diskBytes'] as const).every((one) => after[one] <= capacity![one]);
      });
      assert.deepEqual(new Set(names(ranked(all, { takes, placement: anywhere }))), new Set(names(fitting)));
    }),
  );
});
