/**
 * Writes down what one connection's session and file system know, as they come to know it, and reads what a predecessor wrote.
 * What is answered most (LOOKUP, GETATTR and READ of what is known) writes nothing, or one number in place.
 *
 * Whatever a request does to a session, it may have to be done again by a successor, and it is as well if it was done already:
 * - a handle is noted with the request that opens it, and is not there for a successor that finds this request in flight;
 * - what a reader of `/.changes` was told counts when the request that told it is out of flight;
 * - a nodeid that was given once more is given once more again: it is counted too often, never too seldom.
 */
import type { Inode, LeftSession, OpenDirectory, OpenFile, SessionJournal } from '../fuse/index.ts';
import type {
  Caching,
  LeftDirectory,
  LeftFile,
  Node,
  OpenJournal,
  Replica,
  OpenDirectory as TreeDirectory,
  OpenFile as TreeFile,
  TreeFileSystem,
} from '../tree/index.ts';
import type { DeviceJournal } from '../virtio/index.ts';
import type { Journal } from './journal.ts';
import * as records from './journal-records.ts';
import { MutationLog } from './mutation-log.ts';

/** The device, as the journal asks it: about requests in flight. */
export interface InFlightView {
  orderOf(queueIndex: number, head: number): number;
  isInFlight(queueIndex: number, head: number, order: number): boolean;
  /** Shows drivers what was given back. */
  show(): void;
}

const cachings: readonly Caching[] = ['shared', 'private', 'mutable'];
/** A record is told apart from those of an earlier life of the session by the journal's life above these bits. */
const LIFE = 2 ** 32;
const NAME_BYTES = 255;
/** In place of the order of a request: it is not known yet which one was answered with the handle. */
const UNPLACED = -1;
/** More than any session opens. */
const MAX_HANDLES = 32_768;
const { file, nodeid, directory, place, poll, told } = records;
const encoder = new TextEncoder();
const decoder = new TextDecoder();
const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;

interface HandleRecord {
  readonly payload: number;
  readonly fields: typeof file | typeof directory;
}

