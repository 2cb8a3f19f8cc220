/** A real device process under `serve`, and VMs that connect to it by their sockets. */
import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { type ServeEvent, type Server, serve } from '../../src/host/index.ts';
import { FrontEnd, type FrontEndOptions, type FrontQueue, fuse } from '../front-end/index.ts';
import { Client } from '../fuse/client.ts';

const tree = `porthole: 1
metadata:
  instance: { id: i-0001, note: "a note that everybody may read", link: { symlink: id } }
  secrets: { token: t-1 }
  guest: {}
users: { app: 1000 }
policy:
  - { path: /secrets/token, owner: app, mode: "0400" }
quota: { bytes: 16MiB, nodes: 10000 }
`;

export class Served implements AsyncDisposable {
  readonly directory: string;
  readonly file: string;
  readonly sockets: readonly string[];
  readonly events: ServeEvent[];
  /** Emits the name of every event of the server, as it occurs. */
  readonly occurs: EventEmitter;
  readonly server: Server;
  readonly pid: number;

  private constructor(
    directory: string,
    sockets: readonly string[],
    events: ServeEvent[],
    occurs: EventEmitter,
    server: Server,
  ) {
    this.occurs = occurs;
    this.directory = directory;
    this.file = path.join(directory, 'vm.yaml');
    this.sockets = sockets;
    this.events = events;
    this.server = server;
    this.pid = server.devicePid!;
  }

  static async start(sockets: number): Promise<Served> {
    const directory = mkdtempSync('/tmp/porthole-hostile-');
    const file = path.join(directory, 'vm.yaml');
    writeFileSync(file, tree);
    const paths = Array.from({ length: sockets }, (_, i) => path.join(directory, `${i}.sock`));
    const events: ServeEvent[] = [];
    const occurs = new EventEmitter();
    const server = await serve({
      file,
      vhostUser: paths,
      mounts: [],
      writeStdout: () => true,
      onEvent: (event) => {
        events.push(event);
        occurs.emit(event.event);
      },
    });
    return new Served(directory, paths, events, occurs, server);
  }

  /** Changes the value of `/instance/note` from outside. */
  rewriteNote(note: string): void {
    writeFileSync(this.file, tree.replace('a note that everybody may read', note));
  }

  /** The process that was started is still the one that serves. */
  assertAlive(): void {
    assert.equal(this.server.devicePid, this.pid, 'the device process lives');
    process.kill(this.pid, 0);
    const ended = this.events.filter(({ event }) => event === 'device-ended');
    assert.deepEqual(ended, []);
  }

  /** Memory of the process that is nobody else's, in MiB: the guest's is shared and does not count. */
  anonymousMib(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8');
    return Number(/RssAnon:\s+(\d+) kB/.exec(status)![1]) / 1024;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.stop();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const PATIENCE_MS = 60_000;

/** Connects a VM; where the one before on this socket has only just gone, the device may not know yet and is asked again. */
export function connect(
  socket: string,
  options: FrontEndOptions = {},
  upTo: 'connect' | 'handshake' | 'start' = 'start',
): FrontEnd {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const front = FrontEnd.connect(socket, options);
    try {
      front.settle();
      if (upTo !== 'connect') front.handshake();
      if (upTo === 'start') front.start();
      return front;
    } catch (error) {
      front.close();
      if (performance.now() > deadline) throw error;
    }
  }
}

/** Waits for a slot while this process goes on answering mutations. -1 when the time is over. */
export async function complete(queue: FrontQueue, timeoutMs = PATIENCE_MS): Promise<number> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const slot = queue.next();
    if (slot >= 0 || performance.now() > deadline) return slot;
    await turn();
  }
}

export async function init(front: FrontEnd): Promise<void> {
  const queue = front.queues[1]!;
  queue.add(0, fuse.writeInit(queue.request(0), 1), fuse.INIT_REPLY_BYTES);
  queue.publish();
  assert.equal(await complete(queue), 0, 'INIT is answered');
  assert.equal(fuse.OutHeader.error.get(fuse.viewOf(queue.reply(0)), 0), 0);
}

/** A VM that does nothing wrong: how long each of its requests takes. */
export class Bystander implements Disposable {
  readonly front: FrontEnd;
  readonly #times: number[] = [];

  private constructor(front: FrontEnd) {
    this.front = front;
  }

  static async connect(socket: string): Promise<Bystander> {
    const front = connect(socket);
    await init(front);
    return new Bystander(front);
  }

  /** Asks for the root's attributes, and waits without letting this process do anything else. */
  ask(): void {
    const queue = this.front.queues[1]!;
    const bytes = fuse.writeGetattr(queue.request(1), 4, 1);
    const start = performance.now();
    assert.equal(this.front.roundTrip(queue, 1, bytes, fuse.GETATTR_REPLY_BYTES), fuse.GETATTR_REPLY_BYTES);
    this.#times.push(performance.now() - start);
    assert.equal(fuse.OutHeader.error.get(fuse.viewOf(queue.reply(1)), 0), 0);
  }

  /** For people: how many were asked, and how long they took. */
  report(name: string): string {
    const times = this.#times.toSorted((a, b) => a - b);
    const at = (share: number): string => `${(1000 * times[Math.floor(share * (times.length - 1))]!).toFixed(0)} µs`;
    return `${name}: ${times.length} requests, p50 ${at(0.5)}, p99 ${at(0.99)}, longest ${at(1)}`;
  }

  [Symbol.dispose](): void {
    this.front.close();
  }
}

/** Builds requests for a session that is elsewhere. */
export const guessingClient = (): Client =>
  new Client({
    handle: () => undefined,
    reset: () => undefined,
    flushWaiters: () => undefined,
    tick: () => undefined,
    nextDeadlineMs: () => Number.POSITIVE_INFINITY,
  });
