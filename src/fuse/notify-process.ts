/**
 * A process that writes notifications which may wait for locks in the kernel. Who holds such a lock may wait for an answer that
 * the process which serves has not given when it is killed, and a thread that waits for a lock can't be killed: a process with
 * such a thread never ends, and no successor comes to give the answer. This one is waited for by nobody: it ends when there is
 * nothing more to write. A shell does: it takes 100 KB.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Notifier } from './exchange.ts';

/** One write(2) for each line of escapes; ENOENT, for what the kernel does not hold any more, is no failure. */
const SCRIPT = 'while IFS= read -r m; do printf "$m" >&3; done';
const escapes = Array.from({ length: 256 }, (_, byte) => `\\${byte.toString(8).padStart(3, '0')}`);

export class NotifyProcess implements Notifier {
  readonly #child: ChildProcess;

  /** Writes to `fd`, of which it has a copy. */
  constructor(fd: number) {
    this.#child = spawn('/bin/sh', ['-c', SCRIPT], {
      stdio: ['pipe', 'ignore', 'ignore', fd],
      env: {},
      detached: true,
    });
    this.#child.unref();
    // EPIPE: it was killed; names and bytes that are out of date are looked up again when they are used.
    this.#child.stdin!.on('error', () => {});
    this.#child.on('error', () => {});
  }

  notify(message: Uint8Array): void {
    let line = '';
    for (const byte of message) line += escapes[byte]!;
    this.#child.stdin!.write(`${line}\n`);
  }

  /** What was notified before is written still. */
  close(): void {
    this.#child.stdin!.end();
  }
}
