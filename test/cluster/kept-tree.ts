/** A tree as the host keeps it, and the host's own `TreePort` over it. No device process is connected. */
import { VmTreePort } from '../../src/host/tree-port.ts';
import { TreeStore } from '../../src/host/tree-store.ts';
import { VmTree } from '../../src/host/vm-tree.ts';
import type { TreePort } from '../../src/records/index.ts';
import type { Store } from '../../src/store/index.ts';
import { type AuditRecord, defaultQuota } from '../../src/tree/index.ts';

export const keptTree = async (
  region: Store,
  id: string,
  audit: (records: readonly AuditRecord[]) => boolean = () => true,
): Promise<TreePort> => {
  const { persist, restored, history } = await TreeStore.open(region, id);
  const kept = { persist, ...(restored && { restored }), history };
  const tree = new VmTree({ vm: id, epoch: region.epoch, audit, kept });
  if (restored === undefined)
    await tree.authority.load({ entries: [], policy: { rules: [], users: {}, groups: {}, quota: defaultQuota } })
      .durable;
  return new VmTreePort(() => tree);
};
