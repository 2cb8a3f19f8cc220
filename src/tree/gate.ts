/** Who may do what, for everything that comes in one way: asks the policy of the replica, and records what is refused. */
import { EACCES, EIO, ENOENT, R_OK, X_OK } from '../wire/index.ts';
import { isDirectory } from './access.ts';
import type { Auditor } from './auditor.ts';
import type { Caller, Way } from './caller.ts';
import type { Clock } from './clock.ts';
import type { Node } from './node.ts';
import type { OpenFile } from './open-files.ts';
import type { Replica } from './replica.ts';

/** What everybody may do to a node that is `shared`: read it, and search it where it is a directory. */
const grantedToAll = (node: Node): number => (isDirectory(node) ? X_OK : R_OK);

export class Gate {
  readonly #way: Way;
  readonly #replica: Replica;
  readonly #auditor: Auditor;
  readonly #clock: Clock;

  constructor(way: Way, replica: Replica, auditor: Auditor, clock: Clock) {
    this.#way = way;
    this.#replica = replica;
    this.#auditor = auditor;
    this.#clock = clock;
  }

  maySearch(directory: Node, caller: Caller): boolean {
    return this.#replica.decide(this.#way, directory, caller, X_OK, this.#clock.wallMs()) === 0;
  }

  hides(node: Node, caller: Caller): boolean {
    const { hidden } = this.#replica.facts(node).effective;
    return hidden && this.#replica.hides(this.#way, node, caller, this.#clock.wallMs());
  }

  /** Decides, with search permission on every ancestor, and records a denial. A hidden node is not there. */
  check(operation: string, node: Node, caller: Caller, mask: number, way: Way = this.#way): number {
    const facts = this.#replica.facts(node);
    if (facts.caching === 'shared' && (mask & ~grantedToAll(node)) === 0) return 0;
    const wallMs = this.#clock.wallMs();
    const errno = this.#replica.reachable(this.#way, node, caller, wallMs)
      ? this.#replica.decide(way, node, caller, mask, wallMs)
      : EACCES;
    if (errno === 0) return (mask & R_OK) !== 0 && this.#replica.isTooOld(node, this.#clock.monotonicMs()) ? EIO : 0;
    this.denied(operation, node, caller, errno);
    return facts.effective.hidden && this.hides(node, caller) ? ENOENT : errno;
  }

  /** Decides anew for an open handle, when anything changed. */
  recheck(file: OpenFile, mask: number): number {
    const { revision } = this.#replica.snapshot;
    const node = this.#replica.snapshot.node(file.ino);
    if (node === undefined) return 0;
    const { effective } = this.#replica.facts(node);
    if (file.decidedRevision === revision && effective.untilMs === Number.POSITIVE_INFINITY) return 0;
    // What this handle itself burned, it reads on.
    const judged = node.burned ? { ...node, burned: false } : node;
    const errno = this.#replica.decideOpened(this.#way, judged, file.caller, mask, this.#clock.wallMs());
    if (errno === 0) file.decidedRevision = revision;
    else this.denied('read', node, file.caller, errno);
    return errno;
  }

  /** Returns `errno`. */
  denied(operation: string, node: Node, caller: Caller, errno: number): number {
    this.#auditor.record(this.#way, operation, this.#replica, node, caller, errno);
    return errno;
  }
}
