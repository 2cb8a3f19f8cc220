/**
 * The two persistent maps that snapshots are made of. `set` and `delete` return a new map that shares all that did not
 * change with the old one, so an old snapshot stays as it was at the cost of a few small arrays a change.
 */

const BITS = 5;
const WIDTH = 1 << BITS;

type Slot = unknown[];

/**
 * Non-negative safe integers to values: a radix tree of width 32, dense because inode numbers are given out in order.
 * What is deleted leaves nothing behind, so that making and removing files for ever costs no memory.
 */
export class IntMap<T> {
  readonly #root: Slot;
  readonly #shift: number;
  /** Keys from here on need a deeper tree. */
  readonly #limit: number;
  readonly size: number;

  static empty<T>(): IntMap<T> {
    return new IntMap<T>([], 0, 0);
  }

  private constructor(root: Slot, shift: number, size: number) {
    this.#root = root;
    this.#shift = shift;
    this.#limit = 2 ** (shift + BITS);
    this.size = size;
  }

  get(key: number): T | undefined {
    if (!Number.isSafeInteger(key) || key < 0 || key >= this.#limit) return undefined;
    let slot: Slot = this.#root;
    for (let shift = this.#shift; shift > 0; shift -= BITS) {
      const next = slot[digit(key, shift)];
      if (next === undefined) return undefined;
      slot = next as Slot;
    }
    return slot[key & (WIDTH - 1)] as T | undefined;
  }

  /** `key` must be a non-negative safe integer. */
  set(key: number, value: T): IntMap<T> {
    let root = this.#root;
    let shift = this.#shift;
    while (key >= 2 ** (shift + BITS)) {
      root = root.length === 0 ? [] : [root];
      shift += BITS;
    }
    const had = this.get(key) !== undefined;
    return new IntMap<T>(setSlot(root, shift, key, value), shift, this.size + (had ? 0 : 1));
  }

  delete(key: number): IntMap<T> {
    if (this.get(key) === undefined) return this;
    if (this.size === 1) return IntMap.empty();
    return new IntMap<T>(clearSlot(this.#root, this.#shift, key) ?? [], this.#shift, this.size - 1);
  }

  *values(): Generator<T> {
    yield* slotValues<T>(this.#root, this.#shift);
  }
}

/** Bits `shift` to `shift + 4` of a key; bit operations see only the low 32. */
const digit = (key: number, shift: number): number =>
  shift <= 25 ? (key >>> shift) & (WIDTH - 1) : Math.floor(key / 2 ** shift) % WIDTH;

function setSlot(slot: Slot, shift: number, key: number, value: unknown): Slot {
  const index = digit(key, shift);
  const copy = slot.slice();
  while (copy.length < index) copy.push(undefined);
  copy[index] = shift === 0 ? value : setSlot((copy[index] as Slot | undefined) ?? [], shift - BITS, key, value);
  return copy;
}

/** The slot without a key that it has; undefined when nothing is left in it. */
function clearSlot(slot: Slot, shift: number, key: number): Slot | undefined {
  const index = digit(key, shift);
  const copy = slot.slice();
  copy[index] = shift === 0 ? undefined : clearSlot(slot[index] as Slot, shift - BITS, key);
  while (copy.length > 0 && copy.at(-1) === undefined) copy.pop();
  return copy.length === 0 ? undefined : copy;
}

function* slotValues<T>(slot: Slot, shift: number): Generator<T> {
  for (const item of slot) {
    if (item === undefined) continue;
    if (shift === 0) yield item as T;
    else yield* slotValues<T>(item as Slot, shift - BITS);
  }
}

interface Branch {
  readonly name: string;
  readonly ino: number;
  readonly priority: number;
  readonly left: Branch | undefined;
  readonly right: Branch | undefined;
  readonly size: number;
}

const sizeOf = (branch: Branch | undefined): number => (branch === undefined ? 0 : branch.size);

const branch = (of: Branch, left: Branch | undefined, right: Branch | undefined): Branch => ({
  name: of.name,
  ino: of.ino,
  priority: of.priority,
  left,
  right,
  size: sizeOf(left) + 1 + sizeOf(right),
});

/** The entries of a directory, ordered by name: a treap, whose random priorities no guest can foresee. */
export class NameMap {
  static readonly empty = new NameMap(undefined);
  readonly #root: Branch | undefined;

  private constructor(root: Branch | undefined) {
    this.#root = root;
  }

  get size(): number {
    return sizeOf(this.#root);
  }

  get(name: string): number | undefined {
    let at = this.#root;
    while (at !== undefined) {
      if (name === at.name) return at.ino;
      at = name < at.name ? at.left : at.right;
    }
    return undefined;
  }

  /** The entry that `rank` others come before; undefined past the end. */
  at(rank: number): readonly [name: string, ino: number] | undefined {
    let at = this.#root;
    let skip = rank;
    while (at !== undefined) {
      const before = sizeOf(at.left);
      if (skip === before) return [at.name, at.ino];
      if (skip < before) at = at.left;
      else {
        skip -= before + 1;
        at = at.right;
      }
    }
    return undefined;
  }

  /** How many entries are not after `name`. */
  rankAfter(name: string): number {
    let at = this.#root;
    let rank = 0;
    while (at !== undefined) {
      if (name < at.name) at = at.left;
      else {
        rank += sizeOf(at.left) + 1;
        at = at.right;
      }
    }
    return rank;
  }

  set(name: string, ino: number): NameMap {
    const [left, right] = split(this.#root, name);
    const leaf: Branch = { name, ino, priority: Math.random(), left: undefined, right: undefined, size: 1 };
    return new NameMap(merge(merge(left, leaf), right));
  }

  delete(name: string): NameMap {
    if (this.get(name) === undefined) return this;
    const [left, right] = split(this.#root, name);
    return new NameMap(merge(left, right));
  }

  *[Symbol.iterator](): Generator<readonly [name: string, ino: number]> {
    yield* walk(this.#root);
  }
}

function* walk(at: Branch | undefined): Generator<readonly [string, number]> {
  if (at === undefined) return;
  yield* walk(at.left);
  yield [at.name, at.ino];
  yield* walk(at.right);
}

/** What is before and what is after `name`; an entry of that name itself is in neither. */
function split(at: Branch | undefined, name: string): [Branch | undefined, Branch | undefined] {
  if (at === undefined) return [undefined, undefined];
  if (at.name === name) return [at.left, at.right];
  if (name < at.name) {
    const [left, right] = split(at.left, name);
    return [left, branch(at, right, at.right)];
  }
  const [left, right] = split(at.right, name);
  return [branch(at, at.left, left), right];
}

function merge(left: Branch | undefined, right: Branch | undefined): Branch | undefined {
  if (left === undefined) return right;
  if (right === undefined) return left;
  return left.priority < right.priority
    ? branch(left, left.left, merge(left.right, right))
    : branch(right, merge(left, right.left), right.right);
}
