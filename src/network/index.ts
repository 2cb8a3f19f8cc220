export { type Attachment, gateway } from './attachment.ts';
export { HostNetwork, type HostNetworkOptions } from './host-network.ts';
export type { Bgp, BgpPeer } from './routes.ts';
