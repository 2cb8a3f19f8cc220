import type { StatFs } from './file-system.ts';
import type { Replica } from './replica.ts';
import { limits } from './spec.ts';

const BLOCK_BYTES = 4096;

/** What statfs(2) shows: the quota, and what guests have used of it. */
export function statFs({ policy, usage }: Replica): StatFs {
  const { quota } = policy.spec;
  return {
    blockSizeBytes: BLOCK_BYTES,
    blocks: Math.ceil(quota.bytes / BLOCK_BYTES),
    blocksFree: Math.max(0, Math.floor((quota.bytes - usage.bytes) / BLOCK_BYTES)),
    files: quota.nodes,
    filesFree: Math.max(0, quota.nodes - usage.nodes),
    nameBytes: limits.nameBytes,
  };
}
