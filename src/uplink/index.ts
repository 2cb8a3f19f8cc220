export { type Address, addressText, defaultPort, readAddress } from './dial.ts';
export type { Enrolment, JoinKey } from './enrolment.ts';
export { enrol, type Identity, readIdentity } from './identity.ts';
export type { RemoteStore } from './remote-store.ts';
export type { HostFacts } from './store-calls.ts';
export { Uplink, type UplinkOptions } from './uplink.ts';
export { UplinkError, type UplinkErrorCode } from './uplink-error.ts';
export { UplinkServer, type UplinkServerOptions } from './uplink-server.ts';
