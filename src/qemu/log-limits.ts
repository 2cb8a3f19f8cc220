/** Keeps logs that others append to at a bounded size: what a process writes there may be a guest's doing. */
import { trimLog } from './bounded-log.ts';

export interface LogLimitsOptions {
  /** Asked each time. */
  readonly files: () => Iterable<string>;
  readonly limitBytes?: number;
  readonly everyMs?: number;
  readonly onTrouble: (what: string) => void;
}

export class LogLimits implements Disposable {
  readonly #timer: NodeJS.Timeout;
  #told: string | undefined;

  constructor({ files, limitBytes = 1024 * 1024, everyMs = 10_000, onTrouble }: LogLimitsOptions) {
    this.#timer = setInterval(() => {
      let trouble: string | undefined;
      for (const file of files()) {
        try {
          trimLog(file, limitBytes);
        } catch (error) {
          trouble ??= `the log "${file}" cannot be cut: ${(error as Error).message}`;
        }
      }
      if (trouble !== undefined && trouble !== this.#told) onTrouble(trouble);
      this.#told = trouble;
    }, everyMs).unref();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
