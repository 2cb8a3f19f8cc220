/** The host's end of the control channel; `control.c` is the guest's and says what the frames are. */
import type { Socket } from 'node:net';

const hello = Buffer.from('\nporthole-hello1', 'latin1');
const sync = Buffer.from('\nporthole-sync-1', 'latin1');
const inputChunkBytes = 64 * 1024;

export interface RunOptions {
  /** 0 unless given. */
  readonly uid?: number;
  /** The uid's number unless given. */
  readonly gid?: number;
  /** Supplementary groups; none unless given. */
  readonly groups?: readonly number[];
  readonly stdin?: string | Uint8Array;
  /** After this the job's process group is killed and the run rejects; 20,000 unless given. */
  readonly timeoutMs?: number;
  /** Runs the script as `SHELL -c SCRIPT`; `sh`, which is dash, unless given. `ash` is busybox with its own applets. */
  readonly shell?: 'sh' | 'dash' | 'bash' | 'ash';
  readonly signal?: AbortSignal;
}

export interface RunResult {
  readonly stdout: Buffer;
  readonly stderr: Buffer;
  /** As a shell shows it: 128 + the signal's number when a signal ended the job. */
  readonly exitCode: number;
  /** Number of the signal that ended the job, else 0. */
  readonly signal: number;
  /** Standard output and error as text. */
  readonly text: string;
  readonly errorText: string;
}

/** A command that runs in the guest. Dispose of it to kill what is left of it. */
export class GuestJob implements AsyncDisposable {
  readonly #send: (type: string, payload: Uint8Array) => void;
  readonly #stdout: Buffer[] = [];
  readonly #stderr: Buffer[] = [];
  readonly #watchers = new Set<() => void>();
  #listener: ((chunk: Buffer) => void) | undefined;
  readonly #started = Promise.withResolvers<number>();
  readonly #done = Promise.withResolvers<RunResult>();
  #ended = false;

  constructor(send: (type: string, payload: Uint8Array) => void) {
    this.#send = send;
    this.#started.promise.catch(() => {});
    this.#done.promise.catch(() => {});
  }

  /** Process id in the guest, once the job runs. */
  get pid(): Promise<number> {
    return this.#started.promise;
  }

  /** Settles when the job has ended; rejects when the guest went away first. */
  get done(): Promise<RunResult> {
    return this.#done.promise;
  }

