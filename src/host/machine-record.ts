import type { VmRuntime, VmState } from '../qemu/index.ts';

/** Written by the host for itself: how it finds a machine again. */
export interface MachineRecord {
  readonly id: string;
  readonly runtime: VmRuntime | undefined;
  readonly state: VmState;
  /** The last generation of the VM's record that the state has taken in. Absent in records of 0.1.0's first days. */
  readonly generation?: number;
}

export const machineKey = (name: string): string => `machine/${name}`;
