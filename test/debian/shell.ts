/** Runs scripts in a Debian guest, each with a connection of its own to what `cloud-config.ts` has cloud-init set up there. */
import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { until } from '../until.ts';
import { dialGuest } from '../vsock.ts';
import { SHELL_PORT } from './cloud-config.ts';

export interface Ran {
  /** Standard output and standard error as they came. */
  readonly out: string;
  readonly code: number;
}

/** Far more than anything takes on an idle machine. */
const limitMs = 300_000;
const END = /\0exit (\d+)\n$/;

export class GuestShell {
  readonly #hostPath: string;

  constructor(hostPath: string) {
    this.#hostPath = hostPath;
  }

  /** Resolves when the guest takes scripts; `check` fails when it never will. */
  async untilReady(check: () => void, withinMs: number): Promise<void> {
    await until(
      'cloud-init to have run what runs once',
      async () => {
        check();
        return this.dial().then(
          (socket) => socket.destroy() !== undefined,
          () => false,
        );
      },
      withinMs,
    );
  }

  /** A bash, which reads its commands a byte at a time. */
  dial(): Promise<Socket> {
    return dialGuest(this.#hostPath, SHELL_PORT);
  }

  /** By bash, as root. */
  async run(script: string): Promise<Ran> {
    const socket = await this.dial();
    socket.setTimeout(limitMs, () => socket.destroy(new Error(`no end after ${limitMs} ms: ${script}`)));
    socket.end(`(\n${script}\n) </dev/null\nprintf '\\0exit %d\\n' $?\n`);
    const all = await text(socket);
    const end = END.exec(all);
    assert.ok(end, `${JSON.stringify(script)} in the guest was cut off: ${all}`);
    return { out: all.slice(0, end.index), code: Number(end[1]) };
  }

  /** As `run`; it must succeed. */
  async sh(script: string): Promise<string> {
    const { out, code } = await this.run(script);
    assert.equal(code, 0, `${script}\n${out}`);
    return out;
  }
}
