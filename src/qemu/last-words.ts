/** What a watcher keeps of QEMU's last events, for a daemon that was not there. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import type { JsonObject, QmpEvent } from './qmp.ts';

export interface LastWords {
  /** The boot that these are of. */
  readonly bootId: string;
  readonly watcherPid: number;
  /** When console and monitor were connected; milliseconds since 1970. */
  readonly attachedAtMs?: number;
  /** The reason of QEMU's last SHUTDOWN: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`, `host-signal` … */
  readonly shutdown?: { readonly reason: string; readonly timeMs: number };
  readonly panic?: { readonly info: JsonObject; readonly timeMs: number };
  /** When QEMU closed its monitor. */
  readonly endedAtMs?: number;
}

/** `words` after one more event, or the same object where that event is not kept. */
export function withEvent(words: LastWords, { event, data, timeMs }: QmpEvent): LastWords {
  if (event === 'SHUTDOWN') return { ...words, shutdown: { reason: String(data['reason'] ?? 'unknown'), timeMs } };
  if (event === 'GUEST_PANICKED') return { ...words, panic: { info: data, timeMs } };
  return words;
}

/** Replaces the file at once. */
export function writeLastWords(file: string, words: LastWords): void {
  writeFileSync(`${file}.new`, `${JSON.stringify(words)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** What the file has of that boot; undefined when it has nothing of it. */
export function readLastWords(file: string, bootId: string): LastWords | undefined {
  try {
    const words = JSON.parse(readFileSync(file, 'utf8')) as LastWords;
    return words.bootId === bootId ? words : undefined;
  } catch {
    return undefined;
  }
}
