export type * from './host-port.ts';
export type * from './image-port.ts';
export * from './records.ts';
