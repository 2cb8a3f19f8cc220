/** Waiting for readiness, never for time. */
import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';

const LOOK_EVERY_MS = 10;

/** Looks until `look` gives something (not false, not undefined), and returns that; fails, naming `what`, when nothing came within `withinMs`. */
export async function until<T>(
  what: string,
  look: () => T | false | undefined | Promise<T | false | undefined>,
  withinMs = 15_000,
): Promise<T> {
  for (const deadline = performance.now() + withinMs; performance.now() < deadline; await pause(LOOK_EVERY_MS)) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
  }
  throw new assert.AssertionError({ message: `waited ${withinMs} ms for ${what}` });
}
