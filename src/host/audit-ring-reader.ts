/**
 * The host daemon's end of an audit ring: takes records out and appends their lines to the log. By pread(2) and pwrite(2)
 * only (`src/device/audit-ring-layout.ts` says why, and what the words are).
 *
 * Each record gets into the log once, also when the daemon is killed in between: before it appends lines it notes in the
 * ring where in which file the first of them begins, and a daemon that finds such a note compares what the file has there
 * with the lines that it would write. Only where the log was moved away meanwhile are they written again.
 */
import { Buffer } from 'node:buffer';
import {
  closeSync,
  constants,
  fchownSync,
  fstatSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import {
  emptyRing,
  RECORD_ALIGN,
  RECORD_MOST_BYTES,
  RING_DATA_BYTES,
  RING_HEAD_BYTES,
  RingMark,
  ringWords,
  whyNoRing,
} from '../device/index.ts';
import type { AuditLog } from './audit-log.ts';
import { RingError, RingRecords } from './audit-ring-records.ts';

interface AuditRingReaderOptions {
  readonly path: string;
  /** Name of the VM, which a device process can't change. */
  readonly vm: string;
  readonly log: Pick<AuditLog, 'write' | 'place' | 'readFrom' | 'writable'>;
  /** Of the ring where one has to be made. */
  readonly dataBytes?: number;
  /** Who may open it: the user of the device process. Default: this one. */
  readonly owner?: { readonly uid: number; readonly gid: number };
  /** The ring holds what no device process writes: the one that has it must end. Nothing more is taken from this ring. */
  readonly onLie: (reason: string) => void;
  /** What people should know. */
  readonly onTrouble: (what: string) => void;
  readonly busyMs?: number;
}

/** How often records are fetched while there are any. */
const BUSY_MS = 20;
/** What is read at once. */
const PIECE_BYTES = 256 * 1024;
/** How often a word that changes is looked at again before that is left to the next time. */
const LOOKS = 8;
const LINE_FEED = 0x0a;

type Drained = 'nothing' | 'some' | 'blocked';

/** Opens the ring, or makes it. Owned by the daemon, which has it drain when the doorbell rings and when a device process ended. */
export class AuditRingReader implements Disposable {
  readonly #options: AuditRingReaderOptions;
  readonly #busyMs: number;
  readonly #piece = Buffer.alloc(PIECE_BYTES);
  readonly #word = Buffer.alloc(4);
  readonly #mark = Buffer.alloc(RingMark.sizeBytes);
  readonly #markView = new DataView(this.#mark.buffer, this.#mark.byteOffset, this.#mark.length);
  readonly #records: RingRecords;
  #fd: number;
  #dataBytes = 0;
  #tail = 0;
  /** Bytes of the first record's line that are in the log already. */
  #begun = 0;
  /** What the log has from where the first record's line begins: what a daemon that was killed wrote. */
  #found: Uint8Array = new Uint8Array(0);
  #isAsleep = false;
  /** It holds nonsense. */
  #isBroken = false;
  #isClosed = false;
  /** Records are being taken: what the log tells of itself meanwhile may ask for that again. */
  #isTaking = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: AuditRingReaderOptions) {
    this.#options = options;
    this.#busyMs = options.busyMs ?? BUSY_MS;
    this.#records = new RingRecords(options.vm);
    this.#fd = this.#open() ?? this.#make();
    this.#adopt();
  }

  /** It holds what no device process writes: the one that has it must end, and `renew` makes another. */
  get isBroken(): boolean {
    return this.#isBroken;
  }

  /** Bytes of records that the log does not have yet. */
  get waitingBytes(): number {
    const head = this.#isBroken ? undefined : this.#readHead();
    return head === undefined ? 0 : (head - this.#tail) >>> 0;
  }

  /** The device process says that there are records. */
  doorbell(): void {
    // It is believed once for each time that it was asked.
    if (!this.#isAsleep || this.#isClosed) return;
    this.#isAsleep = false;
    this.drain();
    this.#lookAgain();
  }

  /** Takes what is there; true when the log has all of it. */
  drain(): boolean {
    return this.#drain() !== 'blocked';
  }

  /** Tells the device process at once, whatever it is doing, whether records can be kept. */
  setUnwritable(unwritable: boolean): void {
    if (!this.#isBroken) this.#writeWord(ringWords.unwritable, unwritable ? 1 : 0);
  }

  /** The log is another file now: a line that was begun in the old one is written whole. */
  logReopened(): void {
    this.#begun = 0;
    this.#found = new Uint8Array(0);
  }

  /** Before another device process gets the ring: takes what the last one left, and makes the ring anew where it lied. */
  renew(): void {
    if (this.#isClosed) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.drain();
    // What the next device process would not take for a ring.
    if (this.#isBroken || whyNone(this.#fd) !== undefined) {
      closeSync(this.#fd);
      this.#fd = this.#make();
      this.#adopt();
      return;
    }
    this.#records.restart();
    this.#sleep();
  }

  /** Nothing is done with the ring any more, whatever is asked for: its descriptor's number may be another file's. */
  [Symbol.dispose](): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#isBroken = true;
    clearTimeout(this.#timer);
    closeSync(this.#fd);
  }

  // --- the file ---

  #open(): number | undefined {
    const { path, onTrouble } = this.#options;
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw failed(`opening the audit ring "${path}" failed`, error);
    }
    const why = whyNone(fd);
    if (why === undefined) return fd;
    closeSync(fd);
    onTrouble(`"${path}" is no audit ring (${why}); another is made, and records that were only there are lost`);
    return undefined;
  }

  /** Whole before it has its name. Written, not only sized: a mapping of a file that finds no room on its disk kills. */
  #make(): number {
    const { path, dataBytes = RING_DATA_BYTES, owner } = this.#options;
    const making = `${path}.new`;
    rmSync(making, { force: true });
    let fd: number | undefined;
    try {
      fd = openSync(making, 'wx+', 0o600);
      if (owner !== undefined) fchownSync(fd, owner.uid, owner.gid);
      writeAll(fd, emptyRing(dataBytes), 0);
      writeAll(fd, new Uint8Array(dataBytes), RING_HEAD_BYTES);
      renameSync(making, path);
      return fd;
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      rmSync(making, { force: true });
      throw failed(`making the audit ring "${path}" failed`, error);
    }
  }

  /** Takes the words of a ring as they are, and goes on where a daemon that was killed was. */
  #adopt(): void {
    const { log, onTrouble, path } = this.#options;
    this.#isBroken = false;
    this.#begun = 0;
    this.#found = new Uint8Array(0);
    this.#records.restart();
    this.#dataBytes = this.#readWord(ringWords.dataBytes);
    this.#tail = this.#readWord(ringWords.tail);
    const head = this.#readHead();
    const used = head === undefined ? undefined : (head - this.#tail) >>> 0;
    if (used === undefined || used > this.#dataBytes || this.#tail % RECORD_ALIGN !== 0) {
      this.#isBroken = true;
      onTrouble(`the audit ring "${path}" holds nonsense; records that were only there are lost`);
      return;
    }
    this.#takeMark(used);
    this.#storeTail(this.#tail);
    this.setUnwritable(!log.writable);
    this.#sleep();
  }

  /** What was begun to be written from here on, or further on, is perhaps in the log. */
  #takeMark(used: number): void {
    const { log } = this.#options;
    readSync(this.#fd, this.#mark, 0, RingMark.sizeBytes, ringWords.mark * 4);
    const view = this.#markView;
    const tail = RingMark.tail.get(view, 0);
    const ahead = (tail - this.#tail) >>> 0;
    if (RingMark.isSet.get(view, 0) !== 1 || ahead > used || tail % RECORD_ALIGN !== 0) return;
    const place = {
      device: RingMark.device.get(view, 0),
      inode: RingMark.inode.get(view, 0),
      offset: RingMark.offset.get(view, 0),
    };
    if (!Number.isSafeInteger(place.offset)) return;
    this.#tail = tail;
    // A line is longer than its record by its keys and escapes, which are six bytes for one at most.
    this.#found = log.readFrom(place, used * 8);
  }

  // --- taking records ---

  #drain(): Drained {
    if (this.#isBroken) return 'nothing';
    if (this.#isTaking) return 'blocked';
    let head = this.#readHead();
    if (head === undefined || head === this.#tail) return 'nothing';
    for (let doubts = 0; this.#tail !== head; ) {
      this.#isTaking = true;
      try {
        if (!this.#takePiece(head)) return 'blocked';
        doubts = 0;
      } catch (error) {
        if (!(error instanceof RingError)) throw error;
        // What was seen of a word or record that was being written is no lie.
        head = this.#readHead() ?? head;
        if (doubts++ < 1) continue;
        this.#isBroken = true;
        this.#options.onLie(error.message);
        return 'some';
      } finally {
        this.#isTaking = false;
      }
    }
    return 'some';
  }

  /** Appends the lines of what can be read at once; false when the log did not take all. RingError, nothing taken. */
  #takePiece(head: number): boolean {
    const used = (head - this.#tail) >>> 0;
    if (used > this.#dataBytes || used % RECORD_ALIGN !== 0)
      throw new RingError(`${used} bytes are said to wait in it`);
    const at = this.#tail & (this.#dataBytes - 1);
    const bytes = Math.min(used, this.#dataBytes - at, PIECE_BYTES);
    const piece = this.#piece.subarray(0, bytes);
    if (readSync(this.#fd, piece, 0, bytes, RING_HEAD_BYTES + at) !== bytes)
      throw new RingError('its file is shorter than it was');
    const before = this.#records.position;
    /** Where each record ends, counted from the tail. */
    const ends: number[] = [];
    let lines = '';
    let taken = 0;
    try {
      const isLast = bytes < PIECE_BYTES;
      while (taken < bytes) {
        const left = bytes - taken;
        if (!isLast && left < RECORD_MOST_BYTES) break;
        const length = this.#records.lengthAt(piece, taken, isLast || left >= RECORD_MOST_BYTES);
        const line = this.#records.lineAt(piece, taken, length);
        taken += length;
        if (line === undefined) {
          if (ends.length > 0) ends[ends.length - 1] = taken;
          continue;
        }
        lines += line;
        ends.push(taken);
      }
    } catch (error) {
      // What precedes it is good: it is taken first, and then this one looked at again.
      if (!(error instanceof RingError) || ends.length === 0) {
        this.#records.position = before;
        throw error;
      }
      taken = ends.at(-1)!;
    }
    return this.#append(Buffer.from(lines), ends, taken);
  }

  /** Appends what the log does not have of these lines, and moves the tail; false when it did not take all. */
  #append(lines: Buffer, ends: readonly number[], taken: number): boolean {
    const { log } = this.#options;
    const start = this.#tail;
    const begun = this.#found.length > 0 ? this.#compare(lines) : this.#begun;
    this.#begun = begun;
    this.#storeMark(start, begun);
    const isRest = begun > 0 && lines[begun - 1] !== LINE_FEED;
    const written = begun + log.write(lines.subarray(begun), isRest);
    if (written === lines.length) {
      this.#begun = 0;
      this.#storeTail((start + taken) >>> 0);
      return true;
    }
    let whole = 0;
    let lineStart = 0;
    for (let feed = lines.indexOf(LINE_FEED); feed >= 0 && feed < written; feed = lines.indexOf(LINE_FEED, lineStart)) {
      whole++;
      lineStart = feed + 1;
    }
    const tail = whole === 0 ? start : (start + ends[whole - 1]!) >>> 0;
    this.#begun = written - lineStart;
    this.#storeMark(tail, this.#begun);
    this.#storeTail(tail);
    this.#records.restart();
    return false;
  }

  /** How many bytes of these lines a daemon that was killed has written. */
  #compare(lines: Buffer): number {
    const found = this.#found;
    const length = Math.min(found.length, lines.length);
    let same = 0;
    while (same < length && found[same] === lines[same]) same++;
    this.#found = same === lines.length ? found.subarray(same) : new Uint8Array(0);
    // Where the log goes on with something else, what is alike after the last whole line is chance.
    if (same === lines.length || same === found.length) return same;
    return lines.subarray(0, same).lastIndexOf(LINE_FEED) + 1;
  }

  // --- sleeping ---

  #lookAgain(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#look();
    }, this.#busyMs);
  }

  #look(): void {
    if (this.#isBroken) return;
    const found = this.#drain();
    // The probe of the log goes on with what is blocked.
    if (found === 'some') {
      if (this.#isAsleep) this.#wake();
      return this.#lookAgain();
    }
    if (this.#isAsleep || this.#isBroken) return;
    this.#sleep();
    // A record that came before the device process saw the word rang no bell: it is looked for at once and once more later.
    this.#drain();
    this.#lookAgain();
  }

  #sleep(): void {
    this.#isAsleep = true;
    this.#writeWord(ringWords.asleep, 1);
  }

  #wake(): void {
    this.#isAsleep = false;
    this.#writeWord(ringWords.asleep, 0);
  }

  // --- words ---

  #readWord(index: number): number {
    readSync(this.#fd, this.#word, 0, 4, index * 4);
    return this.#word.readUInt32LE(0);
  }

  #writeWord(index: number, value: number): void {
    this.#word.writeUInt32LE(value >>> 0, 0);
    writeSync(this.#fd, this.#word, 0, 4, index * 4);
  }

  /** Undefined where it can't be seen whole. */
  #readHead(): number | undefined {
    for (let look = 0; look < LOOKS; look++) {
      const check = this.#readWord(ringWords.headCheck);
      const head = this.#readWord(ringWords.head);
      if (~check >>> 0 === head) return head;
    }
    return undefined;
  }

  #storeTail(tail: number): void {
    this.#tail = tail;
    this.#writeWord(ringWords.tail, tail);
    this.#writeWord(ringWords.tailCheck, ~tail);
  }

  /** The line of the record at `tail` begins `begun` bytes before the end of the log. */
  #storeMark(tail: number, begun: number): void {
    const place = this.#options.log.place();
    const view = this.#markView;
    RingMark.isSet.set(view, 0, place === undefined ? 0 : 1);
    RingMark.tail.set(view, 0, tail);
    RingMark.device.set(view, 0, place?.device ?? 0);
    RingMark.inode.set(view, 0, place?.inode ?? 0);
    RingMark.offset.set(view, 0, (place?.offset ?? 0) - (place === undefined ? 0 : begun));
    writeSync(this.#fd, this.#mark, 0, RingMark.sizeBytes, ringWords.mark * 4);
  }
}

const whyNone = (fd: number): string | undefined => {
  const stat = fstatSync(fd);
  if (!stat.isFile()) return 'it is no file';
  const head = new Uint32Array(RING_HEAD_BYTES / 4);
  readSync(fd, head, 0, RING_HEAD_BYTES, 0);
  return whyNoRing(head, stat.size);
};

const writeAll = (fd: number, bytes: Uint8Array, position: number): void => {
  for (let written = 0; written < bytes.length; )
    written += writeSync(fd, bytes, written, bytes.length - written, position + written);
};

const failed = (what: string, error: unknown): Error => {
  const { code } = error as NodeJS.ErrnoException;
  const fix = code === 'ENOSPC' ? 'its disk is full; make room' : `${code}; give a directory that you may write`;
  return new Error(`${what}: ${fix}`, { cause: error });
};
