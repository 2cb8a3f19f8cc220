export type { FdWatcher } from './back-end.ts';
export { type VirtioFsCounters, VirtioFsDevice, type VirtioFsOptions } from './fs-device.ts';
