/** How far long work is: a bar that is drawn over on a terminal, else a line every few seconds. */
import { size } from './amounts.ts';
import { paintFor, type Terminal } from './terminal.ts';

export interface Work {
  readonly step: string;
  readonly done: number;
  readonly total?: number | undefined;
}

const lineMs = 5_000;
const barMost = 24;
/** A shorter one tells nothing. */
const barLeast = 6;

export class Progress {
  readonly #terminal: Terminal;
  readonly #title: string;
  readonly #unit: 'bytes' | 'steps';
  #lastLineMs: number;
  #lastLine = '';
  #isDrawn = false;

  /** @param title what is being done: "image debian:12" */
  constructor(terminal: Terminal, title: string, unit: 'bytes' | 'steps') {
    this.#terminal = terminal;
    this.#title = title;
    this.#unit = unit;
    this.#lastLineMs = terminal.wallMs();
  }

  tell(work: Work): void {
    const terminal = this.#terminal;
    if (terminal.errIsTerminal) {
      const { dim } = paintFor(terminal);
      const words = this.#words(work);
      const columns = terminal.columns() - 1;
      const room = Math.min(barMost, columns - words.length - 3);
      const bar =
        !(work.total !== undefined && work.total > 1) || room < barLeast
          ? ''
          : `${drawn(work.done / work.total, room)} `;
      terminal.err(`\r\u001b[K${dim(bar)}${words.slice(0, Math.max(0, columns))}`);
      this.#isDrawn = true;
      return;
    }
    const now = terminal.wallMs();
    const line = this.#words(work);
    if (now - this.#lastLineMs < lineMs || line === this.#lastLine) return;
    this.#lastLineMs = now;
    this.#lastLine = line;
    terminal.err(`${line}\n`);
  }

  /** Takes the bar away, so that other words begin at the start of a line. */
  end(): void {
    if (this.#isDrawn) this.#terminal.err('\r\u001b[K');
    this.#isDrawn = false;
  }

  #words({ step, done, total }: Work): string {
    const amount = (value: number): string => (this.#unit === 'bytes' ? size(value) : String(value));
    const head = step === '' ? this.#title : `${this.#title}: ${step}`;
    // A step that is done or not tells nothing by its amount.
    if (total === 1) return head;
    if (total !== undefined && total > 0)
      return `${head}, ${amount(done)} of ${amount(total)} (${Math.floor((100 * done) / total)} %)`;
    return done > 1 ? `${head}, ${amount(done)}` : head;
  }
}

const drawn = (part: number, width: number): string => {
  const full = Math.round(Math.min(1, Math.max(0, part)) * width);
  return `[${'#'.repeat(full)}${'.'.repeat(width - full)}]`;
};
