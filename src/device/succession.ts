/**
 * What makes a device process one of a line: the keeper that holds its descriptors, the process journal, and for each connection
 * of a front end its journal, found again where a predecessor has left them.
 */
import { close, duplicate } from '../sys/index.ts';
import {
  type DeviceJournal,
  type Recovered,
  type RingMemory,
  type SavedBackEnd,
  type SavedQueue,
  VSOCK_SLOTS_BYTES,
  type VsockJournal,
} from '../virtio/index.ts';
import { type Journal, JournalFile } from './journal.ts';
import { VSOCK } from './journal-records.ts';
import { type Found, KeeperClient } from './keeper-client.ts';
import { ProcessJournal } from './process-journal.ts';
import { ConnectionJournal } from './session-journal.ts';

const PROCESS = 'process';
/** Successors that may die over what was in flight before it is refused. */
const MOST_TAKEN_UP = 3;

/** Names of what is kept for a socket, by its path. */
const listening = (path: string): string => `${path} listening`;
const control = (path: string): string => `${path} control`;
const journal = (path: string): string => `${path} journal`;
const numbered = (path: string, name: number): string => `${path} ${name}`;

/** The last control message, as it stands in the journal. */
interface SavedControl {
  readonly saved: SavedBackEnd;
  readonly number: number;
  readonly reply: string;
  readonly takenBytes: number;
}

/** The keeper, as a connection's journal uses it. */
export type Keeping = Pick<KeeperClient, 'put' | 'drop' | 'finish'>;

interface ConnectionFile extends Disposable {
  readonly journal: Journal;
}

/** A connection's journal, as the device sees it. */
export class TargetJournal implements DeviceJournal, VsockJournal {
  readonly file: ConnectionFile;
  readonly connection: ConnectionJournal;
  readonly #client: Keeping;
  readonly #path: string;
  #lastName: number;
  readonly #names = new Set<number>();
  #isWhole = true;
  readonly #onLoss: (reason: string) => void;

  constructor(
    client: Keeping,
    path: string,
    file: ConnectionFile,
    names: readonly number[],
    onLoss: (reason: string) => void,
  ) {
    this.#client = client;
    this.#path = path;
    this.file = file;
    this.connection = new ConnectionJournal(file.journal);
    this.#names = new Set(names);
    this.#lastName = names.reduce((a, b) => Math.max(a, b), 0);
    this.#onLoss = onLoss;
  }

  /**
   * A successor takes it up. True when so many have died over what was in flight that it must be one of these requests: it is
   * to be refused.
   */
  takeUp(): boolean {
    const times = this.file.journal.counter('takenUp') + 1;
    this.file.journal.setCounter('takenUp', times);
    return times > MOST_TAKEN_UP;
  }

  /** What was in flight has been done again. */
  settle(): void {
    this.file.journal.setCounter('takenUp', 0);
  }

  ring(queueIndex: number): RingMemory {
    return this.file.journal.ring(queueIndex);
  }

