/** Actors that are processes: `posix-agent.c` makes their calls, here or in a guest, with a kernel's own credentials. */
import path from 'node:path';
import { errnoName } from '../../src/wire/index.ts';
import { compile } from '../compile.ts';
import {
  Actor,
  type Entry,
  type Errno,
  type Fd,
  type FileSystemStat,
  type Identity,
  type PathName,
  type Stat,
  type Timespec,
  type Verdict,
} from './driver.ts';
import { nameText, typeOf } from './walk.ts';

const source = path.join(import.meta.dirname, 'posix-agent.c');
/** How long one call may take before the suite gives it up. */
const CALL_LIMIT_MS = 40_000;

/** Path of the program, a static one, alone in its directory. */
export const agentProgram = (): string => compile(source, ['-static']);

/** One agent as a process somewhere. Lines go in; `receive` is told what comes out. */
interface AgentProcess {
  write(text: string): void;
  /** SIGUSR1, which ends a call that waits and can be ended. */
  interrupt(): void;
  /** Ends the process; resolves when it is gone. */
  end(): Promise<void>;
}

/** Starts an agent of an identity; `receive` gets its standard output, and undefined with the reason when it is gone. */
export type StartAgent = (
  identity: Identity,
  receive: (chunk: Buffer | undefined, reason?: string) => void,
) => AgentProcess;

/** A line in, a line out, in order. */
class Agent {
  readonly key: string;
  readonly #process: AgentProcess;
  readonly #waiting: PromiseWithResolvers<string>[] = [];
  #parts: Buffer[] = [];
  #gone: string | undefined;

  constructor(key: string, identity: Identity, start: StartAgent) {
    this.key = key;
    // The greeting.
    this.#waiting.push(Promise.withResolvers<string>());
    this.#process = start(identity, (chunk, reason) => (chunk === undefined ? this.#lost(reason) : this.#take(chunk)));
  }

  get idle(): boolean {
    return this.#waiting.length === 0;
  }

  async ask(line: string): Promise<string> {
    if (this.#gone !== undefined) throw new Error(`the agent is gone: ${this.#gone}`);
    const waiting = Promise.withResolvers<string>();
    this.#waiting.push(waiting);
    this.#process.write(`${line}\n`);
    const limit = setTimeout(
      () => waiting.reject(new Error(`no answer in ${CALL_LIMIT_MS} ms to ${line.slice(0, 200)}`)),
      CALL_LIMIT_MS,
    );
    try {
      return await waiting.promise;
    } finally {
      clearTimeout(limit);
    }
  }

  interrupt(): void {
    this.#process.interrupt();
  }

  end(): Promise<void> {
    return this.#process.end();
  }

  #take(chunk: Buffer): void {
    let from = 0;
    for (let newline = chunk.indexOf(10); newline >= 0; newline = chunk.indexOf(10, from)) {
      this.#parts.push(chunk.subarray(from, newline));
      this.#waiting.shift()?.resolve(Buffer.concat(this.#parts).toString('latin1'));
      this.#parts = [];
      from = newline + 1;
    }
    if (from < chunk.length) this.#parts.push(Buffer.from(chunk.subarray(from)));
  }

  #lost(reason = 'it ended'): void {
    this.#gone = reason;
    for (const waiting of this.#waiting.splice(0)) {
      waiting.promise.catch(() => {});
      waiting.reject(new Error(`the agent is gone: ${reason}`));
    }
  }
}

const hex = (bytes: Uint8Array): string => (bytes.length === 0 ? '-' : Buffer.from(bytes).toString('hex'));
const hexOf = (text: PathName): string => hex(typeof text === 'string' ? Buffer.from(text) : text);
const unhex = (word: string): Buffer => (word === '-' ? Buffer.alloc(0) : Buffer.from(word, 'hex'));

function statOf(words: readonly string[]): Stat {
  const [mode, uid, gid, size, ino, nlink, asec, ansec, msec, mnsec, csec, cnsec] = words.map(Number);
  return {
    type: typeOf(mode!),
    mode: mode! & 0o7777,
    uid: uid!,
    gid: gid!,
    size: size!,
    ino: ino!,
    nlink: nlink!,
    atime: { sec: asec!, nsec: ansec! },
    mtime: { sec: msec!, nsec: mnsec! },
    ctime: { sec: csec!, nsec: cnsec! },
  };
}

