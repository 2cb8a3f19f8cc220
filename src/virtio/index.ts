export type { FdWatcher } from './back-end.ts';
export { VirtioFsDevice, type VirtioFsOptions } from './fs-device.ts';
