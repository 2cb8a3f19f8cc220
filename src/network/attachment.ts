/** What a VM is on this host's network: a tap device of its own, and the addresses that may be used over it. */
import { createHash } from 'node:crypto';
import { addressOf, numberOf } from '../wire/index.ts';

export interface Attachment {
  /** Of the VM. */
  readonly id: string;
  readonly mac: string;
  /** Who may open its tap device beside root: the user of its QEMU. */
  readonly uid?: number | undefined;
  readonly ipv4?: string | undefined;
  readonly ipv6?: string | undefined;
  /** What arrives for these ports of an address that is shared is for this VM. */
  readonly udp?: { readonly address: string; readonly ports: readonly number[] } | undefined;
  /** Resolvers that it is told of. */
  readonly dns: readonly string[];
  /** A metadata server answers at `gateway`. */
  readonly hasMetadata: boolean;
}

/** An attachment, and the tap device that is made for it. */
export interface Tapped extends Attachment {
  readonly tap: string;
}

/** This host, as every guest sees it on its tap device: router, DHCP and metadata server. */
export const gateway = '169.254.169.254';

const shortHash = (text: string, digits: number): string =>
  createHash('sha256').update(text).digest('hex').slice(0, digits);

/** What names of tap devices and of the table begin with: daemons with other run directories have others. */
export const ownPrefix = (runDirectory: string): string => `ph${shortHash(runDirectory, 4)}`;

/** 15 characters, the most that a device's name can have. */
export const tapName = (prefix: string, vmId: string): string => `${prefix}-${shortHash(vmId, 8)}`;

/** Of the 64 bits that a router advertisement is about. */
export const subnet64 = (ipv6: string): string => addressOf('ipv6', (numberOf('ipv6', ipv6) >> 64n) << 64n);