  get stdoutText(): string {
    return Buffer.concat(this.#stdout).toString('utf8');
  }

  get stderrText(): string {
    return Buffer.concat(this.#stderr).toString('utf8');
  }

  write(data: string | Uint8Array): void {
    const bytes = typeof data === 'string' ? Buffer.from(data) : data;
    for (let at = 0; at < bytes.length; at += inputChunkBytes) {
      this.#send('i', bytes.subarray(at, at + inputChunkBytes));
    }
  }

  endInput(): void {
    this.#send('c', new Uint8Array(0));
  }

  /** Standard output goes to `listener` as it comes, from the first byte on, and is not kept. */
  stream(listener: (chunk: Buffer) => void): void {
    for (const chunk of this.#stdout.splice(0)) listener(chunk);
    this.#listener = listener;
  }

  /** Sends a signal (15 is SIGTERM) to the job's process group. */
  kill(signal = 15): void {
    if (!this.#ended) this.#send('k', u32(signal));
  }

  /** Resolves with the match once standard output matches; rejects when the job ends or the time is over before. */
  waitForOutput(pattern: RegExp, timeoutMs = 60_000): Promise<RegExpExecArray> {
    return new Promise((resolve, reject) => {
      const finish = (act: () => void): void => {
        clearTimeout(timer);
        this.#watchers.delete(look);
        act();
      };
      const fail = (why: string): void =>
        finish(() => reject(new Error(`waiting for ${pattern} in a guest job's output: ${why}; ${this.#story()}`)));
      const look = (): void => {
        const match = pattern.exec(this.stdoutText);
        if (match) finish(() => resolve(match));
        else if (this.#ended) fail('the job ended');
      };
      const timer = setTimeout(() => fail(`not seen after ${timeoutMs} ms`), timeoutMs);
      this.#watchers.add(look);
      look();
    });
  }

  /** Feeds one frame from the guest; true when it was the last. */
  receive(type: string, payload: Buffer): boolean {
    if (type === 'o') {
      if (this.#listener === undefined) this.#stdout.push(Buffer.from(payload));
      else this.#listener(Buffer.from(payload));
    }
    if (type === 'e') this.#stderr.push(Buffer.from(payload));
    else if (type === 'p') this.#started.resolve(payload.readUInt32LE(0));
    else if (type === 'x') this.#finish(payload.readUInt32LE(0), payload.readUInt32LE(4));
    for (const watcher of this.#watchers) watcher();
    return this.#ended;
  }

  /** Ends the job from outside, when the guest is gone. */
  abandon(why: string): void {
    if (this.#ended) return;
    this.#ended = true;
    const error = new Error(`guest job lost: ${why}; ${this.#story()}`);
    this.#started.reject(error);
    this.#done.reject(error);
    for (const watcher of this.#watchers) watcher();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill(9);
    await this.#done.promise.catch(() => {});
  }

  #finish(exitCode: number, signal: number): void {
    const stdout = Buffer.concat(this.#stdout);
    const stderr = Buffer.concat(this.#stderr);
    this.#ended = true;
    this.#started.reject(new Error(`guest job could not start: ${stderr.toString()}`));
    this.#done.resolve({
      stdout,
      stderr,
      exitCode,
      signal,
      text: stdout.toString('utf8'),
      errorText: stderr.toString('utf8'),
    });
  }

  #story(): string {
    return `standard output ${JSON.stringify(this.stdoutText.slice(-2000))}, error ${JSON.stringify(this.stderrText.slice(-2000))}`;
  }
}

/** One channel for QEMU's whole life: it outlives resets of the guest, each of which says hello again. */
export class ControlChannel {
  readonly #socket: Socket;
  readonly #jobs = new Map<number, GuestJob>();
  #buffer: Buffer = Buffer.alloc(0);
  #greeted = false;
  #nextId = 1;
  #ready = Promise.withResolvers<void>();

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (data: Buffer) => this.#receive(data));
    socket.on('error', () => {});
    socket.on('close', () => this.#abandonAll('QEMU closed the control channel'));
    this.#ready.promise.catch(() => {});
  }

  /** Resolves when the guest's control service has said hello. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** To be called before the guest is made to boot again: jobs are lost, and `ready` waits for the next hello. */
  expectReboot(why: string): void {
    this.#abandonAll(why);
    this.#greeted = false;
    this.#ready = Promise.withResolvers<void>();
    this.#ready.promise.catch(() => {});
  }

  spawn(script: string, options: Omit<RunOptions, 'timeoutMs' | 'signal'> = {}): GuestJob {
    if (this.#socket.destroyed) throw new Error(`guest job after QEMU ended: ${script}`);
    if (!this.#greeted) throw new Error(`guest job before the guest was ready: ${script}`);
    const id = this.#nextId++;
    const job = new GuestJob((type, payload) => {
      if (this.#jobs.get(id) === job) this.#send(id, type, payload);
    });
    this.#jobs.set(id, job);
    const uid = options.uid ?? 0;
    const groups = options.groups ?? [];
    const head = Buffer.concat([uid, options.gid ?? uid, groups.length, ...groups].map(u32));
    const args = [options.shell ?? 'sh', '-c', script].map((arg) => Buffer.from(`${arg}\0`));
    this.#send(id, 'r', Buffer.concat([head, ...args]));
    if (options.stdin !== undefined) job.write(options.stdin);
    return job;
  }

  #send(id: number, type: string, payload: Uint8Array): void {
    if (this.#socket.destroyed) return;
    const head = Buffer.alloc(9);
    head.writeUInt32LE(payload.length + 5, 0);
    head.writeUInt32LE(id, 4);
    head.write(type, 8, 'latin1');
    this.#socket.write(Buffer.concat([head, payload]));
  }

  #receive(data: Buffer): void {
    this.#buffer = this.#buffer.length === 0 ? data : Buffer.concat([this.#buffer, data]);
    if (!this.#greeted && !this.#takeHello()) return;
    let at = 0;
    while (this.#buffer.length - at >= 9) {
      const size = this.#buffer.readUInt32LE(at);
      if (this.#buffer.length - at < 4 + size) break;
      const id = this.#buffer.readUInt32LE(at + 4);
      const type = this.#buffer.toString('latin1', at + 8, at + 9);
      if (this.#jobs.get(id)?.receive(type, this.#buffer.subarray(at + 9, at + 4 + size))) this.#jobs.delete(id);
      at += 4 + size;
    }
    this.#buffer = this.#buffer.subarray(at);
  }

  /** Drops what an earlier boot left before the greeting; true once the greeting is there. */
  #takeHello(): boolean {
    const at = this.#buffer.indexOf(hello);
    if (at < 0) {
      this.#buffer = this.#buffer.subarray(Math.max(0, this.#buffer.length - hello.length + 1));
      return false;
    }
    this.#buffer = this.#buffer.subarray(at + hello.length);
    this.#greeted = true;
    this.#socket.write(sync);
    this.#ready.resolve();
    return true;
  }

  #abandonAll(why: string): void {
    for (const job of this.#jobs.values()) job.abandon(why);
    this.#jobs.clear();
    this.#ready.reject(new Error(why));
  }
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value, 0);
  return bytes;
}
