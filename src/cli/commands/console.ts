/** `porthole vm logs` and `porthole vm console`. */
import { type Command, InvalidArgumentError } from 'commander';
import type { StreamEvent } from '../../cluster/client/index.ts';
import type { Api } from '../api.ts';
import { apiCommand, examples, parseCount, type Shell } from '../command.ts';
import { withVm } from '../near.ts';
import { SafeText } from '../safe-text.ts';
import type { Terminal } from '../terminal.ts';

interface LogFlags {
  readonly follow?: true;
  readonly tail?: number;
  readonly raw?: true;
}

interface ConsoleFlags {
  readonly escape: DetachKey;
}

/** The console log is kept up to some MiB; this is the most that one request answers. */
const mostTail = 1024 * 1024;
/** What a console shows first, so that there is a prompt to see. */
const consoleTail = 2048;

export const consoleCommands = (vm: Command, shell: Shell): void => {
  apiCommand(vm, 'logs', 'print what a virtual machine wrote to its console')
    .argument('<vm>', 'its name')
    .option('-f, --follow', 'go on with what comes, over boots, until Ctrl-C')
    .option('-n, --tail <lines>', 'the last so many lines only', parseCount(0, 100_000))
    .option('--raw', 'as it is; else a terminal gets text and colours only')
    .addHelpText('after', examples('porthole vm logs web-1 --tail 50 --follow'))
    .action((name: string, flags: LogFlags) => logs(shell, name, flags));

  apiCommand(vm, 'console', 'use the console of a virtual machine')
    .argument('<vm>', 'its name')
    .option(
      '--escape <key>',
      'the key that ends it, as "^]"; "none": no key does',
      parseDetachKey,
      parseDetachKey('^]'),
    )
    .addHelpText(
      'after',
      `
Every key goes to the machine, Ctrl-C too; Ctrl-] ends the session and leaves
the machine as it is. The machine does not learn the terminal's size: run
"stty rows N columns M" in it. What is not a terminal may be standard input
too: it is typed, and when it ends, the output goes on until Ctrl-C.

Example:
  porthole vm console web-1`,
    )
    .action((name: string, flags: ConsoleFlags) => console(shell, name, flags));
};

const logs = async ({ api: connect, terminal }: Shell, name: string, flags: LogFlags): Promise<void> => {
  const api = connect();
  const safe = terminal.outIsTerminal && flags.raw !== true ? new SafeText() : undefined;
  const print = async (bytes: Uint8Array): Promise<void> => {
    terminal.out(safe === undefined ? bytes : safe.push(bytes));
    await terminal.drained();
  };
  // The log in pieces: a request answers no more than a part of it.
  let at: number | undefined = flags.tail === undefined ? 0 : undefined;
  for (;;) {
    const from: number | undefined = at;
    const query = from === undefined ? { tail: mostTail } : { offset: from };
    const { headers, bytes } = await withVm(api, name, () => api.raw('getConsole', { params: { name }, query }));
    await print(from === undefined ? lastLines(bytes, flags.tail ?? 0) : bytes);
    at = Number(headers['console-offset']) + bytes.length;
    if (bytes.length === 0 || at >= Number(headers['console-end'])) break;
  }
  if (flags.follow === true) {
    const events = await api.stream('streamConsole', {
      params: { name },
      query: { offset: at },
      onBreak: breakWords(terminal),
    });
    await untilInterrupted(terminal, async () => {
      for await (const bytes of outputOf(events)) await print(bytes);
    });
  }
  if (safe !== undefined) terminal.out(safe.end());
};

const lineFeed = 0x0a;

/** A line that has no end yet counts. */
const lastLines = (bytes: Uint8Array, count: number): Uint8Array => {
  if (count === 0) return bytes.subarray(bytes.length);
  let at = bytes.at(-1) === lineFeed ? bytes.length - 1 : bytes.length;
  for (let i = 0; i < count && at >= 0; i++) at = at === 0 ? -1 : bytes.lastIndexOf(lineFeed, at - 1);
  return bytes.subarray(at + 1);
};

