/**
 * A process that writes notifications which may wait for locks in the kernel. Who holds such a lock may wait for an answer that
 * the process which serves has not given when it is killed, and a thread that waits for a lock can't be killed: a process with
 * such a thread never ends, and no successor comes to give the answer. This one is waited for by nobody: it ends when there is
 * nothing more to write. A shell does: it takes 100 KB.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Notifier } from './exchange.ts';

/**
 * One write(2) for each line of escapes; ENOENT, for what the kernel does not hold any more, is no failure. The printf of bash
 * writes at each newline: what has one (a line that begins with "n") is gathered first.
 */
const SCRIPT =
  'while IFS= read -r m; do case $m in n*) printf "${m#n}" | dd obs=65536 >&3;; *) printf "$m" >&3;; esac; done';
const NEWLINE = 10;
const escapes = Array.from({ length: 256 }, (_, byte) => `\\${byte.toString(8).padStart(3, '0')}`);

export class NotifyProcess implements Notifier {
  readonly #fd: number;
  readonly #shell: string;
  #child: ChildProcess | undefined;

  /** Writes to `fd`, which stays open until `close`. */
  constructor(fd: number, shell = '/bin/sh') {
    this.#fd = fd;
    this.#shell = shell;
  }

  notify(message: Uint8Array): void {
    let line = message.includes(NEWLINE) ? 'n' : '';
    for (const byte of message) line += escapes[byte]!;
    this.#child ??= this.#start();
    this.#child.stdin!.write(`${line}\n`);
  }

  /** What was notified before is written still. */
  close(): void {
    this.#child?.stdin!.end();
  }

  /** When it was killed the next notification starts another. */
  #start(): ChildProcess {
    const child = spawn(this.#shell, ['-c', SCRIPT], {
      stdio: ['pipe', 'ignore', 'ignore', this.#fd],
      env: { PATH: '/usr/bin:/bin' },
      detached: true,
    });
    child.unref();
    const ended = (): void => {
      if (this.#child === child) this.#child = undefined;
    };
    child.once('exit', ended).once('error', ended);
    // EPIPE: it was killed; names and bytes that are out of date are looked up again when the kernel's hour is over.
    child.stdin!.on('error', () => {});
    return child;
  }
}