export class ConnectionJournal
  implements SessionJournal, OpenJournal, Pick<DeviceJournal, 'begins' | 'ends' | 'gives' | 'shown'>
{
  readonly #journal: Journal;
  readonly log: MutationLog;
  /** Set once the device is there, which needs the session, which needs this. */
  device: InFlightView = { orderOf: () => 0, isInFlight: () => false, show: () => undefined };
  readonly #versions = new Map<Node, number>();
  /** Records of files that somebody waits for in poll(2), by fh. */
  readonly #polled = new Map<number, number>();
  /** The request at hand, as `whereOf`. */
  #where = -1;
  /** The record of a handle that was opened for a request which had waited: for the one that is answered next. */
  #unplaced: HandleRecord | undefined;
  /** The reader of `/.changes` that the next answer tells. */
  #telling: TreeFile | undefined;
  /** Answers to such readers that wait for their ring, by request. */
  readonly #postponed = new Map<number, TreeFile>();

  constructor(journal: Journal) {
    this.#journal = journal;
    this.log = new MutationLog(journal, (where) => this.device.orderOf(where >>> 16, where & 0xffff));
  }

  #record(payload: number): number {
    return payload === 0 ? 0 : this.#journal.life * LIFE + payload;
  }

  /** The payload of a record of this life; 0 for others. */
  #payload(record: number): number {
    const life = this.#journal.life * LIFE;
    return record > life && record < life + LIFE ? record - life : 0;
  }

  // --- requests ---

  begins(queueIndex: number, head: number): void {
    this.#where = records.whereOf(queueIndex, head);
    this.log.begins(this.#where);
  }

  ends(): void {
    this.#where = -1;
    this.log.ends();
  }

  gives(queueIndex: number, head: number): void {
    const where = records.whereOf(queueIndex, head);
    this.log.gives(where);
    this.#place(where);
    const telling = this.#telling ?? (this.#postponed.size === 0 ? undefined : this.#postponed.get(where));
    if (telling === undefined) return;
    this.#telling = undefined;
    this.#postponed.delete(where);
    this.#told(telling, where);
  }

  postpones(queueIndex: number, head: number): void {
    const where = records.whereOf(queueIndex, head);
    this.#place(where);
    if (this.#telling !== undefined) this.#postponed.set(where, this.#telling);
    this.#telling = undefined;
  }

  shown(): void {
    this.log.shown();
  }

  /** Into the record of what is being opened: the request at hand, or the one that will be answered with it. */
  #placeNow(record: HandleRecord): void {
    if (this.#where < 0) this.#unplaced = record;
    this.#writePlace(record, this.#where, this.#where < 0 ? UNPLACED : this.#orderOf(this.#where));
  }

  #place(where: number): void {
    const record = this.#unplaced;
    if (record === undefined) return;
    this.#unplaced = undefined;
    this.#writePlace(record, where, this.#orderOf(where));
  }

  /** The order last: it says whether the place counts. */
  #writePlace({ payload, fields }: HandleRecord, where: number, order: number): void {
    const { f64, u32 } = this.#journal.memory;
    u32[(payload + fields.whereW) / 4] = where;
    f64[(payload + fields.order) / 8] = order;
  }

  #orderOf(where: number): number {
    return this.device.orderOf(where >>> 16, where & 0xffff);
  }

  readonly #isInFlight = (where: number, order: number): boolean =>
    this.device.isInFlight(where >>> 16, where & 0xffff, order);

  // --- the session ---

  initialize(isInitialized: boolean): void {
    this.#journal.setCounter('isInitialized', isInitialized ? 1 : 0);
  }

  wipe(): void {
    this.#journal.wipe();
    this.#versions.clear();
    this.#polled.clear();
    this.#postponed.clear();
    this.#telling = undefined;
    this.#unplaced = undefined;
    this.log.wipe();
  }

  addInode(inode: Inode): void {
    this.#journal.setCounter('nextNodeid', inode.nodeid + 1);
    inode.record = this.#writeInode(inode);
  }

  #writeInode(inode: Inode): number {
    const journal = this.#journal;
    const encoded = records.encodeNode(inode.pinned, false);
    const payload = journal.allocate(nodeid.node + encoded.sizeBytes);
    if (payload === 0) return 0;
    const { f64, u32 } = journal.memory;
    f64[(payload + nodeid.nodeid) / 8] = inode.nodeid;
    f64[(payload + nodeid.lookups) / 8] = inode.lookups;
    u32[(payload + nodeid.flagsW) / 4] = (inode.versioned ? 1 : 0) | (cachings.indexOf(inode.caching) << 1);
    u32[(payload + nodeid.pinnedModeW) / 4] = inode.pinnedMode;
    records.writeNode(journal, payload + nodeid.node, encoded);
    journal.commit(payload, records.NODEID);
    return this.#record(payload);
  }

  countLookups(inode: Inode): void {
    const payload = this.#payload(inode.record);
    if (payload !== 0) this.#journal.memory.f64[(payload + nodeid.lookups) / 8] = inode.lookups;
  }

  /** What has no versions is shown as it is now; only once it is gone, as it was when its nodeid was given out. */
  repin(inode: Inode): void {
    const payload = inode.versioned ? this.#payload(inode.record) : 0;
    if (payload === 0) return;
    const record = this.#writeInode(inode);
    if (record === 0) return;
    inode.record = record;
    this.#journal.free(payload);
  }

  removeInode(inode: Inode): void {
    const payload = this.#payload(inode.record);
    if (payload !== 0) this.#journal.free(payload);
    inode.record = 0;
  }

  addFile({ fh, handle }: OpenFile): void {
    const journal = this.#journal;
    const open = handle as TreeFile;
    journal.setCounter('nextFh', fh + 1);
    const more = records.encodeMore(open.caller);
    const payload = journal.allocate(file.sizeBytes + more.length);
    if (payload === 0) return;
    records.writeMore(journal, payload + file.sizeBytes, more);
    const { f64, u32 } = journal.memory;
    const f = payload / 8;
    const w = payload / 4;
    f64[f + file.fh / 8] = fh;
    f64[f + file.ino / 8] = open.ino;
    f64[f + file.dataRevision / 8] = open.node.dataRevision;
    f64[f + file.burnt / 8] = 0;
    this.#placeNow({ payload, fields: file });
    u32[w + file.flagsW / 4] = open.flags;
    u32[w + file.uidW / 4] = open.caller.uid;
    u32[w + file.gidW / 4] = open.caller.gid;
    u32[w + file.pidW / 4] = open.caller.pid;
    u32[w + file.bitsW / 4] = (open.stream ? 1 : 0) | (open.pinned ? 2 : 0);
    u32[w + file.truncatesW / 4] = open.truncates ? 1 : 0;
    u32[w + file.staleW / 4] = open.stale ? 1 : 0;
    u32[w + file.toldW / 4] = 0;
    for (let slot = 0; slot < 2; slot++) {
      const t = (payload + file.told + slot * file.toldBytes) / 8;
      f64[t] = open.toldRevision;
      f64[t + told.rest / 8] = 0;
      f64[t + told.order / 8] = 0;
      f64[t + told.whereW / 8] = 0;
    }
    journal.commit(payload, records.FILE);
    open.record = this.#record(payload);
  }

  removeFile({ handle }: OpenFile): void {
    const open = handle as TreeFile;
    const payload = this.#payload(open.record);
    open.record = 0;
    if (payload === 0) return;
    const { f64 } = this.#journal.memory;
    const burnt = f64[(payload + file.burnt) / 8]!;
    const rests = [0, 1].map((slot) => f64[(payload + file.told + slot * file.toldBytes + told.rest) / 8]!);
    this.#journal.free(payload);
    if (burnt !== 0) this.#journal.shred(burnt);
    for (const rest of rests) if (rest !== 0) this.#journal.free(rest);
  }

  poll({ fh, pollLo, pollHi }: OpenFile, isAwaited: boolean): void {
    const journal = this.#journal;
    const before = this.#payload(this.#polled.get(fh) ?? 0);
    this.#polled.delete(fh);
    if (before !== 0) journal.free(before);
    const payload = isAwaited ? journal.allocate(poll.sizeBytes) : 0;
    if (payload === 0) return;
    const { f64, u32 } = journal.memory;
    f64[(payload + poll.fh) / 8] = fh;
    u32[(payload + poll.loW) / 4] = pollLo;
    u32[(payload + poll.hiW) / 4] = pollHi;
    journal.commit(payload, records.POLL);
    this.#polled.set(fh, this.#record(payload));
  }

  addDirectory({ fh, directory: handle }: OpenDirectory): void {
    const journal = this.#journal;
    const open = handle as TreeDirectory;
    journal.setCounter('nextFh', fh + 1);
    const more = records.encodeMore(open.caller);
    const payload = journal.allocate(directory.sizeBytes + more.length);
    if (payload === 0) return;
    records.writeMore(journal, payload + directory.sizeBytes, more);
    const { f64, u32 } = journal.memory;
    f64[(payload + directory.fh) / 8] = fh;
    f64[(payload + directory.ino) / 8] = open.ino;
    this.#placeNow({ payload, fields: directory });
    u32[(payload + directory.uidW) / 4] = open.caller.uid;
    u32[(payload + directory.gidW) / 4] = open.caller.gid;
    u32[(payload + directory.pidW) / 4] = open.caller.pid;
    for (let slot = 0; slot < 2; slot++)
      f64[(payload + directory.places + slot * directory.placeBytes + place.cookie) / 8] = 0;
    journal.commit(payload, records.DIRECTORY);
    open.record = this.#record(payload);
  }

  removeDirectory({ directory: handle }: OpenDirectory): void {
    const open = handle as TreeDirectory;
    const payload = this.#payload(open.record);
    open.record = 0;
    if (payload !== 0) this.#journal.free(payload);
  }

  /** The place before stays: the request may have to be answered again. */
  list({ directory: handle }: OpenDirectory, from: number, to: number, name: string): void {
    const payload = this.#payload((handle as TreeDirectory).record);
    if (payload === 0) return;
    const { f64, u32, u8 } = this.#journal.memory;
    const at = (slot: number): number => payload + directory.places + slot * directory.placeBytes;
    const slot = f64[(at(0) + place.cookie) / 8] === from ? 1 : 0;
    const bytes = encoder.encode(name);
    if (bytes.length > NAME_BYTES) return;
    f64[(at(slot) + place.cookie) / 8] = 0;
    u32[(at(slot) + place.nameBytesW) / 4] = bytes.length;
    u8.set(bytes, at(slot) + place.name);
    f64[(at(slot) + place.cookie) / 8] = to;
  }

  // --- the file system ---

  keepVersion(node: Node): void {
    if (this.#versions.has(node)) return;
    const encoded = records.encodeNode(node, true);
    const payload = this.#journal.allocate(encoded.sizeBytes);
    if (payload === 0) return;
    records.writeNode(this.#journal, payload, encoded);
    this.#journal.commit(payload, records.VERSION);
    this.#versions.set(node, payload);
  }

  forgetVersion(node: Node): void {
    const payload = this.#versions.get(node);
    if (payload === undefined) return;
    this.#versions.delete(node);
    this.#journal.free(payload);
  }

  truncated({ record }: TreeFile): void {
    const payload = this.#payload(record);
    if (payload !== 0) this.#journal.memory.u32[(payload + file.truncatesW) / 4] = 0;
  }

  giveUp({ record }: TreeFile): void {
    const payload = this.#payload(record);
    if (payload !== 0) this.#journal.memory.u32[(payload + file.staleW) / 4] = 1;
  }

  burn({ record, burnt }: TreeFile): void {
    const payload = this.#payload(record);
    if (payload === 0 || burnt === undefined) return;
    this.#journal.memory.f64[(payload + file.burnt) / 8] = records.writeBytes(this.#journal, burnt);
  }

  tell(open: TreeFile): void {
    this.#telling = open;
  }

  #told({ record, toldRevision, rest }: TreeFile, where: number): void {
    const payload = this.#payload(record);
    if (payload === 0) return;
    const { f64, u32 } = this.#journal.memory;
    const counts = u32[(payload + file.toldW) / 4]! & 1;
    const at = (slot: number): number => payload + file.told + slot * file.toldBytes;
    // Two places are enough while one answer at most is on its way.
    if (this.#isInFlight(u32[(at(counts) + told.whereW) / 4]!, f64[(at(counts) + told.order) / 8]!)) this.device.show();
    const next = at(1 - counts);
    const outdated = f64[(next + told.rest) / 8]!;
    f64[(next + told.rest) / 8] = 0;
    if (outdated !== 0) this.#journal.free(outdated);
    f64[(next + told.revision) / 8] = toldRevision;
    f64[(next + told.order) / 8] = this.device.orderOf(where >>> 16, where & 0xffff);
    u32[(next + told.whereW) / 4] = where;
    f64[(next + told.rest) / 8] = rest === undefined ? 0 : records.writeBytes(this.#journal, rest);
    u32[(payload + file.toldW) / 4] = 1 - counts;
  }

  // --- what a predecessor left ---

  /**
   * Opens what a predecessor had open, and returns what its session knew. `replica` is as that one saw the tree last; the device
   * knows which requests are in flight.
   */
  recover(fileSystem: TreeFileSystem, replica: Replica): LeftSession {
    const journal = this.#journal;
    const left = [...journal.blocks()];
    const bytes = new Set(left.flatMap(({ kind, payload }) => (kind === records.BYTES ? [payload] : [])));
    const versions = this.#readVersions(left);
    const inodes = new Map<number, Inode>();
    const files: OpenFile[] = [];
    const directories: OpenDirectory[] = [];
    const polls: number[] = [];
    for (const { kind, payload } of left) {
      let isTaken = true;
      const isHandle = kind === records.FILE || kind === records.DIRECTORY;
      if (isHandle && files.length + directories.length >= MAX_HANDLES) isTaken = false;
      else if (kind === records.NODEID) isTaken = this.#takeInode(inodes, this.#readInode(payload, replica));
      else if (kind === records.FILE) isTaken = push(files, this.#readFile(payload, fileSystem, versions, bytes));
      else if (kind === records.DIRECTORY) isTaken = push(directories, this.#readDirectory(payload, fileSystem));
      else if (kind === records.POLL) polls.push(payload);
      else if (kind === records.MUTATION) this.log.recover(payload, this.#isInFlight);
      else if (kind !== records.BYTES && kind !== records.VERSION) isTaken = false;
      if (!isTaken) journal.free(payload);
    }
    for (const payload of bytes) journal.shred(payload);
    for (const [node, payload] of versions.values()) {
      if (this.#isPinned(node, files)) continue;
      this.#versions.delete(node);
      journal.free(payload);
    }
    return {
      isInitialized: journal.counter('isInitialized') === 1,
      inodes: [...inodes.values()].toSorted((a, b) => a.nodeid - b.nodeid),
      files,
      directories,
      polled: this.#readPolls(polls, files),
      nextNodeid: Math.max(journal.counter('nextNodeid') || 0, lastOf(inodes.keys()) + 1, 2),
      nextFh: Math.max(journal.counter('nextFh') || 0, lastOf([...files, ...directories].map(({ fh }) => fh)) + 1),
    };
  }

  /** One that was written anew may stand there twice. */
  #takeInode(inodes: Map<number, Inode>, inode: Inode | undefined): boolean {
    if (inode === undefined || inodes.has(inode.nodeid)) return false;
    inodes.set(inode.nodeid, inode);
    return true;
  }

  #isPinned(node: Node, files: readonly OpenFile[]): boolean {
    return files.some(({ handle }) => handle.node === node);
  }

  #readVersions(left: readonly { readonly kind: number; readonly payload: number }[]): Versions {
    const versions: Versions = new Map();
    for (const { kind, payload } of left) {
      if (kind !== records.VERSION) continue;
      const node = records.readNode(this.#journal, payload, this.#journal.payloadBytes(payload));
      if (node === undefined || versions.has(`${node.ino} ${node.dataRevision}`)) {
        this.#journal.free(payload);
        continue;
      }
      versions.set(`${node.ino} ${node.dataRevision}`, [node, payload]);
      this.#versions.set(node, payload);
    }
    return versions;
  }

  #readInode(payload: number, replica: Replica): Inode | undefined {
    const { f64, u32 } = this.#journal.memory;
    const pinned = records.readNode(
      this.#journal,
      payload + nodeid.node,
      this.#journal.payloadBytes(payload) - nodeid.node,
    );
    const id = f64[(payload + nodeid.nodeid) / 8]!;
    const lookups = f64[(payload + nodeid.lookups) / 8]!;
    if (pinned === undefined || !isCount(id) || id < 2 || !isCount(lookups) || lookups === 0) return undefined;
    const flags = u32[(payload + nodeid.flagsW) / 4]!;
    const now = replica.snapshot.node(pinned.ino);
    const versioned = (flags & 1) !== 0;
    return {
      nodeid: id,
      ino: pinned.ino,
      versioned,
      caching: cachings[flags >>> 1] ?? 'private',
      pinned: versioned || now === undefined ? pinned : { ...now, bytes: undefined },
      pinnedMode:
        versioned || now === undefined ? u32[(payload + nodeid.pinnedModeW) / 4]! : replica.facts(now).shownMode,
      parentIno: pinned.parentIno,
      name: pinned.name,
      lookups,
      record: this.#record(payload),
      uid: -1,
    };
  }

  #readFile(payload: number, fileSystem: TreeFileSystem, versions: Versions, bytes: Set<number>): OpenFile | undefined {
    const { f64, u32 } = this.#journal.memory;
    const number = (field: number): number => f64[(payload + field) / 8]!;
    const word = (field: number): number => u32[(payload + field) / 4]!;
    if (this.#journal.payloadBytes(payload) < file.sizeBytes) return undefined;
    const [fh, ino, dataRevision] = [number(file.fh), number(file.ino), number(file.dataRevision)];
    if (![fh, ino, dataRevision].every(isCount)) return undefined;
    if (!this.#isTold(word(file.whereW), number(file.order))) return undefined;
    const take = (at: number): Uint8Array | undefined =>
      bytes.delete(at) ? records.readBytes(this.#journal, at) : undefined;
    const at = (slot: number): number => file.told + slot * file.toldBytes;
    const last = word(file.toldW) & 1;
    const isOut = this.#isInFlight(word(at(last) + told.whereW), number(at(last) + told.order));
    const slot = at(isOut ? 1 - last : last);
    const toldRevision = number(slot + told.revision);
    const bits = word(file.bitsW);
    const left: LeftFile = {
      ino,
      dataRevision,
      flags: word(file.flagsW),
      caller: {
        uid: word(file.uidW),
        gid: word(file.gidW),
        pid: word(file.pidW),
        ...records.readMore(this.#journal, payload, file.sizeBytes),
      },
      stream: (bits & 1) !== 0,
      pinned: (bits & 2) !== 0,
      truncates: word(file.truncatesW) !== 0,
      stale: word(file.staleW) !== 0,
      burnt: take(number(file.burnt)),
      toldRevision: isCount(toldRevision) ? toldRevision : 0,
      rest: take(number(slot + told.rest)),
      version: versions.get(`${ino} ${dataRevision}`)?.[0],
      record: this.#record(payload),
    };
    f64[(payload + at(isOut ? last : 1 - last) + told.rest) / 8] = 0;
    if (isOut) u32[(payload + file.toldW) / 4] = 1 - last;
    return { fh, handle: fileSystem.adopt(left), pollLo: 0, pollHi: 0 };
  }

  /** Else the request that opened it will be answered anew. */
  #isTold(where: number, order: number): boolean {
    return order !== UNPLACED && !this.#isInFlight(where, order);
  }

  #readPolls(payloads: readonly number[], files: readonly OpenFile[]): OpenFile[] {
    const { f64, u32 } = this.#journal.memory;
    const byFh = new Map(files.map((open) => [open.fh, open]));
    return payloads.flatMap((payload) => {
      const open = byFh.get(f64[(payload + poll.fh) / 8]!);
      if (open === undefined || this.#polled.has(open.fh)) {
        this.#journal.free(payload);
        return [];
      }
      open.pollLo = u32[(payload + poll.loW) / 4]!;
      open.pollHi = u32[(payload + poll.hiW) / 4]!;
      this.#polled.set(open.fh, this.#record(payload));
      return [open];
    });
  }

  #readDirectory(payload: number, fileSystem: TreeFileSystem): OpenDirectory | undefined {
    const { f64, u32, u8 } = this.#journal.memory;
    const number = (field: number): number => f64[(payload + field) / 8]!;
    const word = (field: number): number => u32[(payload + field) / 4]!;
    if (this.#journal.payloadBytes(payload) < directory.sizeBytes) return undefined;
    const [fh, ino] = [number(directory.fh), number(directory.ino)];
    if (!isCount(fh) || !isCount(ino) || !this.#isTold(word(directory.whereW), number(directory.order)))
      return undefined;
    const places = [0, 1].flatMap((slot) => {
      const at = directory.places + slot * directory.placeBytes;
      const cookie = number(at + place.cookie);
      const length = Math.min(word(at + place.nameBytesW), NAME_BYTES);
      const from = payload + at + place.name;
      return isCount(cookie) && cookie > 2 ? [{ cookie, name: decoder.decode(u8.slice(from, from + length)) }] : [];
    });
    const left: LeftDirectory = {
      ino,
      caller: {
        uid: word(directory.uidW),
        gid: word(directory.gidW),
        pid: word(directory.pidW),
        ...records.readMore(this.#journal, payload, directory.sizeBytes),
      },
      places,
      record: this.#record(payload),
    };
    return { fh, directory: fileSystem.adoptDirectory(left) };
  }
}

type Versions = Map<string, readonly [node: Node, payload: number]>;

/** False when there is nothing to push. */
function push<T>(into: T[], item: T | undefined): boolean {
  if (item !== undefined) into.push(item);
  return item !== undefined;
}

function lastOf(ids: Iterable<number>): number {
  let last = 0;
  for (const id of ids) last = Math.max(last, id);
  return last;
}
