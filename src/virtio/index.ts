export type { FdWatcher } from './back-end.ts';
export { VirtioFsDevice, type VirtioFsOptions } from './fs-device.ts';
export type { BackEndJournal, DeviceJournal, Recovered, RingMemory, SavedBackEnd, SavedQueue } from './journal.ts';
export { BATCH } from './journal.ts';
export { MAX_QUEUE_SIZE } from './virtqueue.ts';
export * from './vsock/index.ts';