/** Following ends with Ctrl-C, which is no failure then. */
export const untilInterrupted = async (terminal: Terminal, work: () => Promise<void>): Promise<void> => {
  try {
    await work();
  } catch (error) {
    if (!terminal.interrupted.aborted) throw error;
  }
};

/** Says once that a stream broke, and once that it goes on. */
export const breakWords = ({ err }: Terminal): ((isBack: boolean) => void) => {
  let isBroken = false;
  return (isBack) => {
    // A server that closes a stream which is taken up at once again broke nothing.
    if (!isBack && !isBroken) err('the connection was lost; trying again\n');
    if (isBack && isBroken) err('connected again\n');
    isBroken = !isBack;
  };
};

async function* outputOf(events: AsyncIterable<StreamEvent>): AsyncGenerator<Uint8Array> {
  for await (const { event, data } of events) {
    if (event === 'output') yield Buffer.from((data as { readonly base64: string }).base64, 'base64');
  }
}

/** A byte, and how people call it. */
interface DetachKey {
  readonly byte: number | undefined;
  readonly name: string;
}

const parseDetachKey = (text: string): DetachKey => {
  if (text === 'none') return { byte: undefined, name: 'none' };
  const [, letter] = /^\^([@-_a-z])$/.exec(text) ?? [];
  if (letter !== undefined) return { byte: letter.toUpperCase().charCodeAt(0) & 0x1f, name: `Ctrl-${letter}` };
  throw new InvalidArgumentError('Write it as "^]" or "^a", or "none".');
};

const console = async ({ api: connect, terminal }: Shell, name: string, { escape }: ConsoleFlags): Promise<void> => {
  const { input, interrupted } = terminal;
  const left = new AbortController();
  const api = connect().under(AbortSignal.any([interrupted, left.signal]));
  const { headers } = await withVm(api, name, () => api.raw('getConsole', { params: { name }, query: { tail: 0 } }));
  const end = Number(headers['console-end']);
  const events = await api.stream('streamConsole', {
    params: { name },
    query: { offset: Math.max(Number(headers['console-start']), end - consoleTail) },
    onBreak: breakWords(terminal),
  });
  const leave = escape.byte === undefined ? '' : `; ${escape.name} ends it`;
  terminal.err(`the console of ${name}${leave}\n`);
  input.setMode('all');
  const detach = (): void => left.abort();
  try {
    const typed = type(api, name, terminal, escape.byte, detach);
    const shown = (async () => {
      for await (const bytes of outputOf(events)) {
        terminal.out(bytes);
        await terminal.drained();
      }
    })();
    shown.catch(() => {});
    await Promise.race([typed.then(() => shown), shown]);
  } catch (error) {
    if (!left.signal.aborted && !interrupted.aborted) throw error;
  } finally {
    detach();
    input.setMode('lines');
    input.close();
    if (input.isTerminal) terminal.err('\n');
  }
};

/** One request after another, in order; what is typed meanwhile goes together. */
const type = async (
  api: Api,
  name: string,
  { input }: Terminal,
  detachByte: number | undefined,
  detach: () => void,
): Promise<void> => {
  let waiting: Uint8Array[] = [];
  let sending: Promise<void> | undefined;
  let failure: unknown;
  const send = async (): Promise<void> => {
    while (waiting.length > 0) {
      const bytes = Buffer.concat(waiting);
      waiting = [];
      await api.raw('writeConsole', { params: { name }, body: bytes });
    }
  };
  for await (const chunk of input.chunks()) {
    if (failure !== undefined) throw failure;
    const at = detachByte === undefined ? -1 : chunk.indexOf(detachByte);
    const bytes = at < 0 ? chunk : chunk.subarray(0, at);
    if (bytes.length > 0) waiting.push(bytes);
    sending ??= send()
      .catch((error: unknown) => {
        failure = error;
        input.close();
      })
      .finally(() => {
        sending = undefined;
      });
    if (at < 0) continue;
    await sending;
    if (failure === undefined) detach();
    break;
  }
  await sending;
  if (failure !== undefined) throw failure;
};
