export type * from './host-port.ts';
export * from './records.ts';