/** `d_type` is the type's bits of a mode, shifted. */
const entryOf = (word: string): Entry => {
  const [name, ino, type] = word.split(':');
  return { name: nameText(unhex(name!)), ino: Number(ino), type: typeOf(Number(type) << 12) };
};

class AgentActor extends Actor {
  readonly agent: Agent;

  constructor(agent: Agent, identity: Identity) {
    super(identity);
    this.agent = agent;
  }

  async #call<T>(line: string, value: (words: readonly string[]) => T): Promise<T | Errno> {
    const [status, ...words] = (await this.agent.ask(line)).split(' ');
    if (status === 'err') return errnoName(Number(words[0])) as Errno;
    return value(words);
  }

  #verdict(line: string): Promise<Verdict> {
    return this.#call(line, () => 'OK' as const);
  }

  #number(line: string): Promise<number | Errno> {
    return this.#call(line, (words) => Number(words[0]));
  }

  #bytes(line: string): Promise<Uint8Array | Errno> {
    return this.#call(line, (words) => unhex(words[0]!));
  }

  umask(mask: number): Promise<Verdict> {
    return this.#verdict(`umask ${mask}`);
  }

  open(path: PathName, flags: number, mode = 0o666): Promise<Fd | Errno> {
    return this.#number(`open ${hexOf(path)} ${flags} ${mode}`);
  }

  async createNamed(directory: PathName, name: string): Promise<Verdict> {
    const fd = await this.#number(`open ${hexOf(`${directory as string}/${name}`)} ${0o301} ${0o644}`);
    return typeof fd === 'string' ? fd : await this.close(fd);
  }

  close(fd: Fd): Promise<Verdict> {
    return this.#verdict(`close ${fd}`);
  }

  read(fd: Fd, bytes: number): Promise<Uint8Array | Errno> {
    return this.#bytes(`read ${fd} ${bytes}`);
  }

  pread(fd: Fd, bytes: number, offset: number): Promise<Uint8Array | Errno> {
    return this.#bytes(`pread ${fd} ${bytes} ${offset}`);
  }

  write(fd: Fd, data: Uint8Array): Promise<number | Errno> {
    return this.#number(`write ${fd} ${hex(data)}`);
  }

  pwrite(fd: Fd, data: Uint8Array, offset: number): Promise<number | Errno> {
    return this.#number(`pwrite ${fd} ${hex(data)} ${offset}`);
  }

  fsync(fd: Fd): Promise<Verdict> {
    return this.#verdict(`fsync ${fd}`);
  }

  fstat(fd: Fd): Promise<Stat | Errno> {
    return this.#call(`fstat ${fd}`, statOf);
  }

  ftruncate(fd: Fd, size: number): Promise<Verdict> {
    return this.#verdict(`ftruncate ${fd} ${size}`);
  }

  fchmod(fd: Fd, mode: number): Promise<Verdict> {
    return this.#verdict(`fchmod ${fd} ${mode}`);
  }

  async readable(fd: Fd): Promise<boolean> {
    return (await this.#number(`poll ${fd}`)) === 1;
  }

  stat(path: PathName): Promise<Stat | Errno> {
    return this.#call(`stat ${hexOf(path)}`, statOf);
  }

  lstat(path: PathName): Promise<Stat | Errno> {
    return this.#call(`lstat ${hexOf(path)}`, statOf);
  }

  access(path: PathName, mask: number): Promise<Verdict> {
    return this.#verdict(`access ${hexOf(path)} ${mask}`);
  }

  readdir(path: PathName): Promise<readonly Entry[] | Errno> {
    return this.#call(`readdir ${hexOf(path)}`, (words) => words.map(entryOf));
  }

  mkdir(path: PathName, mode: number): Promise<Verdict> {
    return this.#verdict(`mkdir ${hexOf(path)} ${mode}`);
  }

  rmdir(path: PathName): Promise<Verdict> {
    return this.#verdict(`rmdir ${hexOf(path)}`);
  }

  unlink(path: PathName): Promise<Verdict> {
    return this.#verdict(`unlink ${hexOf(path)}`);
  }

  rename(path: PathName, newPath: PathName, flags = 0): Promise<Verdict> {
    return this.#verdict(`rename ${hexOf(path)} ${hexOf(newPath)} ${flags}`);
  }

  symlink(target: PathName, path: PathName): Promise<Verdict> {
    return this.#verdict(`symlink ${hexOf(path)} ${hexOf(target)}`);
  }

  readlink(path: PathName): Promise<Uint8Array | Errno> {
    return this.#bytes(`readlink ${hexOf(path)}`);
  }

  link(path: PathName, newPath: PathName): Promise<Verdict> {
    return this.#verdict(`link ${hexOf(path)} ${hexOf(newPath)}`);
  }

  mknod(path: PathName, mode: number): Promise<Verdict> {
    return this.#verdict(`mknod ${hexOf(path)} ${mode}`);
  }

  chmod(path: PathName, mode: number): Promise<Verdict> {
    return this.#verdict(`chmod ${hexOf(path)} ${mode}`);
  }

  chown(path: PathName, uid: number, gid: number): Promise<Verdict> {
    return this.#verdict(`lchown ${hexOf(path)} ${uid} ${gid}`);
  }

  truncate(path: PathName, size: number): Promise<Verdict> {
    return this.#verdict(`truncate ${hexOf(path)} ${size}`);
  }

  utimens(path: PathName, atime: Timespec | 'now' | 'omit', mtime: Timespec | 'now' | 'omit'): Promise<Verdict> {
    const word = (time: Timespec | 'now' | 'omit') => (typeof time === 'string' ? time : `${time.sec}.${time.nsec}`);
    return this.#verdict(`utimens ${hexOf(path)} ${word(atime)} ${word(mtime)}`);
  }

  getxattr(path: PathName, name: string): Promise<Uint8Array | Errno> {
    return this.#bytes(`getxattr ${hexOf(path)} ${name}`);
  }

  listxattr(path: PathName): Promise<readonly string[] | Errno> {
    return this.#call(`listxattr ${hexOf(path)}`, (words) => unhex(words[0]!).toString().split('\0').slice(0, -1));
  }

  setxattr(path: PathName, name: string, value: Uint8Array, flags = 0): Promise<Verdict> {
    return this.#verdict(`setxattr ${hexOf(path)} ${name} ${hex(value)} ${flags}`);
  }

  removexattr(path: PathName, name: string): Promise<Verdict> {
    return this.#verdict(`removexattr ${hexOf(path)} ${name}`);
  }

  statfs(path: PathName): Promise<FileSystemStat | Errno> {
    return this.#call(`statfs ${hexOf(path)}`, (words) => {
      const [blockSizeBytes, blocks, blocksFree, files, filesFree, nameBytes] = words.map(Number);
      return {
        blockSizeBytes: blockSizeBytes!,
        blocks: blocks!,
        blocksFree: blocksFree!,
        files: files!,
        filesFree: filesFree!,
        nameBytes: nameBytes!,
      };
    });
  }

  interrupt(): void {
    this.agent.interrupt();
  }
}

