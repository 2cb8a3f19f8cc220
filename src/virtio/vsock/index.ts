export { operations as vsockOperations } from './operations.ts';
export type { VsockListener, VsockService, VsockServices, VsockStream } from './service.ts';
export { MAX_CONNECTIONS as MAX_VSOCK_CONNECTIONS, SLOTS_BYTES as VSOCK_SLOTS_BYTES } from './slots.ts';
export { portPath as vsockPortPath, vsockPeer } from './unix-end.ts';
export { isGuestCid, VsockDevice, type VsockDeviceOptions, type VsockJournal } from './vsock-device.ts';
