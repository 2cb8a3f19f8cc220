/**
 * The directories in which libraries that share a layout make images, one for each. A library holds a lock on its own for as
 * long as it lives; one that nobody holds, and in which nothing is younger than what is kept there, is of a manager that never
 * came back, and goes.
 */
import { closeSync, lstatSync, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { flock, LOCK_EX, LOCK_NB, LOCK_SH } from '../sys/index.ts';

/** How long what came of an upload, or of a copy that broke off, waits to be gone on with. */
export const keepComingMs = 24 * 60 * 60_000;

const lockIn = (making: string): number => openSync(join(making, 'lock'), 'a', 0o600);

/** @returns a descriptor that has it until it is closed, or the process ends. Others that claim must wait meanwhile. */
export const claimMaking = (making: string): number => {
  mkdirSync(making, { recursive: true, mode: 0o711 });
  const lock = lockIn(making);
  flock(lock, LOCK_SH);
  return lock;
};

/** Nobody may claim one meanwhile. */
export const forgetMakings = (directory: string): void => {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (!entry.isDirectory() || !entry.name.startsWith('making-')) continue;
    const making = join(directory, entry.name);
    const lock = lockIn(making);
    try {
      if (flock(lock, LOCK_EX | LOCK_NB) === 0 && !isFresh(making)) rmSync(making, { recursive: true });
    } finally {
      closeSync(lock);
    }
  }
};

const isFresh = (making: string): boolean =>
  readdirSync(making, { recursive: true, encoding: 'utf8' }).some(
    (name) => lstatSync(join(making, name)).mtimeMs + keepComingMs > Date.now(),
  );
