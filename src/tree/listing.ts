/** What a directory that is open tells, entry by entry. */
import { R_OK, S_IFDIR, S_IFMT } from '../wire/index.ts';
import type { Adoption } from './adoption.ts';
import type { Caller, Way } from './caller.ts';
import type { Clock } from './clock.ts';
import type { DirectoryEntry } from './file-system.ts';
import type { Gate } from './gate.ts';
import type { Node } from './node.ts';
import type { OpenDirectory } from './open-directories.ts';
import type { Replica } from './replica.ts';

export class Listing {
  readonly #way: Way;
  readonly #replica: Replica;
  readonly #gate: Gate;
  readonly #clock: Clock;
  readonly #adoption: Adoption;
  /** The answer, which is the caller's until the next one. */
  readonly #entry: { name: string; ino: number; type: number; node: Node | undefined } = {
    name: '',
    ino: 0,
    type: 0,
    node: undefined,
  };

  constructor(way: Way, replica: Replica, gate: Gate, clock: Clock, adoption: Adoption) {
    this.#way = way;
    this.#replica = replica;
    this.#gate = gate;
    this.#clock = clock;
    this.#adoption = adoption;
  }

  entry(caller: Caller, open: OpenDirectory, index: number): DirectoryEntry | undefined {
    const { snapshot } = this.#replica;
    const entry = this.#entry;
    if (index < 2) {
      if (index === 0) open.rewind();
      const self = snapshot.node(open.ino);
      entry.name = index === 0 ? '.' : '..';
      entry.node = index === 0 ? self : self && snapshot.node(self.parentIno);
      entry.ino = entry.node?.ino ?? open.ino;
      entry.type = S_IFDIR;
      return entry;
    }
    if (!open.listed) {
      const self = snapshot.node(open.ino);
      const wallMs = this.#clock.wallMs();
      if (self !== undefined && this.#replica.decideOpened(this.#way, self, open.caller, R_OK, wallMs) !== 0)
        return undefined;
      const hides = (child: number) => {
        const node = snapshot.node(child);
        return node !== undefined && this.#gate.hides(node, caller);
      };
      open.list(snapshot.entries(open.ino), this.#replica.policy.hides ? hides : undefined);
      this.#adoption.listed(open, index);
    }
    const found = open.at(index - 2);
    if (found === undefined) return undefined;
    entry.name = found[0];
    entry.ino = found[1];
    const node = snapshot.node(found[1]);
    entry.node = node?.parentIno === open.ino && node.name === found[0] ? node : undefined;
    entry.type = node === undefined ? 0 : node.mode & S_IFMT;
    return entry;
  }
}
