/** Tells the guest's inside to the server, as root's files in `/guest/.agent`, every few seconds. */
import { setTimeout as pause } from 'node:timers/promises';
import { thisVersion, versionText } from '../parts/index.ts';
import type { Caller, Mutation, Outcome, Replica, Settle } from '../tree/index.ts';
import { ProcessList, statusOf } from './inside.ts';

const EVERY_MS = 10_000;
const DIRECTORY = '/guest/.agent';
const MODE = 0o600;

export interface PublisherOptions {
  readonly replica: Replica;
  readonly submit: (mutation: Mutation, settle: Settle) => void;
  /** There is something to do soon that nothing wakes us for. */
  readonly onBusy: () => void;
}

export class Publisher {
  readonly #options: PublisherOptions;
  readonly #root: Caller = { uid: 0, gid: 0, pid: process.pid };
  readonly #processes: ProcessList;
  readonly #agent = {
    version: versionText(thisVersion()),
    pid: process.pid,
    startedAt: new Date(Date.now() - process.uptime() * 1000).toISOString(),
  };

  constructor(options: PublisherOptions) {
    this.#options = options;
    this.#processes = new ProcessList(options.onBusy);
  }

  /** Until `signal`. What the server does not take is told anew the next time. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#write('status.json', statusOf(this.#agent));
        await this.#write('processes.json', await this.#processes.list());
        await pause(EVERY_MS, undefined, { signal, ref: false });
      } catch (error) {
        if (!signal.aborted) throw error;
      }
    }
  }

  async #write(name: string, told: object): Promise<void> {
    const directory = this.#options.replica.snapshot.resolve(DIRECTORY);
    if (directory === undefined) return;
    const caller = this.#root;
    const there = this.#options.replica.snapshot.child(directory.ino, name);
    const made = { op: 'create', caller, parentIno: directory.ino, name, mode: MODE, umask: 0 } as const;
    const ino = there?.ino ?? (await this.#submit(made)).ino;
    if (ino === 0) return;
    const data = new TextEncoder().encode(JSON.stringify(told));
    await this.#submit({
      op: 'write',
      caller,
      ino,
      offset: 0,
      data,
      append: false,
      truncate: true,
      grantedAtOpen: false,
    });
  }

  #submit(mutation: Mutation): Promise<Outcome> {
    this.#options.onBusy();
    return new Promise((resolve) => {
      this.#options.submit(mutation, resolve);
    });
  }
}
