/** The `porthole` command as a process: standard streams, signals, exit code. */
import { runCli } from './cli.ts';

const interrupted = new AbortController();
const forced = new AbortController();
const interrupt = (): void => {
  if (interrupted.signal.aborted) forced.abort();
  interrupted.abort();
};
process.on('SIGINT', interrupt);
process.on('SIGTERM', interrupt);

/** On a terminal SIGHUP says that it is gone; to a service it says that its log was moved away. */
const hasTerminal = [process.stdin, process.stdout, process.stderr].some(({ isTTY }) => isTTY);
const reopens: (() => void)[] = [];
process.on('SIGHUP', () => {
  if (hasTerminal) interrupt();
  else for (const reopen of reopens) reopen();
});

/** A reader that falls behind by more is as good as gone. */
const waitingBytes = 16 * 1024 * 1024;
// `porthole export | head` is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exitCode = 1;
  interrupted.abort();
});

process.exitCode = await runCli(process.argv.slice(2), {
  out: (text) => {
    if (process.stdout.writableLength > waitingBytes || !process.stdout.writable) return false;
    process.stdout.write(text);
    return true;
  },
  err: (text) => void process.stderr.write(text),
  errIsTerminal: process.stderr.isTTY === true,
  environment: process.env,
  interrupted: interrupted.signal,
  forced: forced.signal,
  onReopen: (reopen) => void reopens.push(reopen),
});
