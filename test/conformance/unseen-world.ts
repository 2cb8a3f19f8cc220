/** Worlds one after the other for a kernel that remembers what it saw, in the machine's own time. */
import { setTimeout as pause } from 'node:timers/promises';
import { TestClock, World, type WorldSpec } from '../tree/world.ts';

const CLOCK_STEP_MS = 5;
/** Inode numbers that one case may use; the next one's begin after them. */
const NUMBERS_PER_CASE = 1_000_000;

class MachineClock extends TestClock {
  override readonly wallMs = (): number => Date.now();
}

/** A tree that has never been seen: `count` and `revision` are higher than those of all before. */
export const unseenWorld = (spec: WorldSpec, count: number, revision: number): World =>
  new World(spec, {
    clock: new MachineClock(),
    restored: { revision, nextIno: count * NUMBERS_PER_CASE, nodes: [] },
  });

/** This clock can't be moved: it is waited for. */
export const machineTimePasses = async (ms: number): Promise<void> => {
  const end = Date.now() + ms;
  while (Date.now() < end) await pause(CLOCK_STEP_MS);
};
