/** The network of one VM where this host makes it: its device, and what its guest is told of its addresses. */
import { type Attachment, gateway, type HostNetwork } from '../network/index.ts';
import type { TreeEdit, VmRecord } from '../records/index.ts';
import type { Replica } from '../tree/index.ts';
import { macOf } from './vm-machine.ts';
import type { VmTree } from './vm-tree.ts';

export interface VmNetworkOptions {
  readonly network: HostNetwork;
  readonly record: VmRecord;
  readonly tree: VmTree;
  readonly onTrouble: (what: string) => void;
}

export class VmNetwork {
  readonly #options: VmNetworkOptions;
  readonly #attachment: Attachment | undefined;

  constructor(options: VmNetworkOptions) {
    this.#options = options;
    this.#attachment = attachmentOf(options.record);
  }

  /** The tap device of a VM that has one, whoever makes it. */
  get tap(): string | undefined {
    const { record, network } = this.#options;
    if (record.network.mode === 'tap') return record.network.device;
    return this.#attachment && network.tapOf(this.#attachment.id);
  }

  /** Before a boot: resolves when it is there, and the guest's tree says so. Error with words for people. */
  async attach(): Promise<void> {
    const { network, tree } = this.#options;
    if (this.#attachment === undefined) return;
    await network.attach(this.#attachment);
    const edits = this.edits(tree.replica.snapshot);
    if (edits.length > 0) await tree.edit(edits, []);
  }

  /** As `attach`, for a machine that runs: it goes on whatever comes of it. */
  attachRunning(): void {
    this.attach().catch((error: unknown) => this.#tell('its network may not work as it should', error));
  }

  /** Nothing of it is left while its machine is down. */
  detachDown(): void {
    this.detach().catch((error: unknown) => this.#tell('its network is still there', error));
  }

  async detach(): Promise<void> {
    if (this.#attachment !== undefined) await this.#options.network.detach(this.#attachment.id);
  }

  /** The files below `/network` that say something else. An import of a whole tree takes them away. */
  edits(snapshot: Replica['snapshot']): TreeEdit[] {
    if (this.#attachment === undefined) return [];
    const { mac, ipv4, ipv6, udp } = this.#attachment;
    const files = {
      mac,
      ipv4,
      ipv6,
      gateway: ipv4 && gateway,
      'udp-ports': udp?.ports.map((port) => `${udp.address}:${port}`).join('\n'),
    };
    return Object.entries(files).flatMap(([name, text]): TreeEdit[] => {
      const path = `/network/${name}`;
      if (text === undefined) return [];
      const bytes = Buffer.from(text);
      const there = snapshot.resolve(path)?.bytes;
      return there !== undefined && bytes.equals(there) ? [] : [{ op: 'put', path, bytes }];
    });
  }

  #tell(what: string, error: unknown): void {
    this.#options.onTrouble(`${what}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

const attachmentOf = ({ id, network, addresses, uid, metadataServer }: VmRecord): Attachment | undefined => {
  if (network.mode !== 'routed' || addresses === undefined) return undefined;
  const { ipv4, ipv6, udp, dns } = addresses;
  return {
    id,
    mac: macOf(id),
    uid,
    ipv4,
    ipv6,
    ...(udp && { udp: { address: udp.address, ports: udp.ports } }),
    dns,
    hasMetadata: metadataServer?.ways.includes('network') ?? false,
  };
};
