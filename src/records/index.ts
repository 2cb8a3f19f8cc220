export * from './records.ts';
export type * from './host-port.ts';
