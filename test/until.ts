/** Waiting for readiness, never for time. */
import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';

const LOOK_EVERY_MS = 10;

/**
 * Looks until `look` gives something (not false, not undefined), and returns that; fails, naming `what`, when nothing came
 * within `withinMs`, the last look being later than that.
 */
export async function until<T>(
  what: string,
  look: () => T | false | undefined | Promise<T | false | undefined>,
  withinMs = 60_000,
): Promise<T> {
  const deadline = performance.now() + withinMs;
  for (let isLast = false; !isLast; await pause(LOOK_EVERY_MS)) {
    isLast = performance.now() > deadline;
    const found = await look();
    if (found !== undefined && found !== false) return found;
  }
  throw new assert.AssertionError({ message: `waited ${withinMs} ms for ${what}` });
}
