import assert from 'node:assert/strict';
import { test } from 'node:test';
import { World } from '../../test/tree/world.ts';
import { type Node, Replica, type OpenFile as TreeFile, ways } from '../tree/index.ts';
import { JournalFile } from './journal.ts';
import { ConnectionJournal } from './session-journal.ts';

/** Requests that are in flight, by place: the order of each. */
const device = (inFlight: ReadonlyMap<number, number>) => ({
  orderOf: (_queue: number, head: number) => inFlight.get(head) ?? 0,
  isInFlight: (_queue: number, head: number, order: number) => inFlight.get(head) === order,
  show: () => undefined,
});

test('a handle that a waiting request was answered with is there for a successor once its answer is out', () => {
  const world = new World({ content: { instance: { id: 'i-1' } } });
  const fileSystem = world.fileSystem(ways.mount);
  const replica = new Replica();
  world.authority.subscribe('successor', (delta) => replica.apply(delta));
  const caller = { uid: 0, gid: 0, pid: 1 };
  const instance = fileSystem.lookup(caller, 1, 'instance') as Node;
  const { ino } = fileSystem.lookup(caller, instance.ino, 'id') as Node;
  using file = JournalFile.create();
  const inFlight = new Map([[3, 17]]);
  const left = (): number[] => {
    const successor = new ConnectionJournal(file.journal);
    successor.device = device(inFlight);
    return successor.recover(fileSystem, replica).files.map(({ fh }) => fh);
  };
  const open = (journal: ConnectionJournal, fh: number): void => {
    const handle = fileSystem.open(caller, ino, 0) as TreeFile;
    journal.addFile({ fh, handle, pollLo: 0, pollHi: 0 });
  };
  const journal = new ConnectionJournal(file.journal);
  journal.device = device(inFlight);
  open(journal, 1);
  assert.deepEqual(left(), [], 'killed before the answer');
  open(journal, 2);
  journal.gives(0, 3);
  inFlight.delete(3);
  assert.deepEqual(left(), [2]);
  inFlight.set(3, 18);
  open(journal, 4);
  journal.gives(0, 3);
  assert.deepEqual(left(), [2], 'killed while it was written');
});
