/** The `porthole` command as a process: standard streams, signals, exit code. */
import { runCli } from './cli.ts';

const interrupted = new AbortController();
const forced = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    if (interrupted.signal.aborted) forced.abort();
    interrupted.abort();
  });
}

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
});