  keep(fd: number): number {
    const name = ++this.#lastName;
    this.#names.add(name);
    if (!this.#client.put(numbered(this.#path, name), fd))
      this.#lose('the keeper does not take a descriptor of the front end');
    return name;
  }

  drop(name: number): void {
    if (this.#names.delete(name)) this.#client.drop(numbered(this.#path, name));
  }

  commit(saved: SavedBackEnd, reply: Uint8Array, takenBytes: number): boolean {
    const number = this.file.journal.counter('message') + 1;
    const text: SavedControl = { saved, number, reply: Buffer.from(reply).toString('base64'), takenBytes };
    this.file.journal.saveControl(JSON.stringify(text));
    this.file.journal.setCounter('message', number);
    return this.#client.finish(control(this.#path), number, reply, takenBytes);
  }

  begins(queueIndex: number, head: number): void {
    this.connection.begins(queueIndex, head);
  }

  ends(): void {
    this.connection.ends();
  }

  gives(queueIndex: number, head: number): void {
    this.connection.gives(queueIndex, head);
  }

  postpones(queueIndex: number, head: number): void {
    this.connection.postpones(queueIndex, head);
  }

  shown(): void {
    this.connection.shown();
  }

  /** Of a vsock device: what its guest believes to have, as a predecessor left it. Called once, at first. */
  connections(): Uint32Array {
    const { journal } = this.file;
    let payload = 0;
    for (const block of journal.blocks())
      if (block.kind === VSOCK && journal.payloadBytes(block.payload) === VSOCK_SLOTS_BYTES) payload = block.payload;
    if (payload === 0) {
      payload = journal.allocate(VSOCK_SLOTS_BYTES);
      journal.memory.u32.fill(0, payload / 4, (payload + VSOCK_SLOTS_BYTES) / 4);
      journal.commit(payload, VSOCK);
    }
    return journal.memory.u32.subarray(payload / 4, (payload + VSOCK_SLOTS_BYTES) / 4);
  }

  /** Without all its parts, a successor had better find nothing. */
  #lose(reason: string): void {
    if (!this.#isWhole) return;
    this.#isWhole = false;
    this.#client.drop(journal(this.#path));
    this.#onLoss(reason);
  }

  /** The connection is over: nothing of it is kept. */
  end(): void {
    this.#client.drop(control(this.#path));
    this.#client.drop(journal(this.#path));
    for (const name of this.#names) this.#client.drop(numbered(this.#path, name));
    this.file[Symbol.dispose]();
  }
}

/** A connection that a predecessor left. */
export interface LeftConnection {
  readonly controlFd: number;
  readonly journal: TargetJournal;
  /** Undefined: the front end has said nothing yet. */
  readonly recovered: Recovered | undefined;
}

export class Succession {
  readonly client: KeeperClient;
  readonly process: ProcessJournal;
  /** What a predecessor left, by name; what is taken up leaves it. */
  readonly #left: Map<string, Found>;
  /** Told, in words for people, of what can't be kept or taken up. */
  log: (message: string) => void = () => undefined;

  /** Throws when there is no memory for the process journal. */
  constructor(keeperPath: string) {
    this.client = new KeeperClient(keeperPath);
    this.#left = new Map((this.client.listAnew() ?? []).map((found) => [found.name, found]));
    const left = this.#take(PROCESS);
    this.process = ProcessJournal.open(left === undefined ? undefined : duplicate(left.fd));
    if (left === undefined || this.process.isFresh) this.client.put(PROCESS, this.process.fd);
  }

  /** Whether there was a predecessor. */
  get succeeds(): boolean {
    return !this.process.isFresh;
  }

  #take(name: string): Found | undefined {
    const found = this.#left.get(name);
    this.#left.delete(name);
    if (found !== undefined) this.client.adopt(found);
    return found;
  }

  /** The socket that a predecessor listened on at `path`, or what `open` opens there. */
  listen(path: string, open: () => number): number {
    const left = this.#take(listening(path));
    if (left !== undefined) return duplicate(left.fd);
    const fd = open();
    this.client.put(listening(path), fd);
    return fd;
  }

  /** A front end has connected. Undefined, and it is said why, where nothing of it can be kept. */
  begin(path: string, controlFd: number): TargetJournal | undefined {
    try {
      const file = JournalFile.create();
      const made = this.#targetJournal(path, file, []);
      this.client.put(journal(path), file.fd);
      this.client.put(control(path), controlFd);
      return made;
    } catch (error) {
      this.log(
        `${error instanceof Error ? error.message : String(error)}; what is served does not survive this process`,
      );
      return undefined;
    }
  }

  #targetJournal(path: string, file: JournalFile, names: readonly number[]): TargetJournal {
    return new TargetJournal(this.client, path, file, names, (reason) =>
      this.log(`${reason}; what is served does not survive this process`),
    );
  }

  /** The connection that a predecessor served at `path`; undefined where there was none, or where it can't go on. */
  resume(path: string): LeftConnection | undefined {
    const found = this.#take(control(path));
    const left = this.#take(journal(path));
    const prefix = `${path} `;
    const fds = new Map<number, Found>();
    for (const name of [...this.#left.keys()]) {
      const number = name.startsWith(prefix) ? Number(name.slice(prefix.length)) : Number.NaN;
      if (Number.isSafeInteger(number)) fds.set(number, this.#take(name)!);
    }
    if (found === undefined) return undefined;
    const file = left === undefined ? 'its journal is not there' : JournalFile.open(duplicate(left.fd));
    const text = typeof file === 'string' ? '' : file.journal.control();
    const saved = text === '' ? undefined : readControl(text);
    if (typeof file === 'string' || (text !== '' && saved === undefined)) {
      const reason = typeof file === 'string' ? file : 'it makes no sense';
      this.log(`what a device process left at "${path}" can't be taken up (${reason}): its front end is hung up on`);
      for (const name of [control(path), journal(path), ...[...fds.keys()].map((n) => numbered(path, n))])
        this.client.drop(name);
      return undefined;
    }
    const made = this.#targetJournal(path, file, [...fds.keys()]);
    if (saved !== undefined)
      this.client.finish(control(path), saved.number, Buffer.from(saved.reply, 'base64'), saved.takenBytes);
    this.#dropUnnamed(made, saved, fds);
    return {
      controlFd: duplicate(found.fd),
      journal: made,
      recovered: saved && { saved: saved.saved, fd: (name) => fds.get(name)?.fd ?? -1 },
    };
  }

  /** What a message brought that was not answered will be brought once more. */
  #dropUnnamed(made: TargetJournal, saved: SavedControl | undefined, fds: ReadonlyMap<number, Found>): void {
    const named = new Set(
      saved === undefined
        ? []
        : [
            ...saved.saved.regions.map(({ keptAs }) => keptAs),
            ...saved.saved.queues.flatMap(({ kick, call, err }) => [kick, call, err]),
          ],
    );
    for (const name of fds.keys()) if (!named.has(name)) made.drop(name);
  }

  /** Sockets that are served no more. */
  forget(path: string): void {
    this.client.drop(listening(path));
  }

  /** What nobody took up is of no use to anybody. */
  dropRest(): void {
    for (const [name, { fd }] of this.#left) {
      close(fd);
      this.client.drop(name);
    }
    this.#left.clear();
  }
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const regionFields = ['guestAddr', 'sizeBytes', 'frontendAddr', 'fileOffset', 'keptAs'] as const;
const queueCounts = ['num', 'descAddr', 'availAddr', 'usedAddr', 'kick', 'call', 'err'] as const;
const queueFlags = ['isEnabled', 'isStarted', 'hasRun', 'wantsStart'] as const;
const MAX_REGIONS = 32;
const MAX_QUEUES = 17;
const MAX_QUEUE_SIZE = 32_768;

const isRegion = (region: SavedBackEnd['regions'][number]): boolean =>
  regionFields.every((field) => isCount(region?.[field]));

const isQueue = (queue: SavedQueue): boolean =>
  queueCounts.every((field) => isCount(queue?.[field])) &&
  queueFlags.every((field) => typeof queue[field] === 'boolean') &&
  queue.num <= MAX_QUEUE_SIZE &&
  (queue.num & (queue.num - 1)) === 0 &&
  Number.isSafeInteger(queue.base) &&
  queue.base >= -1 &&
  queue.base <= 0xffff;

/** The state that stands in a journal, every field checked; undefined for what makes no sense. */
export function readControl(text: string): SavedControl | undefined {
  try {
    const read = JSON.parse(text) as SavedControl;
    const { saved, number, reply, takenBytes } = read;
    const { regions, queues } = saved;
    if (!isCount(number) || typeof reply !== 'string' || !isCount(takenBytes)) return undefined;
    if (reply.length > 256 || takenBytes > 4096) return undefined;
    if (!Array.isArray(regions) || regions.length > MAX_REGIONS || !regions.every(isRegion)) return undefined;
    if (!Array.isArray(queues) || queues.length > MAX_QUEUES || !queues.every(isQueue)) return undefined;
    return read;
  } catch {
    return undefined;
  }
}
