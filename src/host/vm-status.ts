/** What the store has of how a VM is. */
import type { VmState } from '../qemu/index.ts';
import { decodeRecord, type VmRecord, VmStatusRecord } from '../records/index.ts';
import type { Store } from '../store/index.ts';

export const statusKey = (name: string): string => `vmstatus/${name}`;

/** Of a VM of which nothing was told yet. */
export const statusOf = ({ id }: VmRecord, status: VmStatusRecord['status']): VmStatusRecord => ({
  id,
  status,
  reason: '',
  sinceMs: Date.now(),
  generation: 0,
  outcome: 'underway',
  bootNumber: 0,
  addresses: [],
});

/** Whether a machine is as its record asks. */
export const outcomeOf = (
  { status }: Pick<VmState, 'status'>,
  { desired }: Pick<VmRecord, 'desired'>,
  before: Pick<VmStatusRecord, 'outcome'>,
): VmStatusRecord['outcome'] => {
  if (status === 'failed') return 'failed';
  if (status === 'compromised') return desired === 'running' ? 'failed' : 'done';
  if (status === (desired === 'running' ? 'running' : 'stopped')) return 'done';
  // It ran as was asked for, and ended by itself since.
  return before.outcome === 'done' && status === 'stopped' ? 'done' : 'underway';
};

/** StoreError. */
export const readStatus = async (
  store: Store,
  { name, id }: Pick<VmRecord, 'name' | 'id'>,
): Promise<VmStatusRecord | undefined> => {
  const key = statusKey(name);
  const entry = await store.get(key);
  const record = entry && decodeRecord(VmStatusRecord, key, entry.value);
  // That of another VM which had the name before says nothing of this one.
  return record?.id === id ? record : undefined;
};
