/** One FUSE session: requests in, decisions of the file system out. Knows no transport beyond its kind. */
import type { Change, Clock, FileSystem } from '../tree/index.ts';
import { EIO, ENOSYS, ESTALE } from '../wire/index.ts';
import * as abi from './abi.ts';
import type { Exchange, Notifier, RequestHandler } from './exchange.ts';
import { pollEvents, pollIsComplete } from './handlers/files.ts';
import { type TransportKind, takenFlags } from './init-flags.ts';
import type { LeftSession, SessionJournal } from './journal.ts';
import * as notifications from './notifications.ts';
import { type Handler, operations, refusalOf, rowOf } from './operations.ts';
import { BODY, type CallerRegister, REPLY, SessionState } from './state.ts';

/** With notifications the kernel is told of every change; without, this is the most that names and attributes lag. */
const TTL_WITH_NOTIFICATIONS_SECONDS = 3600;
const TTL_SECONDS = 1;
const MAX_INODES = 262_144;
const MAX_HANDLES = 32_768;
const EXTENSION_UNIT_BYTES = 8;
/** What one open(2) may ask for on its way: names, links, and the attributes and ACLs that permissions are checked by. */
const asksOfOpen = new Set(
  ['LOOKUP', 'READLINK', 'GETATTR', 'GETXATTR', 'ACCESS', 'OPEN'].map(
    (name) => operations.find((operation) => operation.name === name)!.opcode,
  ),
);

export interface FuseSessionOptions {
  readonly transport: TransportKind;
  /** Without one, nothing is cached longer than on virtiofs. Used on `dev-fuse` only. */
  readonly notifier?: Notifier;
  readonly clock: Clock;
  /** For people: kernels that can't be served, and bugs, each once. */
  readonly log?: (message: string) => void;
  /** Filled in with the ids of each request; one that knows more of who asks looks it up when it is asked. */
  readonly caller?: CallerRegister;
  readonly maxInodes?: number;
  readonly maxHandles?: number;
  /** What outlives this process. */
  readonly journal?: SessionJournal;
}

/** One connection of a kernel. A transport calls `handle` for each request, `tick` when `nextDeadlineMs` has come. */
export class FuseSession implements RequestHandler {
  readonly #state: SessionState;
  readonly #transport: TransportKind;
  readonly #notifier: Notifier | undefined;
  readonly #handlers: readonly (Handler | undefined)[];
  readonly #refusals: readonly number[];
  /** Requests by row; the last one counts unknown opcodes. */
  readonly #counts = new Float64Array(operations.length + 1);
  readonly #unsubscribe: (() => void) | undefined;
  readonly #queue: Uint8Array[] = [];
  #handling = false;
  #bugs = 0;

