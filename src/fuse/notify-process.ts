/**
 * A process that writes notifications which may wait for locks in the kernel. Who holds such a lock may wait for an answer that
 * the process which serves has not given when it is killed, and a thread that waits for a lock can't be killed: a process with
 * such a thread never ends, its mount neither, and no successor comes to give the answer. This one is waited for by nobody: it
 * ends when there is nothing more to write. A shell does: it takes 100 KB.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Writable } from 'node:stream';
import type { Notifier } from './exchange.ts';

/**
 * One write(2) for each line of escapes; ENOENT, for what the kernel does not hold any more, is no failure. The printf of bash
 * writes at each newline: what has one (a line that begins with "n") is gathered first. Where there is an end to write to, a
 * second shell does so once whoever serves has ended, for the first one may wait and keep the mount alive.
 */
const SCRIPT = `[ "$1" = 0 ] || (exec 3>&-; read -r _ <&4; echo 1 >&5) & exec 4<&- 5>&-
while IFS= read -r m; do case $m in n*) printf "\${m#n}" | dd obs=65536 >&3;; *) printf "$m" >&3;; esac; done`;
const NEWLINE = 10;
const escapes = Array.from({ length: 256 }, (_, byte) => `\\${byte.toString(8).padStart(3, '0')}`);

export interface NotifyOptions {
  /**
   * What ends the connection when something is written to it, which is done when this process has ended, however it ended.
   * Without it the connection lives on, with whoever keeps it.
   */
  readonly abortFd: number | undefined;
  /** More was written than the pipe takes now: Node has work. */
  readonly onBusy: () => void;
  readonly shell?: string;
}

export class NotifyProcess implements Notifier {
  readonly #child: ChildProcess;
  readonly #onBusy: () => void;
  #hasEnded = false;

  /** Writes to `fd`. Has copies of its own of both descriptors. */
  constructor(fd: number, { abortFd, onBusy, shell = '/bin/sh' }: NotifyOptions) {
    this.#onBusy = onBusy;
    const isEnded = abortFd !== undefined;
    this.#child = spawn(shell, ['-c', SCRIPT, 'sh', isEnded ? '1' : '0'], {
      stdio: ['pipe', 'ignore', 'ignore', fd, isEnded ? 'pipe' : 'ignore', abortFd ?? 'ignore'],
      env: { PATH: '/usr/bin:/bin' },
      detached: true,
    });
    this.#child.unref();
    const ended = (): void => {
      this.#hasEnded = true;
    };
    this.#child.once('exit', ended).on('error', ended);
    // EPIPE: it was killed; names and bytes that are out of date are looked up again when the kernel's hour is over.
    for (const stream of this.#child.stdio) stream?.on('error', () => {});
  }

  /** It writes nothing more: it was killed, if not closed. */
  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  notify(message: Uint8Array): void {
    let line = message.includes(NEWLINE) ? 'n' : '';
    for (const byte of message) line += escapes[byte]!;
    const stdin = this.#child.stdin!;
    stdin.write(`${line}\n`);
    if (stdin.writableLength > 0) this.#onBusy();
  }

  /** What was notified before is written still. */
  close(): void {
    this.#child.stdin!.end();
    (this.#child.stdio[4] as Writable | null)?.end();
  }
}
