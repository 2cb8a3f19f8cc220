/** The terminal of this process: its streams and signals. */
import { spawnSync } from 'node:child_process';
import { isatty } from 'node:tty';
import type { Input, Terminal } from './terminal.ts';

/** A reader that falls behind by more is as good as gone. */
const waitingBytes = 16 * 1024 * 1024;

export const processTerminal = (): Terminal => {
  const interrupted = new AbortController();
  const forced = new AbortController();
  const { stdout, stderr } = process;
  const interrupt = (): void => {
    if (interrupted.signal.aborted) forced.abort();
    interrupted.abort();
  };
  process.on('SIGINT', interrupt);
  process.on('SIGTERM', interrupt);
  /** On a terminal SIGHUP says that it is gone; to a service it says that its log was moved away. */
  const hasTerminal = [0, 1, 2].some((fd) => isatty(fd));
  const reopens: (() => void)[] = [];
  process.on('SIGHUP', () => {
    if (hasTerminal) interrupt();
    else for (const reopen of reopens) reopen();
  });
  // `porthole export | head` is no failure.
  stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exitCode = 1;
    interrupted.abort();
  });
  return {
    out: (text) => {
      if (stdout.writableLength > waitingBytes || !stdout.writable) return false;
      stdout.write(text);
      return true;
    },
    drained: () =>
      new Promise((resolve) => {
        if (stdout.writableLength === 0 || !stdout.writable) return resolve();
        stdout.write('', () => resolve());
      }),
    err: (text) => void stderr.write(text),
    outIsTerminal: stdout.isTTY === true,
    errIsTerminal: stderr.isTTY === true,
    columns: () => stderr.columns || 80,
    input: processInput(),
    environment: process.env,
    wallMs: Date.now,
    onLeave: (leave) => void process.on('SIGUSR2', leave),
    onReopen: (reopen) => void reopens.push(reopen),
    interrupted: interrupted.signal,
    forced: forced.signal,
  };
};

/** `process.stdin` is opened by the first use: touching it earlier would keep the process alive. */
const processInput = (): Input => {
  let opened = false;
  const isTerminal = (): boolean => process.stdin.isTTY === true;
  return {
    get isTerminal() {
      return isTerminal();
    },
    chunks: () => {
      opened = true;
      return process.stdin;
    },
    setMode: (mode) => {
      if (!isTerminal()) return;
      process.stdin.setRawMode(mode !== 'lines');
      // Node leaves it to the terminal to put a return before each line feed; its way back undoes this as well.
      if (mode === 'all') spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] });
    },
    close: () => {
      if (opened) process.stdin.destroy();
    },
  };
};