  constructor(fileSystem: FileSystem, options: FuseSessionOptions) {
    this.#transport = options.transport;
    this.#notifier = options.transport === 'dev-fuse' ? options.notifier : undefined;
    this.#state = new SessionState({
      fileSystem,
      clock: options.clock,
      sharedTtlSeconds: this.#notifier === undefined ? TTL_SECONDS : TTL_WITH_NOTIFICATIONS_SECONDS,
      taken: takenFlags(options.transport),
      log: options.log ?? (() => undefined),
      maxInodes: options.maxInodes ?? MAX_INODES,
      maxHandles: options.maxHandles ?? MAX_HANDLES,
      journal: options.journal,
      caller: options.caller,
    });
    this.#refusals = operations.map((operation) => refusalOf(operation, this.#transport));
    this.#handlers = operations.map(({ handler }, index) => (this.#refusals[index] === 0 ? handler : undefined));
    if (this.#notifier !== undefined)
      this.#unsubscribe = fileSystem.subscribe((changes) => {
        for (const message of notifications.ofChanges(this.#state, changes)) this.#notify(message);
        this.#wakePollers();
      });
  }

  /** Requests handled so far of one operation, by its name in the table; `UNKNOWN` for opcodes that are not in it. */
  requests(name: string): number {
    const row = name === 'UNKNOWN' ? operations.length : operations.findIndex((operation) => operation.name === name);
    if (row < 0) throw new TypeError(`no FUSE operation is named "${name}"`);
    return this.#counts[row]!;
  }

  /** Every counter by name, for metrics: requests by operation (only those that came), opens by path, what is held. */
  counters(): [name: string, value: number][] {
    const rows = operations.map(({ name }, index): [string, number] => [`fuse.${name}`, this.#counts[index]!]);
    return [
      ...rows.filter(([, value]) => value > 0),
      ['fuse.UNKNOWN', this.#counts[operations.length]!],
      ['fuse.opensCached', this.opensCached],
      ['fuse.opensDirect', this.opensDirect],
      ['fuse.droppedReplies', this.#state.droppedReplies],
      ['fuse.bugs', this.#bugs],
      ['fuse.inodes', this.held.inodes],
      ['fuse.handles', this.held.handles],
      ['fuse.retryBytes', this.#state.retries.bytes],
    ];
  }

  /** Opens whose bytes the kernel may keep. */
  get opensCached(): number {
    return this.#state.opensCached;
  }

  /** Opens every read of which comes here. */
  get opensDirect(): number {
    return this.#state.opensDirect;
  }

  /** Requests that were answered EIO because our code threw. */
  get bugs(): number {
    return this.#bugs;
  }

  /** Nodeids and handles that the kernel holds. */
  get held(): { readonly inodes: number; readonly handles: number } {
    return { inodes: this.#state.inodes.size, handles: this.#state.handles.size };
  }

  /**
   * Goes on as a predecessor left it; before the first request. Of the last changes that one may not have come to tell the
   * kernel: it is told to look again at all it holds.
   */
  restore(left: LeftSession): void {
    this.#state.restore(left);
    if (this.#notifier === undefined) return;
    const held = left.inodes.map(({ ino }): Change => ({ ino, path: '', what: 'attributes' }));
    for (const message of notifications.ofChanges(this.#state, held)) this.#notify(message);
    this.#wakePollers();
  }

  handle(exchange: Exchange): void {
    const state = this.#state;
    state.exchange = exchange;
    state.view = exchange.view;
    state.bytes = exchange.request;
    state.answered = false;
    state.pending = undefined;
    this.#handling = true;
    let row = operations.length;
    try {
      row = this.#receive(exchange);
      const errno = this.#dispatch(row);
      if (errno > 0) this.#answer(row, errno);
      else if (!state.answered && !this.#holds()) throw new Error('the handler neither answered nor kept the request');
    } catch (error) {
      this.#bug(row, error);
    } finally {
      this.#handling = false;
      if (this.#queue.length > 0) this.#drain();
    }
  }

  /** Takes the header apart. Returns the row; `operations.length` for an unknown opcode, -1 for a header that lies. */
  #receive(exchange: Exchange): number {
    const state = this.#state;
    const { view, requestBytes } = exchange;
    if (requestBytes < BODY) {
      state.uniqueLo = 0;
      state.uniqueHi = 0;
      state.nodeid = 0;
      return -1;
    }
    state.uniqueLo = abi.InHeader.unique.lo(view, 0);
    state.uniqueHi = abi.InHeader.unique.hi(view, 0);
    state.nodeid = abi.InHeader.nodeid.get(view, 0);
    state.caller.uid = abi.InHeader.uid.get(view, 0);
    state.caller.gid = abi.InHeader.gid.get(view, 0);
    state.caller.pid = abi.InHeader.pid.get(view, 0);
    state.end = requestBytes - abi.InHeader.totalExtlen.get(view, 0) * EXTENSION_UNIT_BYTES;
    const opcode = abi.InHeader.opcode.get(view, 0);
    const row = (opcode < rowOf.length ? rowOf[opcode] : undefined) ?? operations.length;
    this.#counts[row]!++;
    if (state.retries.size > 0 && !asksOfOpen.has(opcode)) state.retries.delete(state.caller.pid);
    if (abi.InHeader.len.get(view, 0) !== requestBytes || state.end < BODY)
      return row < operations.length && operations[row]!.reply === 'none' ? row : -1;
    return row;
  }

  #dispatch(row: number): number {
    const state = this.#state;
    if (row < 0) return EIO;
    const operation = operations[row];
    if (operation === undefined) return state.initialized ? ENOSYS : EIO;
    if (!state.initialized && operation.name !== 'INIT') return EIO;
    const refusal = this.#refusals[row]!;
    if (refusal !== 0) return refusal;
    if (state.end - BODY < operation.bodyBytes || abi.InHeader.len.get(state.view, 0) !== state.exchange.requestBytes)
      return EIO;
    if (operation.reply !== 'none' && state.exchange.replyCapacity < REPLY + operation.replyBytes) return EIO;
    if (operation.needsNode) {
      const inode = state.inodes.get(state.nodeid);
      if (inode === undefined) return ESTALE;
      state.inode = inode;
    }
    return this.#handlers[row]!(state);
  }

  #answer(row: number, errno: number): void {
    const state = this.#state;
    state.pending?.abandon();
    if (row >= 0 && row < operations.length && operations[row]!.reply === 'none') state.noReply();
    else state.error(errno);
  }

  /** True when the answer comes, or came, through a pending reply; one that has not come yet keeps the exchange. */
  #holds(): boolean {
    const { pending, exchange } = this.#state;
    if (pending === undefined) return false;
    if (!pending.settled) pending.holdBy(exchange.hold());
    return true;
  }

  #bug(row: number, error: unknown): void {
    const state = this.#state;
    this.#bugs++;
    const name = operations[row]?.name ?? 'a request';
    if (this.#bugs === 1)
      state.log(
        `FUSE: ${name} failed by a bug and was answered EIO: ${error instanceof Error ? error.stack : String(error)}`,
      );
    if (state.answered || state.pending?.settled === true) return;
    this.#answer(row, EIO);
  }

  /** A notification waits until the request under way is answered: the kernel may hold locks that it needs until then. */
  #notify(message: Uint8Array): void {
    if (this.#handling) this.#queue.push(message);
    else this.#notifier?.notify(message);
  }

  #drain(): void {
    for (const message of this.#queue) this.#notifier?.notify(message);
    this.#queue.length = 0;
  }

  #wakePollers(): void {
    const state = this.#state;
    for (const file of state.polled) {
      if (!pollIsComplete(file, pollEvents(state, file))) continue;
      this.#notify(notifications.pollWakeup(file));
      state.poll(file, false);
    }
  }

  reset(): void {
    this.#state.forgetEverything(false);
    this.#state.initialized = false;
    this.#queue.length = 0;
  }

  flushWaiters(): void {
    this.#state.fileSystem.flushWaiters();
  }

  tick(nowMs: number): void {
    this.#state.fileSystem.tick(nowMs);
    this.#state.retries.tick(nowMs);
    if (this.#state.polled.size > 0) this.#wakePollers();
  }

  nextDeadlineMs(): number {
    return Math.min(this.#state.fileSystem.nextDeadlineMs(), this.#state.retries.nextDeadlineMs());
  }

  /** Ends the session for good. */
  [Symbol.dispose](): void {
    this.#unsubscribe?.();
    this.reset();
  }
}
