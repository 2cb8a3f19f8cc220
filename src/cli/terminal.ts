import type { Paint } from '../host/index.ts';

/** Where a command's words go. */
export interface Terminal {
  /** False when the other side falls behind. */
  readonly out: (text: string) => boolean;
  readonly err: (text: string) => void;
  /** Whether the error stream is a terminal. */
  readonly errIsTerminal: boolean;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Aborted by the first Ctrl-C or SIGTERM; the second one forces. */
  readonly interrupted: AbortSignal;
  readonly forced: AbortSignal;
  /** Calls back whenever somebody wants files opened again: SIGHUP, but where it says that our terminal is gone. */
  readonly onReopen: (reopen: () => void) => void;
}

const code = (open: number, close: number) => (text: string) => `\u001b[${open}m${text}\u001b[${close}m`;

const colours: Paint = {
  error: (text) => code(1, 22)(code(31, 39)(text)),
  warning: (text) => code(1, 22)(code(33, 39)(text)),
  strong: code(1, 22),
  dim: code(2, 22),
};

const plain: Paint = { error: String, warning: String, strong: String, dim: String };

/** Colours for the error stream: on a terminal only, and never with NO_COLOR (https://no-color.org). */
export const paintFor = (terminal: Terminal): Paint =>
  terminal.errIsTerminal && !terminal.environment['NO_COLOR'] && terminal.environment['TERM'] !== 'dumb'
    ? colours
    : plain;
