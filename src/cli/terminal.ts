import type { Paint } from '../host/index.ts';

/** Where a command's words come from and go to. */
export interface Terminal {
  /** False when the other side is gone or too far behind: then nothing was written. */
  readonly out: (text: string | Uint8Array) => boolean;
  /** Resolves when what was written has gone out, or never will. */
  readonly drained: () => Promise<void>;
  readonly err: (text: string) => void;
  readonly outIsTerminal: boolean;
  readonly errIsTerminal: boolean;
  /** Columns of the error stream's terminal. */
  readonly columns: () => number;
  readonly input: Input;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
  /** SIGHUP where there is no terminal: open by name again what was opened to append to. */
  readonly onReopen: (reopen: () => void) => void;
  /** SIGUSR2: end, and leave what goes on to a successor. */
  readonly onLeave: (leave: () => void) => void;
  /** Aborted by the first Ctrl-C or SIGTERM; the second one forces. */
  readonly interrupted: AbortSignal;
  readonly forced: AbortSignal;
}

/** Standard input. */
export interface Input {
  readonly isTerminal: boolean;
  /** What arrives, until the end or `close`. One reader at a time. */
  readonly chunks: () => AsyncIterable<Uint8Array>;
  /**
   * Where it is a terminal: `keys` gives key by key and without echo, `all` leaves what is printed as it is too, as a
   * program at the other end of a line expects it. `lines` undoes it, as does the end of the process.
   */
  readonly setMode: (mode: 'lines' | 'keys' | 'all') => void;
  /** Ends `chunks`, so that nothing keeps the process alive. */
  readonly close: () => void;
}

/** Colours never carry a meaning alone. */
export interface Colours extends Paint {
  good(text: string): string;
}

const code = (open: number, close: number) => (text: string) => `\u001b[${open}m${text}\u001b[${close}m`;

const colours: Colours = {
  error: (text) => code(1, 22)(code(31, 39)(text)),
  warning: (text) => code(1, 22)(code(33, 39)(text)),
  good: code(32, 39),
  strong: code(1, 22),
  dim: code(2, 22),
};

const plain: Colours = { error: String, warning: String, good: String, strong: String, dim: String };

/** Colours for a stream: on a terminal only, and never with NO_COLOR (https://no-color.org). */
export const paintFor = (terminal: Terminal, stream: 'out' | 'err' = 'err'): Colours => {
  const { environment, outIsTerminal, errIsTerminal } = terminal;
  const isTerminal = stream === 'out' ? outIsTerminal : errIsTerminal;
  return isTerminal && !environment['NO_COLOR'] && environment['TERM'] !== 'dumb' ? colours : plain;
};
