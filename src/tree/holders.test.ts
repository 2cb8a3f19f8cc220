import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { O_RDWR } from '../wire/index.ts';
import { Authority, type AuthorityOptions } from './authority.ts';
import { ways } from './caller.ts';
import type { Applied, Commit, Kept, Restored } from './commit.ts';
import type { Delta } from './delta.ts';
import type { Handle } from './file-system.ts';
import { Replica } from './replica.ts';
import { TreeFileSystem } from './tree-file-system.ts';

const app = { uid: 1000, gid: 1000, pid: 7 };
const text = (value: string) => new TextEncoder().encode(value);

/** Keeps what it is given, as a store does. */
class Memory {
  readonly nodes = new Map<number, Kept>();
  readonly applied: Applied[] = [];
  #counters = { revision: 0, nextIno: 0 };

  readonly persist = (commits: readonly Commit[]): void => {
    for (const { put, remove, revision, nextIno, applied } of commits) {
      for (const kept of put) this.nodes.set(kept.node.ino, kept);
      for (const ino of remove) this.nodes.delete(ino);
      this.#counters = { revision, nextIno };
      if (applied !== undefined) this.applied.push(applied);
    }
  };

  get restored(): Restored {
    return { ...this.#counters, nodes: [...this.nodes.values()], applied: this.applied };
  }
}

/** A device process that meets one host daemon after another. */
function device(holder: string) {
  const replica = new Replica();
  /** Undefined while no daemon is there. */
  let authority: Authority | undefined;
  let stop = (): void => {};
  const waiting: (() => void)[] = [];
  const fileSystem = new TreeFileSystem({
    replica,
    way: ways.direct,
    upstream: {
      submit: (mutation, settle) => {
        const send = (): void => authority!.commit(mutation, ways.direct, holder, undefined, settle);
        if (authority === undefined) waiting.push(send);
        else send();
      },
    },
    audit: () => true,
    vm: 'test',
    clock: { wallMs: Date.now, monotonicMs: () => performance.now() },
  });
  const meet = (next: Authority): void => {
    authority = next;
    next.holdersAre([holder]);
    stop = next.subscribe(holder, (delta: Delta) => replica.apply(structuredClone(delta)));
    for (const send of waiting.splice(0)) send();
  };
  const leave = (): void => {
    stop();
    authority = undefined;
  };
  return { fileSystem, meet, leave };
}

const optionsOf = (memory: Memory, restored?: Restored): AuthorityOptions => ({
  vm: 'test',
  wallMs: Date.now,
  digest: (bytes) => Buffer.from(bytes).toString('hex'),
  audit: () => true,
  holdersOutlive: true,
  persist: memory.persist,
  ...(restored && { restored }),
});

function begin() {
  const memory = new Memory();
  // Only for its way to write a spec.
  const { outside } = { outside: new World({ content: { instance: { id: 'x' }, guest: {} } }).authority.outside() };
  const first = new Authority(optionsOf(memory));
  first.load(outside);
  const held = device('device');
  held.meet(first);
  const { fileSystem } = held;
  const guest = fileSystem.lookup(app, 1, 'guest');
  assert(typeof guest === 'object');
  let handle: Handle | undefined;
  fileSystem.create(app, guest.ino, 'unnamed', 0o600, 0, O_RDWR, (errno, made) => {
    assert.equal(errno, 0);
    handle = made!.handle;
  });
  fileSystem.write(handle!, 0, text('kept'), (errno) => assert.equal(errno, 0));
  fileSystem.unlink(app, guest.ino, 'unnamed', (errno) => assert.equal(errno, 0));
  const next = (): Authority => {
    held.leave();
    return new Authority(optionsOf(memory, memory.restored));
  };
  return { memory, held, fileSystem, handle: handle!, next };
}

const readOf = (fileSystem: TreeFileSystem, handle: Handle): string | number => {
  const bytes = fileSystem.read(handle, 0, 100);
  return typeof bytes === 'number' ? bytes : new TextDecoder().decode(bytes);
};

test('an unlinked file that a replica has open outlives the host daemon, can be written, and goes at its release', () => {
  const { memory, held, fileSystem, handle, next } = begin();
  const second = next();
  assert.equal(readOf(fileSystem, handle), 'kept', 'while no daemon is there');
  held.meet(second);
  assert.equal(readOf(fileSystem, handle), 'kept');
  fileSystem.write(handle, 4, text(' on'), (errno) => assert.equal(errno, 0));
  assert.equal(readOf(fileSystem, handle), 'kept on');
  fileSystem.release(handle, () => {});
  assert.equal(second.snapshot.node(handle.ino), undefined);
  assert.equal(memory.nodes.has(handle.ino), false);
});

test('an unlinked file goes when its replica released it while no host daemon was there, or is gone for good', () => {
  for (const how of ['released', 'gone'] as const) {
    const { memory, held, fileSystem, handle, next } = begin();
    const second = next();
    assert.ok(second.snapshot.node(handle.ino), 'nobody knows yet who has it open');
    if (how === 'released') {
      fileSystem.release(handle, () => {});
      held.meet(second);
    } else device('another').meet(second);
    assert.equal(second.snapshot.node(handle.ino), undefined, how);
    assert.equal(memory.nodes.has(handle.ino), false, how);
  }
});
