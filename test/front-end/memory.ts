/** The memory of a pretended guest: one sealed memfd, cut into regions at guest addresses of one's choice. */
import { addSeals, close, F_SEAL_GROW, F_SEAL_SHRINK, Mapping, memfd } from '../../src/sys/index.ts';

export interface RegionSpec {
  guestAddr: number;
  sizeBytes: number;
}

export interface FrontRegion extends RegionSpec {
  /** Where the front end claims to have it mapped. */
  frontendAddr: number;
  /** Offset in the memfd. */
  fileOffset: number;
}

const FRONTEND_BASE = 0x7f00_0000_0000;

export class FrontMemory {
  readonly fd: number;
  readonly regions: readonly FrontRegion[];
  readonly #mapping: Mapping;
  /** All of the memfd; guest addresses are translated by `offsetOf`. */
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;

  constructor(specs: readonly RegionSpec[], seals = F_SEAL_SHRINK | F_SEAL_GROW) {
    let total = 0;
    let frontendAddr = FRONTEND_BASE;
    const regions: FrontRegion[] = [];
    for (const spec of specs) {
      regions.push({ ...spec, frontendAddr, fileOffset: total });
      total += spec.sizeBytes;
      frontendAddr += spec.sizeBytes + 0x10_0000;
    }
    this.regions = regions;
    this.fd = memfd('guest memory', total);
    if (this.fd < 0) throw new Error(`making a memfd of ${total} bytes failed with errno ${-this.fd}`);
    if (seals !== 0 && addSeals(this.fd, seals) < 0) throw new Error('sealing the memfd failed');
    const mapping = Mapping.map(this.fd, 0, total);
    if (typeof mapping === 'number') throw new Error(`mapping the memfd failed with errno ${-mapping}`);
    this.#mapping = mapping;
    this.u8 = new Uint8Array(mapping.buffer);
    this.u16 = new Uint16Array(mapping.buffer);
    this.u32 = new Uint32Array(mapping.buffer);
  }

  /** The offset in the memfd (and in the views) of a guest address. */
  offsetOf(guestAddr: number): number {
    for (const region of this.regions)
      if (guestAddr >= region.guestAddr && guestAddr < region.guestAddr + region.sizeBytes)
        return guestAddr - region.guestAddr + region.fileOffset;
    throw new Error(`guest address 0x${guestAddr.toString(16)} is in no region`);
  }

  /** The guest address at an offset of the memfd. */
  guestAddrOf(offset: number): number {
    const region = this.#regionAt(offset);
    return offset - region.fileOffset + region.guestAddr;
  }

  /** The front end's user address of an offset of the memfd. */
  frontendAddrOf(offset: number): number {
    const region = this.#regionAt(offset);
    return offset - region.fileOffset + region.frontendAddr;
  }

  #regionAt(offset: number): FrontRegion {
    const region = this.regions.find((r) => offset >= r.fileOffset && offset < r.fileOffset + r.sizeBytes);
    if (region === undefined) throw new Error(`offset ${offset} is in no region`);
    return region;
  }

  close(): void {
    this.#mapping.unmap();
    close(this.fd);
  }
}
