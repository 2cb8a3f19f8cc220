/**
 * A tree as somebody sees it of whom nothing is known: what the cloud façades show. What the "other" bits of the policy's
 * modes do not open is not there, nor is its name, except what a rule opens with `facade: true`.
 */
import { EIO, R_OK, S_IFLNK, S_IFMT, S_IFREG, X_OK } from '../wire/index.ts';
import { isDirectory, openToAnonymous } from './access.ts';
import type { AuditSink } from './audit.ts';
import { Auditor } from './auditor.ts';
import { type Caller, ways } from './caller.ts';
import type { Clock } from './clock.ts';
import { type Node, ROOT_INO } from './node.ts';
import { defaults } from './policy.ts';
import { CHANGES_INO, type Replica } from './replica.ts';
import type { Snapshot } from './snapshot.ts';

/**
 * In whose name a façade writes, and how its reads are recorded. No uid that a process has: neither an owner nor an ACL
 * entry of a rule should name it.
 */
export const ANONYMOUS: Caller = { uid: 0xffff_fffe, gid: 0xffff_fffe, pid: 0 };

export interface AnonymousViewOptions {
  readonly replica: Replica;
  readonly audit: AuditSink;
  readonly vm: string;
  readonly clock: Clock;
}

/** Links that one look-up follows. */
const LINKS = 8;

export class AnonymousView {
  readonly #replica: Replica;
  readonly #auditor: Auditor;
  readonly #clock: Clock;

  constructor({ replica, audit, vm, clock }: AnonymousViewOptions) {
    this.#replica = replica;
    this.#auditor = new Auditor(vm, audit, clock.wallMs);
    this.#clock = clock;
  }

  get revision(): number {
    return this.#replica.snapshot.revision;
  }

  /** Tells of every commit after it can be seen here. Returns how to stop. */
  onChange(listener: () => void): () => void {
    return this.#replica.onApply(listener);
  }

  /** The file or directory at an absolute path, if it is there for everybody. Follows relative links that the outside made. */
  find(path: string): Node | undefined {
    const { snapshot } = this.#replica;
    let node = snapshot.node(ROOT_INO);
    const names = path.split('/').toReversed();
    let links = 0;
    while (names.length > 0) {
      const name = names.pop()!;
      if (node === undefined || !isDirectory(node)) return undefined;
      if (name === '' || name === '.') continue;
      if (name === '..') {
        node = snapshot.node(node.parentIno);
        continue;
      }
      const next = snapshot.child(node.ino, name);
      if (next === undefined) return undefined;
      if ((next.mode & S_IFMT) !== S_IFLNK) {
        node = next;
        continue;
      }
      const target = this.#linkTarget(next);
      if (target === undefined || ++links > LINKS) return undefined;
      names.push(...target.split('/').toReversed());
    }
    return node !== undefined && this.#shows(node) ? node : undefined;
  }

  /** Files and directories in a directory that `find` gave, by name, links followed. */
  list(directory: Node): (readonly [name: string, node: Node])[] {
    const { snapshot } = this.#replica;
    const listed = this.#opens(directory, R_OK) && this.#shows(directory);
    const path = snapshot.path(directory);
    const entries: (readonly [string, Node])[] = [];
    for (const [name, ino] of snapshot.entries(directory.ino)) {
      const child = snapshot.node(ino);
      if (child === undefined || !(listed || this.#replica.facts(child).effective.facade)) continue;
      const node = this.find(`${path}/${name}`);
      if (node !== undefined) entries.push([name, node]);
    }
    return entries;
  }

  /** The bytes of a file that `find` or `list` gave in this turn, recorded where not everybody may read them; or EIO. */
  read(node: Node): Uint8Array | number {
    const { readsAudited } = this.#replica.facts(node);
    if (node.bytes === undefined || this.#replica.isTooOld(node, this.#clock.monotonicMs())) return EIO;
    if (readsAudited && !this.#auditor.record(ways.facade, 'read', this.#replica, node, ANONYMOUS, 0)) return EIO;
    return node.bytes;
  }

  /** Records that somebody asked for what is there and not for everybody. */
  refused(path: string, errno: number): void {
    const node = this.#replica.snapshot.resolve(path);
    if (node !== undefined && (node.mode & S_IFMT) === S_IFREG && node.ino !== CHANGES_INO)
      this.#auditor.record(ways.facade, 'read', this.#replica, node, ANONYMOUS, errno);
  }

  #linkTarget(link: Node): string | undefined {
    if (link.madeBy !== 'outside' || !this.#reachable(link)) return undefined;
    const target = decoder.decode(link.bytes);
    return target.startsWith('/') ? undefined : target;
  }

  #shows(node: Node): boolean {
    if (node.ino === CHANGES_INO || node.burned || this.#replica.facts(node).effective.once) return false;
    const mask = isDirectory(node) ? (this.#replica.facts(node).effective.hidden ? X_OK | R_OK : X_OK) : R_OK;
    return this.#opens(node, mask) && this.#reachable(node);
  }

  #reachable(node: Node): boolean {
    const { snapshot } = this.#replica;
    const wallMs = this.#clock.wallMs();
    const opened = this.#replica.facts(node).effective.facade;
    for (let at = node; at.ino !== ROOT_INO; ) {
      const parent = snapshot.node(at.parentIno);
      if (parent === undefined) return false;
      const { effective } = this.#replica.facts(parent);
      const mode = effective.hidden ? X_OK | R_OK : X_OK;
      if (!openToAnonymous(effective, policyMode(snapshot, parent, effective.mode), opened ? 0 : mode, wallMs))
        return false;
      at = parent;
    }
    return true;
  }

  #opens(node: Node, mask: number): boolean {
    const { effective } = this.#replica.facts(node);
    const mode = policyMode(this.#replica.snapshot, node, effective.mode);
    return openToAnonymous(effective, mode, mask, this.#clock.wallMs());
  }
}

const decoder = new TextDecoder();

/** Never a mode that a guest set. */
const policyMode = (snapshot: Snapshot, node: Node, byRule: number | undefined): number =>
  node.madeBy === 'outside' ? node.mode : (byRule ?? defaults(snapshot.path(node), isDirectory(node)).mode);
