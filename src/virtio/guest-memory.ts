/**
 * The guest's memory as the front end shares it: regions of memfds, and the two translations through them. Descriptors
 * name *guest physical* addresses, SET_VRING_ADDR names *front-end user* addresses (vhost-user.rst, "Memory access").
 *
 * Every access states its whole range. A range may span regions that adjoin in guest addresses; no part of it is touched
 * unless all of it is mapped. Addresses are numbers: what is not below 2^53 was refused before it came here.
 */
import { blockSize, F_SEAL_SHRINK, fileSize, getSeals, Mapping } from '../sys/index.ts';
import { EEXIST, EINVAL, ENOENT, EPERM } from '../wire/index.ts';

/** A region as the front end describes it. */
export interface RegionSpec {
  guestAddr: number;
  sizeBytes: number;
  frontendAddr: number;
  /** Where the region begins in its file. */
  fileOffset: number;
}

/** One mapped region and the only views that are ever made of it. */
export class Region {
  readonly guestAddr: number;
  readonly guestEnd: number;
  readonly frontendAddr: number;
  readonly frontendEnd: number;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly spec: RegionSpec;
  /** What the journal keeps its descriptor as (`BackEndJournal.keep`). */
  keptAs = 0;
  readonly #mapping: Mapping;

  constructor(spec: RegionSpec, mapping: Mapping) {
    this.spec = spec;
    this.guestAddr = spec.guestAddr;
    this.guestEnd = spec.guestAddr + spec.sizeBytes;
    this.frontendAddr = spec.frontendAddr;
    this.frontendEnd = spec.frontendAddr + spec.sizeBytes;
    this.#mapping = mapping;
    const { buffer } = mapping;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer, 0, Math.floor(spec.sizeBytes / 2));
    this.u32 = new Uint32Array(buffer, 0, Math.floor(spec.sizeBytes / 4));
  }

  /** Detaches the views and unmaps the memory. */
  unmap(): void {
    this.#mapping.unmap();
  }
}

const PAGE_BYTES = 4096;
/** Up to here, copying word by word beats `set(subarray)`, which allocates. */
const COPY_WORDS_UP_TO = 256;

const overlaps = (a: RegionSpec, b: Region): boolean =>
  (a.guestAddr < b.guestEnd && b.guestAddr < a.guestAddr + a.sizeBytes) ||
  (a.frontendAddr < b.frontendEnd && b.frontendAddr < a.frontendAddr + a.sizeBytes);

const isSane = (spec: RegionSpec): boolean =>
  spec.sizeBytes > 0 &&
  Number.isSafeInteger(spec.guestAddr + spec.sizeBytes) &&
  Number.isSafeInteger(spec.frontendAddr + spec.sizeBytes) &&
  Number.isSafeInteger(spec.fileOffset + spec.sizeBytes) &&
  spec.guestAddr % PAGE_BYTES === 0 &&
  spec.frontendAddr % PAGE_BYTES === 0 &&
  spec.fileOffset % PAGE_BYTES === 0;

/**
 * Maps one region, or returns the negative errno: -EINVAL for nonsense or a file shorter than the region, -EPERM for
 * memory that could shrink under us (touching what is gone kills the process) unless `allowUnsealed`. The fd stays the
 * caller's; a mapping does not need it.
 */
export function mapRegion(spec: RegionSpec, fd: number, allowUnsealed: boolean): Region | number {
  if (!isSane(spec)) return -EINVAL;
  const sizeBytes = fileSize(fd);
  if (sizeBytes < 0) return sizeBytes;
  if (sizeBytes < spec.fileOffset + spec.sizeBytes) return -EINVAL;
  if (!allowUnsealed) {
    const seals = getSeals(fd);
    if (seals < 0 || (seals & F_SEAL_SHRINK) === 0) return -EPERM;
  }
  const pageBytes = Math.max(blockSize(fd), PAGE_BYTES);
  const mapping = Mapping.map(fd, spec.fileOffset, spec.sizeBytes, pageBytes);
  return typeof mapping === 'number' ? mapping : new Region(spec, mapping);
}

/** The memory table of one connection. */
export class GuestMemory {
  #regions: Region[] = [];
  #last: Region | undefined;
  /** The last source of `copyIn` and the words over it: a session answers from the same buffer every time. */
  #source: Uint8Array | undefined;
  #sourceWords: Uint32Array = new Uint32Array(0);

  get regions(): readonly Region[] {
    return this.#regions;
  }

  /** Puts a whole new table in place of the old one, whose memory is unmapped. Refuses (-EINVAL) regions that overlap. */
  replace(regions: Region[], specs: readonly RegionSpec[]): number {
    for (const [i, spec] of specs.entries())
      for (const other of regions.slice(0, i)) if (overlaps(spec, other)) return -EINVAL;
    const old = this.#regions;
    this.#regions = regions;
    this.#last = undefined;
    for (const region of old) region.unmap();
    return 0;
  }

  /** Adds a region; -EEXIST where it overlaps one that is there. */
  add(region: Region, spec: RegionSpec): number {
    for (const other of this.#regions) if (overlaps(spec, other)) return -EEXIST;
    this.#regions.push(region);
    return 0;
  }

  /** Removes the region that `spec` describes exactly; -ENOENT where there is none. */
  remove(spec: RegionSpec): number {
    const at = this.#regions.findIndex(
      (r) =>
        r.guestAddr === spec.guestAddr &&
        r.frontendAddr === spec.frontendAddr &&
        r.guestEnd === spec.guestAddr + spec.sizeBytes,
    );
    const region = this.#regions[at];
    if (region === undefined) return -ENOENT;
    this.#regions.splice(at, 1);
    this.#last = undefined;
    region.unmap();
    return 0;
  }

