/** The lease of a host in its region's store, as a manager grants it: whichever manager the host is connected to goes on with it. */
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import {
  decodeRecord,
  encodeRecord,
  HostLeaseRecord,
  HostRecord,
  hostKey,
  hostLeaseKey,
  hostLostKey,
} from '../records/index.ts';
import { type Store, StoreError } from '../store/index.ts';
import { UplinkError } from './uplink-error.ts';

/** One that is over goes within moments. */
const lookAgainMs = 100;

export interface LeaseWish {
  readonly machine: string;
  /** For a new one. */
  readonly seconds: number;
  readonly signal: AbortSignal;
}

/**
 * Goes on with the lease that is there, or grants another where none is; whoever holds a lease of before has no right by this
 * one. UPLINK_REFUSED while the lease is another machine's; StoreError, the signal's reason.
 */
export const grantHostLease = async (
  region: Store,
  { name, id: host }: Pick<HostRecord, 'name' | 'id'>,
  { machine, seconds, signal }: LeaseWish,
): Promise<{ readonly id: string; readonly seconds: number }> => {
  const key = hostLeaseKey(name);
  for (;;) {
    const entry = await region.get(key, { signal });
    if (entry !== undefined) {
      const record = decodeRecord(HostLeaseRecord, key, entry.value);
      if (record.host !== host || record.machine !== machine)
        throw new UplinkError(
          'UPLINK_REFUSED',
          `the lease of host "${name}" is that of another start of its machine, or of another machine, until it runs out`,
        );
      try {
        await region.keepAlive(record.leaseId, { signal });
        return { id: record.id, seconds: record.seconds };
      } catch (error) {
        if (!(error instanceof StoreError && error.code === 'STORE_LEASE_GONE')) throw error;
        await pause(lookAgainMs, undefined, { signal });
        continue;
      }
    }
    const own = await region.get(hostKey(name), { signal });
    const hostRecord = own && decodeRecord(HostRecord, hostKey(name), own.value);
    if (own === undefined || hostRecord?.id !== host)
      throw new UplinkError('UPLINK_REFUSED', `the host "${name}" was removed from the region`);
    const granted = await region.grantLease(seconds, { signal });
    const record: HostLeaseRecord = {
      id: randomBytes(8).toString('hex'),
      host,
      machine,
      leaseId: granted.id,
      seconds,
    };
    const { committed } = await region.commit({
      conditions: [
        { key, exists: false },
        { key: own.key, modRevision: own.modRevision },
      ],
      operations: [
        ...(hostRecord.leases
          ? []
          : [{ type: 'put', key: own.key, value: encodeRecord({ ...hostRecord, leases: true }) } as const]),
        { type: 'put', key, value: encodeRecord(record), leaseId: granted.id },
        { type: 'delete', key: hostLostKey(name) },
      ],
    });
    if (committed) return { id: record.id, seconds };
    await region.revokeLease(granted.id);
  }
};