/** Agents by identity, used again from case to case. */
export class AgentPool {
  readonly #start: StartAgent;
  readonly #free: Agent[] = [];
  readonly #busy = new Set<Agent>();

  constructor(start: StartAgent) {
    this.#start = start;
  }

  take(identity: Identity): AgentActor {
    const { uid, gid, groups } = identity;
    const key = JSON.stringify([uid, gid, groups]);
    const index = this.#free.findIndex((agent) => agent.key === key);
    const agent = index >= 0 ? this.#free.splice(index, 1)[0]! : new Agent(key, identity, this.#start);
    this.#busy.add(agent);
    return new AgentActor(agent, identity);
  }

  /** Has every agent close its descriptors; calls that still wait are interrupted until they end, or the agent is killed. */
  async recall(how: 'interrupt' | 'kill' = 'interrupt'): Promise<void> {
    for (const agent of this.#busy) {
      if (how === 'kill' && !agent.idle) {
        await agent.end();
        continue;
      }
      const reset = agent.ask('reset');
      while (!agent.idle && (await Promise.race([reset.then(() => true), soon()])) === false) agent.interrupt();
      await reset;
      this.#free.push(agent);
    }
    this.#busy.clear();
  }

  async end(): Promise<void> {
    await Promise.all([...this.#free, ...this.#busy].map((agent) => agent.end()));
  }
}

const soon = (): Promise<false> => new Promise((resolve) => setTimeout(resolve, 50, false));
