export type * from './host-port.ts';
export * from './network-disks.ts';
export * from './records.ts';
