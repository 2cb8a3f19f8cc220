/**
 * The device process of one VM, which outlives this daemon: found again at its link socket, or started, and started again
 * when it has ended. What it held under a running VM is in the keeper's hands meanwhile.
 */
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { nextTick } from 'node:process';
import { setTimeout as pause } from 'node:timers/promises';
import {
  encodeMessage,
  isSpoken,
  JOURNAL_VERSION,
  LinkError,
  readerOnHost,
  type ToDevice,
  type ToHost,
} from '../device/index.ts';
import {
  endingInWords,
  identify,
  type LastingProcess,
  type Launcher,
  type LaunchSpec,
  lastLine,
} from '../qemu/index.ts';
import type { DeviceSession } from './device-session.ts';
import { peerOf } from './peer-of.ts';

/** What a device process that serves says of itself. */
export interface DeviceFacts {
  /** As `buildOf` says it. */
  readonly build: string;
  /** It was found, and not started by us. */
  readonly isAdopted: boolean;
  /** One that we start can take up what it leaves. */
  readonly isSucceeded: boolean;
}

export interface VmDeviceOptions {
  readonly vm: string;
  readonly launcher: Launcher;
  /** How it is started; the name of the unit is made unique here. */
  readonly launch: Omit<LaunchSpec, 'name' | 'description'>;
  /** Where it listens for us. */
  readonly linkPath: string;
  /** Only a process of this user is taken for it. */
  readonly uid: number;
  readonly session: DeviceSession;
  /** Before a new process begins: the audit ring is made ready for it. */
  readonly prepare: () => void;
  /** One serves, or (undefined) none does any more. */
  readonly onServing: (facts: DeviceFacts | undefined) => void;
  readonly onTrouble: (what: string) => void;
}

/** What may wait to be read by a device process; one that falls behind by more is stuck. */
const waitingBytes = 512 * 1024 * 1024;
/** From its start until it can be spoken to. */
const startWithinMs = 20_000;
const helloWithinMs = 5_000;
const lookEveryMs = 10;
const endWithinMs = 5_000;
/** A device process that reads nothing keeps nobody from stopping the daemon. */
const sentWithinMs = 1_000;
/** It has nothing to do but to end: what it holds is kept already, or will be when there is a keeper again. */
const handOverWithinMs = 5_000;
/** Of device processes whose `hello` does not say so. */
const firstJournal = 1;
/** Waits before one that ended is started again; the last one repeats. The first at once: a guest waits. */
const restartsMs = { served: [0, 100, 200, 500, 1_000, 2_000], neverServed: [0, 200, 1_000, 5_000, 30_000] } as const;
/** One that lived this long starts the waits anew. */
const healthyMs = 5_000;

/** One whose `hello` says nothing of it. */
const unknownBuild = 'unknown';

interface Connected {
  readonly socket: Socket;
  readonly process: LastingProcess;
  readonly isAdopted: boolean;
}

type Hello = Extract<ToHost, { type: 'hello' }>;

/** Runs from `start` until `stop` or `release`. */
export class VmDevice {
  readonly #options: VmDeviceOptions;
  readonly #over = new AbortController();
  #running: Promise<void> | undefined;
  #connected: Connected | undefined;
  #serving = Promise.withResolvers<void>();
  /** Resolved when its device can be used: a front end that a predecessor served goes on by then. */
  #ready = Promise.withResolvers<void>();
  #facts: DeviceFacts | undefined;
  /** It was told to end: its end is no trouble. */
  #told = false;
  /** The last one that was connected said hello. */
  #hasServed = false;
  #startedAtMs: number | undefined;