  clear(): void {
    for (const region of this.#regions) region.unmap();
    this.#regions = [];
    this.#last = undefined;
  }

  /** The region that holds `guestAddr`. */
  regionAt(guestAddr: number): Region | undefined {
    const last = this.#last;
    if (last !== undefined && guestAddr >= last.guestAddr && guestAddr < last.guestEnd) return last;
    for (const region of this.#regions)
      if (guestAddr >= region.guestAddr && guestAddr < region.guestEnd) {
        this.#last = region;
        return region;
      }
    return undefined;
  }

  /** The region that holds all of `sizeBytes` bytes at a front-end user address. */
  regionAtFrontend(frontendAddr: number, sizeBytes: number): Region | undefined {
    return this.#regions.find((r) => frontendAddr >= r.frontendAddr && frontendAddr + sizeBytes <= r.frontendEnd);
  }

  /** Whether all of `sizeBytes` bytes at `guestAddr` are mapped. */
  has(guestAddr: number, sizeBytes: number): boolean {
    return this.regionOf(guestAddr, sizeBytes) !== undefined || this.#covers(guestAddr, sizeBytes);
  }

  /** The same for a range that may go on in other regions. */
  #covers(guestAddr: number, sizeBytes: number): boolean {
    let at = guestAddr;
    const end = guestAddr + sizeBytes;
    if (!Number.isSafeInteger(end)) return false;
    while (at < end) {
      const region = this.regionAt(at);
      if (region === undefined) return false;
      at = region.guestEnd;
    }
    return true;
  }

  /** The one region that holds all of `sizeBytes` bytes at `guestAddr`, which is nearly always the case. */
  regionOf(guestAddr: number, sizeBytes: number): Region | undefined {
    const end = guestAddr + sizeBytes;
    const last = this.#last;
    if (last !== undefined && guestAddr >= last.guestAddr && end <= last.guestEnd) return last;
    const region = this.regionAt(guestAddr);
    return region !== undefined && end <= region.guestEnd ? region : undefined;
  }

  /**
   * Copies `sizeBytes` bytes at `guestAddr` to `into` from `at` on; `words` is over the same bytes. False, and nothing
   * copied, where not all of them are mapped. `into` has the room.
   */
  copyOut(guestAddr: number, sizeBytes: number, into: Uint8Array, words: Uint32Array, at: number): boolean {
    const whole = this.regionOf(guestAddr, sizeBytes);
    if (whole !== undefined) {
      copy(whole.u8, whole.u32, guestAddr - whole.guestAddr, into, words, at, sizeBytes);
      return true;
    }
    if (!this.#covers(guestAddr, sizeBytes)) return false;
    for (let done = 0; done < sizeBytes; ) {
      const region = this.regionAt(guestAddr + done)!;
      const bytes = Math.min(sizeBytes - done, region.guestEnd - guestAddr - done);
      copy(region.u8, region.u32, guestAddr + done - region.guestAddr, into, words, at + done, bytes);
      done += bytes;
    }
    return true;
  }

  /**
   * Copies `sizeBytes` bytes of `source` from `at` on to `guestAddr`. False, and nothing written, where not all of the
   * range is mapped.
   */
  copyIn(guestAddr: number, source: Uint8Array, at: number, sizeBytes: number): boolean {
    const words = source.byteOffset % 4 === 0 ? this.#wordsOf(source) : NO_WORDS;
    const whole = this.regionOf(guestAddr, sizeBytes);
    if (whole !== undefined) {
      copy(source, words, at, whole.u8, whole.u32, guestAddr - whole.guestAddr, sizeBytes);
      return true;
    }
    if (!this.#covers(guestAddr, sizeBytes)) return false;
    for (let done = 0; done < sizeBytes; ) {
      const region = this.regionAt(guestAddr + done)!;
      const bytes = Math.min(sizeBytes - done, region.guestEnd - guestAddr - done);
      copy(source, words, at + done, region.u8, region.u32, guestAddr + done - region.guestAddr, bytes);
      done += bytes;
    }
    return true;
  }

  #wordsOf(source: Uint8Array): Uint32Array {
    if (source !== this.#source) {
      this.#source = source;
      this.#sourceWords = new Uint32Array(source.buffer, source.byteOffset, source.byteLength >> 2);
    }
    return this.#sourceWords;
  }
}

const NO_WORDS = new Uint32Array(0);

/**
 * Copies bytes between two arrays, each with a view in words of the same bytes. A few bytes, which most parts of a request
 * are, are cheaper to copy word by word than by a call.
 */
function copy(
  from: Uint8Array,
  fromWords: Uint32Array,
  fromAt: number,
  into: Uint8Array,
  intoWords: Uint32Array,
  intoAt: number,
  sizeBytes: number,
): void {
  if (sizeBytes > COPY_WORDS_UP_TO) {
    into.set(fromAt === 0 && sizeBytes === from.byteLength ? from : from.subarray(fromAt, fromAt + sizeBytes), intoAt);
    return;
  }
  let i = 0;
  if (fromWords.length > 0 && intoWords.length > 0 && ((fromAt | intoAt) & 3) === 0) {
    const fromWord = fromAt / 4;
    const intoWord = intoAt / 4;
    const count = sizeBytes >> 2;
    for (let w = 0; w < count; w++) intoWords[intoWord + w] = fromWords[fromWord + w]!;
    i = count << 2;
  }
  for (; i < sizeBytes; i++) into[intoAt + i] = from[fromAt + i]!;
}
