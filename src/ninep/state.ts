/** What the handlers of one session share: the request at hand, fids and requests, and the ways to answer. */
import type { Caller, FileSystem, Node } from '../tree/index.ts';
import { decodeName, decodeText, S_IFDIR, S_IFLNK, S_IFMT } from '../wire/index.ts';
import * as abi from './abi.ts';
import { Fid, FidTable } from './fids.ts';
import { type Answerer, Pending, Requests } from './requests.ts';
import { Parts } from './shape.ts';

/** Where a message's body begins. */
export const BODY = abi.Header.sizeBytes;
/** The group of who has none: 9P tells of no groups. */
export const NOBODY = 65_534;
/** Linux closes the connection when a frame is as long as msize. */
const SPARE_BYTES = 1;
const OUT_BYTES = abi.MIN_MSIZE;

/** What a client says of who attaches. */
export interface AttachRequest {
  readonly uname: string;
  readonly aname: string;
  /** Undefined: none, as mount(8) sends it. */
  readonly uid: number | undefined;
}

export interface StateOptions {
  readonly fileSystem: FileSystem;
  readonly maxMsize: number;
  readonly maxFids: number;
  readonly maxXattrBytes: number;
  readonly attach: (request: AttachRequest) => number;
  readonly isUser: (uid: number) => boolean;
  readonly uidOfMount: () => number | undefined;
  /** Gives the transport a frame, which is written over afterwards. */
  readonly send: (frame: Uint8Array, frameBytes: number) => void;
}

/** Written over for every request that makes something. */
class Maker implements Caller {
  uid = 0;
  gid = 0;
  readonly pid = 0;
}

export class SessionState implements Answerer {
  readonly fileSystem: FileSystem;
  readonly options: StateOptions;
  readonly fids: FidTable;
  readonly requests = new Requests();
  readonly parts = new Parts();
  readonly #maker = new Maker();
  /** Largest frame of either side; 0: no version has been agreed on. */
  msize = 0;
  life = 0;
  droppedReplies = 0;

  /** The reply under construction, `Header` first. */
  head = new Uint8Array(OUT_BYTES);
  out = new DataView(this.head.buffer);
  headText = Buffer.from(this.head.buffer);

  // The request being handled.
  bytes!: Uint8Array;
  view!: DataView;
  /** Where its body begins and ends. */
  body = 0;
  end = 0;
  tag = 0;
  type = 0;
  answered = false;
  pending: Pending | undefined;

  constructor(options: StateOptions) {
    this.options = options;
    this.fileSystem = options.fileSystem;
    this.fids = new FidTable(options.maxFids, options.maxXattrBytes);
  }

  // --- what the request says ---

  /** The fid that the head begins with. */
  get fid(): Fid | undefined {
    return this.fids.get(abi.Fid.fid.get(this.view, this.body));
  }

  /** String `index` as the name of a directory entry, or an errno. */
  name(index: number): string | number {
    return decodeName(this.bytes, this.parts.starts[index]!, this.parts.ends[index]!);
  }

  /** String `index` as text, or EILSEQ. */
  text(index: number): string | number {
    return decodeText(this.bytes, this.parts.starts[index]!, this.parts.ends[index]!);
  }

  /** Bytes of string `index`. */
  textBytes(index: number): number {
    return this.parts.ends[index]! - this.parts.starts[index]!;
  }

  /**
   * Who makes a new node. The request names the group, which the client's kernel vouches for as for the uid; of nobody, for
   * whom nobody vouches, it is nobody's. Reused: for calls that do not keep it.
   */
  maker(caller: Caller, gid: number): Caller {
    this.#maker.uid = caller.uid;
    this.#maker.gid = caller.uid === NOBODY ? NOBODY : gid;
    return this.#maker;
  }

  // --- answers ---

  /** Bytes that the body of a reply may have. */
  get room(): number {
    return this.msize - SPARE_BYTES - BODY;
  }

  reply(bodyBytes: number): number {
    this.answered = true;
    this.send(this.type + 1, this.tag, bodyBytes);
    return 0;
  }

  error(errno: number): void {
    this.answered = true;
    this.sendError(this.tag, errno);
  }

  /** For requests that the tree answers when it can. */
  later(): Pending {
    const { requests, tag, type, body, end } = this;
    this.pending = new Pending(this, requests, tag, type + 1, end - body + BODY);
    return this.pending;
  }

  send(replyType: number, tag: number, bodyBytes: number): void {
    const { out, head } = this;
    const frameBytes = BODY + bodyBytes;
    abi.Header.size.set(out, 0, frameBytes);
    abi.Header.type.set(out, 0, replyType);
    abi.Header.tag.set(out, 0, tag);
    this.options.send(head, frameBytes);
  }

  sendError(tag: number, errno: number): void {
    abi.Rlerror.ecode.set(this.out, BODY, errno);
    this.send(abi.RLERROR, tag, abi.Rlerror.sizeBytes);
  }

  dropped(): void {
    this.droppedReplies++;
  }

  /** Both sides keep to it from now on. */
  agree(msize: number): void {
    this.msize = msize;
    if (this.head.length >= msize) return;
    this.head = new Uint8Array(msize);
    this.out = new DataView(this.head.buffer);
    this.headText = Buffer.from(this.head.buffer);
  }

  /** Writes the qid of a node; `version` is the revision of its last change. */
  qid(at: number, ino: number, type: number, revision: number): void {
    const format = type & S_IFMT;
    const qidType = format === S_IFDIR ? abi.QTDIR : format === S_IFLNK ? abi.QTSYMLINK : abi.QTFILE;
    abi.Qid.type.set(this.out, at, qidType);
    abi.Qid.version.set(this.out, at, revision);
    abi.Qid.path.set(this.out, at, ino);
  }

  qidOf(at: number, node: Node): void {
    this.qid(at, node.ino, node.mode, node.revision);
  }

  // --- fids ---

  newFid(number: number, caller: Caller, node: Node): Fid {
    return new Fid(number, caller, node, this.fileSystem.shownMode(node));
  }

  /** The node as it is now, which the fid remembers; undefined when it is gone. No decision is made. */
  current(fid: Fid): Node | undefined {
    const node = this.fileSystem.node(fid.ino);
    if (node !== undefined) fid.become(node, this.fileSystem.shownMode(node));
    return node;
  }

  /** Begins anew: nothing is open, nobody waits, and what is under way is not answered. */
  forgetEverything(): void {
    this.life++;
    this.msize = 0;
    this.requests.clear();
    this.fids.clear();
    this.fileSystem.reset();
  }
}
