/** What a manager asks of the network disks on its machine. */
import type { DiskExportRecord } from './records.ts';

export interface DiskWish {
  /** Of the VM. */
  readonly id: string;
  readonly epoch: number;
  readonly sizeBytes: number;
}

export type OpenDisk = Pick<DiskExportRecord, 'address' | 'port' | 'key'>;

export interface NetworkDisks {
  /** Of the directory that has them, wherever it is: those of another are other disks. */
  readonly id: string;
  /** For one epoch: whoever had it by a lower one has it no more when this resolves. */
  open(wish: DiskWish): Promise<OpenDisk>;
  /** Those that nobody reaches any more, as what exported them has ended by itself: to be opened again. */
  lost(): readonly string[];
  remove(id: string): Promise<void>;
}
