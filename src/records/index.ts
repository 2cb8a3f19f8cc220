export * from './host-port.ts';
export type * from './image-port.ts';
export * from './network-disks.ts';
export * from './records.ts';