  constructor(options: VmDeviceOptions) {
    this.#options = options;
    for (const { promise } of [this.#serving, this.#ready]) promise.catch(() => {});
  }

  start(): void {
    this.#running ??= this.#run();
  }

  get pid(): number | undefined {
    return this.#connected?.process.identity.pid;
  }

  /** Of the process that serves now. */
  get facts(): DeviceFacts | undefined {
    return this.#facts;
  }

  /** Resolves once a device process has been told what to serve. */
  get serving(): Promise<void> {
    return this.#serving.promise;
  }

  /** Resolves once it listens for the machine. */
  get ready(): Promise<void> {
    return this.#ready.promise;
  }

  /** Kills it, because what it does no device process may: a guest may have taken it over. Another is started. */
  lied(reason: string): void {
    const connected = this.#connected;
    if (connected === undefined) return;
    this.#options.onTrouble(
      `the device process did what none may (${reason}); a guest may have taken it over; it is ended`,
    );
    connected.process.signal('SIGKILL');
  }

  /**
   * Has another process take the place of the one that serves, if one does: it ends and leaves all to its successor, for
   * which guests wait. Resolves when that one serves. Whatever may go wrong, one is started again and again until it does.
   */
  async replace(withinTime: AbortSignal): Promise<void> {
    const signal = AbortSignal.any([withinTime, this.#over.signal]);
    const connected = this.#connected;
    if (connected === undefined || this.#facts === undefined || this.#over.signal.aborted) return;
    this.#told = true;
    connected.socket.write(encodeMessage({ type: 'handOver' }));
    const kill = setTimeout(() => connected.process.signal('SIGKILL'), handOverWithinMs);
    const closed = Promise.withResolvers<void>();
    connected.socket.once('close', () => {
      clearTimeout(kill);
      // Until now it was the old one's.
      this.#ready = Promise.withResolvers();
      closed.resolve();
    });
    await within(signal, closed.promise);
    await within(signal, this.#ready.promise);
  }

  /** Ends it for good. */
  async stop(): Promise<void> {
    this.#over.abort();
    const connected = this.#connected;
    this.#told = true;
    if (connected !== undefined) {
      connected.socket.write(encodeMessage({ type: 'shutdown' }));
      const ended = connected.process.ended;
      const kill = setTimeout(() => connected.process.signal('SIGKILL'), endWithinMs);
      connected.socket.once('close', () => connected.process.look());
      await ended;
      clearTimeout(kill);
    }
    await this.#running;
    this.#options.session.close();
  }

  /** Takes in nothing more: what it asks for from now on is for the next daemon. What was taken in is still answered. */
  hush(): void {
    this.#over.abort();
    this.#connected?.socket.pause();
  }

  /** Lets go of it: it lives on without us, and has every answer that was given until now. */
  async release(): Promise<void> {
    this.hush();
    this.#options.session.close();
    const connected = this.#connected;
    connected?.process.release();
    if (connected !== undefined) await sent(connected.socket);
    connected?.socket.destroy();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { onTrouble, session } = this.#options;
    let failures = 0;
    for (;;) {
      const startedMs = performance.now();
      let why: string;
      this.#hasServed = false;
      try {
        const connected = (await this.#connect()) ?? (await this.#launch());
        if (this.#over.signal.aborted) return this.#drop(connected);
        why = await this.#serve(connected);
      } catch (error) {
        why = error instanceof Error ? error.message : String(error);
      }
      session.disconnect();
      if (this.#over.signal.aborted) return;
      if (performance.now() - startedMs > healthyMs || this.#told) failures = 0;
      const waitsMs = this.#hasServed ? restartsMs.served : restartsMs.neverServed;
      const againInMs = waitsMs[Math.min(failures, waitsMs.length - 1)]!;
      failures++;
      if (!this.#told) onTrouble(`the device process: ${why}; starting another ${inWords(againInMs)}`);
      this.#told = false;
      try {
        await pause(againInMs, undefined, { signal: this.#over.signal });
      } catch {
        return;
      }
    }
  }

  /** It came when nobody wanted it any more. */
  #drop({ socket, process }: Connected): void {
    if (this.#told) process.signal('SIGKILL');
    process.release();
    socket.destroy();
  }

  /** The process that listens, if one does. */
  async #connect(): Promise<Connected | undefined> {
    const { linkPath, uid, launcher, launch } = this.#options;
    const socket = createConnection(linkPath);
    try {
      await once(socket, 'connect');
    } catch (error) {
      socket.destroy();
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined;
      throw new Error(`connecting to it at "${linkPath}" failed: ${code}`, { cause: error });
    }
    const peer = peerOf(socket);
    const identity = typeof peer === 'number' || peer.uid !== uid ? undefined : identify(peer.pid);
    const process = identity && launcher.adopt(identity, launch.logFile);
    if (process !== undefined) return { socket, process, isAdopted: true };
    socket.destroy();
    throw new Error(`whoever listens at "${linkPath}" is not the device process; end it and remove the socket`);
  }

  async #launch(): Promise<Connected> {
    const { vm, launcher, launch, prepare } = this.#options;
    prepare();
    this.#startedAtMs = Date.now();
    const process = await launcher.launch({
      ...launch,
      name: `porthole-device-${vm}-${Date.now().toString(36)}`,
      description: `Porthole: device process of VM ${vm}`,
    });
    const deadline = performance.now() + startWithinMs;
    for (;;) {
      const connected = await this.#connect();
      if (connected !== undefined) {
        process.release();
        return { ...connected, isAdopted: false };
      }
      process.look();
      if (!process.alive) throw new Error(await this.#wordsOf(process));
      if (performance.now() > deadline) {
        process.signal('SIGKILL');
        throw new Error(`it did not listen within ${startWithinMs / 1000} s: ${lastLine(launch.logFile)}`);
      }
      await pause(lookEveryMs);
    }
  }

  /** Talks with it until the link ends; says why it did. */
  async #serve(connected: Connected): Promise<string> {
    const { socket, process } = connected;
    this.#connected = connected;
    const { session } = this.#options;
    const reader = readerOnHost();
    let failure: string | undefined;
    const giveUp = (reason: string): void => {
      // It is let go of, and perhaps not listened to any more.
      if (this.#over.signal.aborted && !this.#told) return;
      failure ??= reason;
      process.signal('SIGKILL');
    };
    const send = (message: ToDevice): void => {
      if (failure !== undefined || !socket.writable) return;
      // What is said in one turn, as when a group of commits is published, goes out together.
      if (socket.writableCorked === 0) {
        socket.cork();
        nextTick(() => socket.uncork());
      }
      socket.write(encodeMessage(message));
      if (socket.writableLength > waitingBytes) giveUp('it does not read what it is sent');
    };
    const silent = setTimeout(() => giveUp('it does not say hello'), helloWithinMs);
    socket.on('data', (chunk: Uint8Array) => {
      if (failure !== undefined) return;
      try {
        for (const message of reader.feed(chunk)) {
          if (message.type === 'hello') {
            clearTimeout(silent);
            if (!isSpoken(message.protocol)) return giveUp(`it is of another version (${inWordsOf(message)})`);
            this.#greet(connected, message);
          }
          session.take(message, send);
          if (message.type === 'ready') this.#ready.resolve();
        }
      } catch (error) {
        if (!(error instanceof LinkError)) throw error;
        giveUp(`it said what no device process may (${error.message}); a guest may have taken it over`);
      }
    });
    socket.on('error', () => {});
    await once(socket, 'close');
    clearTimeout(silent);
    this.#facts = undefined;
    if (this.#over.signal.aborted && !this.#told) return '';
    this.#options.onServing(undefined);
    // A link that ends means a process that ends, or one that another daemon has taken over.
    const kill = setTimeout(() => process.signal('SIGKILL'), endWithinMs);
    process.look();
    // A process that is let go of meanwhile never tells of its end.
    const words = await Promise.race([this.#wordsOf(process), abortOf(this.#over.signal)]);
    clearTimeout(kill);
    this.#connected = undefined;
    return failure ?? words;
  }

  #greet({ isAdopted }: Connected, { build = unknownBuild, journal = firstJournal }: Hello): void {
    this.#hasServed = true;
    this.#facts = { build, isAdopted, isSucceeded: journal === JOURNAL_VERSION };
    this.#serving.resolve();
    this.#options.onServing(this.#facts);
  }

  async #wordsOf(process: LastingProcess): Promise<string> {
    const ending = endingInWords(await process.ended);
    // Its log is kept over many starts: an old line explains nothing.
    const words = this.#startedAtMs === undefined ? '' : lastLine(this.#options.launch.logFile);
    return words === '' ? `it ${ending}` : `it ${ending}: ${words}`;
  }
}

const inWordsOf = ({ protocol, build = unknownBuild }: Hello): string => `${build}, protocol ${protocol} of the link`;

/** Ends the socket. Resolves when all that was written is on its way, or is not in time. */
const sent = (socket: Socket): Promise<unknown> =>
  Promise.race([new Promise<void>((resolve) => socket.end(resolve)), pause(sentWithinMs, undefined, { ref: false })]);

/** Resolves with no words when the signal aborts. */
const abortOf = (signal: AbortSignal): Promise<string> =>
  new Promise((resolve) => {
    if (signal.aborted) resolve('');
    else signal.addEventListener('abort', () => resolve(''), { once: true });
  });

/** Rejects with the signal's reason when that aborts first. */
const within = async (signal: AbortSignal, promise: Promise<void>): Promise<void> => {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = (): void => aborted.reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  try {
    await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
};

const inWords = (ms: number): string => (ms === 0 ? 'at once' : `in ${ms / 1000} s`);
