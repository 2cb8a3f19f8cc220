/** A root shell on the console of a VM of the tiny image, typed into and read over the API. */
import type { Client } from '../../src/cluster/client/index.ts';

/** A guest boots in about 3 s where nothing else runs. */
const bootLimitMs = 120_000;
const runLimitMs = 60_000;

/** Ends what a command printed; nothing that we run prints it, and no terminal shows it. */
const mark = '\u0004';
const printMark = String.raw`printf '\004'`;

const quoted = (text: string): string => `'${text.replaceAll("'", String.raw`'\''`)}'`;

export class GuestShell implements AsyncDisposable {
  readonly #client: Client;
  readonly #name: string;
  readonly #ended = new AbortController();
  #printed = '';
  #failure: unknown;
  #wake = Promise.withResolvers<void>();

  private constructor(client: Client, name: string) {
    this.#client = client;
    this.#name = name;
    void this.#read();
  }

  /** Resolves when the guest has booted and takes commands. */
  static async open(client: Client, name: string): Promise<GuestShell> {
    const shell = new GuestShell(client, name);
    try {
      await shell.#until('tiny: ready', bootLimitMs);
      await shell.#until('# ', bootLimitMs);
      // One that neither repeats what it is given nor asks for more.
      await shell.#type(`stty -echo; PS1= PS2= exec /bin/sh\n${printMark}\n`);
      await shell.#until(mark, runLimitMs);
      return shell;
    } catch (error) {
      await shell[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** What a script prints on both outputs. Root's runs in the shell itself, so that its `cd` stays. */
  async run(user: string, script: string): Promise<string> {
    const command = user === 'root' ? script : `su ${user} -c ${quoted(script)}`;
    await this.#type(`${command}; ${printMark}\n`);
    const printed = await this.#until(mark, runLimitMs);
    return printed.replaceAll('\r', '');
  }

  /** Leaves the console as it was: another shell comes up there. */
  async leave(): Promise<void> {
    await this.#type('stty echo; exit\n');
    await this.#until('# ', runLimitMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended.abort();
  }

  async #type(text: string): Promise<void> {
    await this.#client.raw('writeConsole', { params: { name: this.#name }, body: Buffer.from(text) });
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder();
    try {
      const { signal } = this.#ended;
      const events = this.#client.events('streamConsole', {
        params: { name: this.#name },
        query: { offset: 0 },
        signal,
      });
      for await (const { event, data } of events) {
        if (event !== 'output') continue;
        const bytes = Buffer.from((data as { readonly base64: string }).base64, 'base64');
        this.#printed += decoder.decode(bytes, { stream: true });
        this.#wake.resolve();
      }
    } catch (error) {
      this.#failure = error;
      this.#wake.resolve();
    }
  }

  /** Takes what comes up to `text`, and gives it back without it. */
  async #until(text: string, limitMs: number): Promise<string> {
    const late = setTimeout(() => {
      this.#failure = new Error(`"${this.#name}" did not answer within ${limitMs / 1000} s; so far: ${this.#printed}`);
      this.#wake.resolve();
    }, limitMs);
    try {
      for (;;) {
        const at = this.#printed.indexOf(text);
        if (at >= 0) {
          const before = this.#printed.slice(0, at);
          this.#printed = this.#printed.slice(at + text.length);
          return before;
        }
        if (this.#failure !== undefined) throw this.#failure;
        await this.#wake.promise;
        this.#wake = Promise.withResolvers();
      }
    } finally {
      clearTimeout(late);
    }
  }
}
