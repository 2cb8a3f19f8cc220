/**
 * The mount, and all that its kernel was told, where they outlive this process: descriptors that systemd keeps. A successor goes
 * on with the same mount, so that whoever has something open there, stands there or waits there notices nothing.
 */
import { ConnectionJournal, JournalFile } from '../device/index.ts';
import { DevFuse, type FuseSession, type KeptRequests, RequestMemory } from '../fuse/index.ts';
import { close, tearDown } from '../sys/index.ts';
import type { AgentTree } from './agent-tree.ts';
import { KeptTree } from './kept-tree.ts';
import { FILE_SYSTEM, isMountedAt, type Mount, mountAt, pointOf } from './mounts.ts';
import type { ServiceManager } from './service-manager.ts';

const names = {
  fuse: 'porthole-fuse',
  journal: 'porthole-journal',
  requests: 'porthole-requests',
  tree: 'porthole-tree',
} as const;
/** Successors that may die over what was in flight before it is refused. */
const MOST_TAKEN_UP = 3;

/** Which mount it is. */
type Place = Pick<Mount, 'point' | 'device'>;

export class KeptMount {
  readonly tree: KeptTree;
  readonly journal: ConnectionJournal;
  readonly #manager: ServiceManager;
  readonly #file: JournalFile;
  readonly #requests: RequestMemory;
  readonly #path: string;
  /** What a predecessor has left. */
  readonly #left: { readonly fd: number } | undefined;

  /** Goes on with what a predecessor left at `path`, or makes all anew. Throws when there is no memory for it. */
  constructor(manager: ServiceManager, path: string) {
    this.#manager = manager;
    this.#path = path;
    const left = takeUp(manager, path);
    this.#left = left;
    this.#file = left?.file ?? JournalFile.create();
    this.#requests = left?.requests ?? RequestMemory.create();
    this.tree = new KeptTree(left?.treeFd);
    this.journal = new ConnectionJournal(this.#file.journal);
    if (left !== undefined) return;
    manager.keep(names.journal, this.#file.fd);
    manager.keep(names.requests, this.#requests.fd);
    manager.keep(names.tree, this.tree.fd);
  }

  /** A predecessor has left its mount. */
  get isLeft(): boolean {
    return this.#left !== undefined;
  }

  /** The predecessor's mount, or a new one. `onBusy`: as of `DevFuse`. Throws when that is refused. */
  mount(onBusy: () => void): DevFuse {
    const kept: KeptRequests = { memory: this.#requests, journal: this.journal };
    const { journal } = this.#file;
    if (this.#left !== undefined) {
      const times = journal.counter('takenUp') + 1;
      journal.setCounter('takenUp', times);
      return DevFuse.resume(this.#left.fd, this.#path, { kept, onBusy }, times > MOST_TAKEN_UP);
    }
    const transport = DevFuse.mount(this.#path, { kept, onBusy });
    const point = pointOf(this.#path);
    const place: Place = { point, device: mountAt(point)?.device ?? '' };
    journal.saveControl(JSON.stringify(place));
    this.#manager.keep(names.fuse, transport.fd);
    return transport;
  }

  /** Tells the session what the predecessor's knew. The tree is there. */
  restore(session: FuseSession, transport: DevFuse, { fileSystem, replica }: AgentTree): void {
    this.journal.device = transport;
    if (this.isLeft) session.restore(this.journal.recover(fileSystem, replica));
  }

  /** What was in flight has been done again. */
  settle(): void {
    this.#file.journal.setCounter('takenUp', 0);
  }

  /** There is no mount any more. */
  end(): void {
    for (const name of Object.values(names)) this.#manager.drop(name);
    this.leave();
  }

  /** All is as a successor will find it: whatever is answered here from now on is noted down nowhere. */
  leave(): void {
    this.#requests[Symbol.dispose]();
    this.#file[Symbol.dispose]();
    this.tree.close();
  }
}

interface Left {
  readonly fd: number;
  readonly file: JournalFile;
  readonly requests: RequestMemory;
  readonly treeFd: number;
}

/** What a predecessor left, where a mount at `path` can go on with it. Else all of it ends, and whoever waits there is told. */
function takeUp(manager: ServiceManager, path: string): Left | undefined {
  const { kept } = manager;
  const [fd, journalFd, requestsFd, treeFd] = [names.fuse, names.journal, names.requests, names.tree].map((name) =>
    kept.get(name),
  );
  const file = journalFd === undefined ? undefined : JournalFile.open(journalFd);
  const requests = requestsFd === undefined ? undefined : RequestMemory.open(requestsFd);
  const place = typeof file === 'object' ? placeIn(file.journal.control()) : undefined;
  const mount = place === undefined ? undefined : mountAt(place.point);
  const isThere = mount?.type === FILE_SYSTEM && mount.device === place?.device;
  if (isThere && place?.point === pointOf(path) && typeof file === 'object')
    if (fd !== undefined && requests !== undefined && treeFd !== undefined) return { fd, file, requests, treeFd };
  for (const name of Object.values(names)) if (kept.has(name)) manager.drop(name);
  if (isThere) tearDown(mount.point);
  // Left by another build, which notes down in its own way where that was.
  else if (place === undefined && fd !== undefined && isMountedAt(path)) tearDown(pointOf(path));
  if (typeof file === 'object') file[Symbol.dispose]();
  requests?.[Symbol.dispose]();
  for (const rest of [fd, treeFd]) if (rest !== undefined) close(rest);
  return undefined;
}

const placeIn = (text: string): Place | undefined => {
  try {
    const { point, device } = JSON.parse(text) as Readonly<Record<string, unknown>>;
    return typeof point === 'string' && typeof device === 'string' ? { point, device } : undefined;
  } catch {
    return undefined;
  }
};
