/**
 * What a way in offers to the conformance suite: POSIX calls by path, as a process with an identity would make them, and
 * the outside of the same tree. Every call answers a value or the name of an errno; `OK` where there is no value.
 */
import type { AuditRecord } from '../../src/tree/index.ts';
import { O_CREAT, O_RDONLY, O_TRUNC, O_WRONLY } from '../../src/wire/index.ts';
import type { WorldSpec } from '../tree/world.ts';

export const wayNames = ['direct', 'session', 'ninep', 'mount', 'agent', 'virtiofs', 'v9fs', 'v9fs-client'] as const;
export type WayName = (typeof wayNames)[number];

export type Errno = `E${string}`;
export type Verdict = 'OK' | Errno;
/** Absolute within the tree: `/guest/x`. Bytes where the name is no Unicode. */
export type PathName = string | Uint8Array;
export type Fd = number;

export interface Identity {
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
  readonly groups: readonly number[];
  /** Absolute path of the executable, for ways that prove it; others run the call from another program. */
  readonly program?: string;
}

export interface Timespec {
  readonly sec: number;
  readonly nsec: number;
}

export interface Stat {
  readonly type: 'file' | 'directory' | 'symlink' | 'other';
  /** 0 to 07777. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  readonly ino: number;
  readonly nlink: number;
  readonly atime: Timespec;
  readonly mtime: Timespec;
  readonly ctime: Timespec;
}

export interface Entry {
  readonly name: string;
  readonly ino: number;
  readonly type: Stat['type'];
}

export interface FileSystemStat {
  readonly blockSizeBytes: number;
  readonly blocks: number;
  readonly blocksFree: number;
  readonly files: number;
  readonly filesFree: number;
  readonly nameBytes: number;
}

/** One process of one identity. Its file descriptors are its own; a call that waits holds up no other actor. */
export abstract class Actor {
  readonly identity: Identity;

  constructor(identity: Identity) {
    this.identity = identity;
  }

  /** Of everything that this actor makes from now on; 022 at first. */
  abstract umask(mask: number): Promise<Verdict>;
  /** A file or a directory. */
  abstract open(path: PathName, flags: number, mode?: number): Promise<Fd | Errno>;
  /** Makes an empty file of a name that is not split at slashes, where the way in can send one. */
  abstract createNamed(directory: PathName, name: string): Promise<Verdict>;
  abstract close(fd: Fd): Promise<Verdict>;
  /** At the descriptor's offset. */
  abstract read(fd: Fd, bytes: number): Promise<Uint8Array | Errno>;
  abstract pread(fd: Fd, bytes: number, offset: number): Promise<Uint8Array | Errno>;
  abstract write(fd: Fd, data: Uint8Array): Promise<number | Errno>;
  abstract pwrite(fd: Fd, data: Uint8Array, offset: number): Promise<number | Errno>;
  abstract fsync(fd: Fd): Promise<Verdict>;
  abstract fstat(fd: Fd): Promise<Stat | Errno>;
  abstract ftruncate(fd: Fd, size: number): Promise<Verdict>;
  abstract fchmod(fd: Fd, mode: number): Promise<Verdict>;
  /** Whether poll(2) calls the descriptor readable now. */
  abstract readable(fd: Fd): Promise<boolean>;
  abstract stat(path: PathName): Promise<Stat | Errno>;
  abstract lstat(path: PathName): Promise<Stat | Errno>;
  abstract access(path: PathName, mask: number): Promise<Verdict>;
  abstract readdir(path: PathName): Promise<readonly Entry[] | Errno>;
  abstract mkdir(path: PathName, mode: number): Promise<Verdict>;
  abstract rmdir(path: PathName): Promise<Verdict>;
  abstract unlink(path: PathName): Promise<Verdict>;
  /** renameat2(2). */
  abstract rename(path: PathName, newPath: PathName, flags?: number): Promise<Verdict>;
  abstract symlink(target: PathName, path: PathName): Promise<Verdict>;
  abstract readlink(path: PathName): Promise<Uint8Array | Errno>;
  abstract link(path: PathName, newPath: PathName): Promise<Verdict>;
  /** A named pipe. */
  abstract mknod(path: PathName, mode: number): Promise<Verdict>;
  abstract chmod(path: PathName, mode: number): Promise<Verdict>;
  /** lchown(2); −1 leaves an id as it is. */
  abstract chown(path: PathName, uid: number, gid: number): Promise<Verdict>;
  abstract truncate(path: PathName, size: number): Promise<Verdict>;
  abstract utimens(
    path: PathName,
    atime: Timespec | 'now' | 'omit',
    mtime: Timespec | 'now' | 'omit',
  ): Promise<Verdict>;
  abstract getxattr(path: PathName, name: string): Promise<Uint8Array | Errno>;
  abstract listxattr(path: PathName): Promise<readonly string[] | Errno>;
  abstract setxattr(path: PathName, name: string, value: Uint8Array, flags?: number): Promise<Verdict>;
  abstract removexattr(path: PathName, name: string): Promise<Verdict>;
  abstract statfs(path: PathName): Promise<FileSystemStat | Errno>;
  /** Sends the actor a signal: a call that waits and can be interrupted answers EINTR. */
  abstract interrupt(): void;

  /** The whole file by open, read to the end, close. */
  async readFile(path: PathName): Promise<Uint8Array | Errno> {
    const fd = await this.open(path, O_RDONLY);
    if (typeof fd === 'string') return fd;
    const bytes = await this.readAll(fd);
    await this.close(fd);
    return bytes;
  }

  /** From the start to the end, whatever the descriptor's offset. */
  async readAll(fd: Fd): Promise<Uint8Array | Errno> {
    const parts: Uint8Array[] = [];
    let offset = 0;
    for (;;) {
      const part = await this.pread(fd, 65_536, offset);
      if (typeof part === 'string') return part;
      if (part.length === 0) return Buffer.concat(parts);
      parts.push(part);
      offset += part.length;
    }
  }

  /** As `readFile`, but as text; errnos stay what they are. */
  async readText(path: PathName): Promise<string> {
    const bytes = await this.readFile(path);
    return typeof bytes === 'string' ? bytes : new TextDecoder().decode(bytes);
  }

  /** Opens, writes all in one write(2), closes. */
  async writeFile(
    path: PathName,
    data: string | Uint8Array,
    flags: number = O_WRONLY | O_CREAT | O_TRUNC,
    mode = 0o666,
  ): Promise<Verdict> {
    const fd = await this.open(path, flags, mode);
    if (typeof fd === 'string') return fd;
    const written = await this.write(fd, typeof data === 'string' ? new TextEncoder().encode(data) : data);
    const closed = await this.close(fd);
    return typeof written === 'string' ? written : closed;
  }
}

/** A node as the outside sees it. */
export interface OutsideView {
  readonly type: Stat['type'];
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly text: string;
}

/** A way in, opened for one run of the suite. */
export interface Driver extends AsyncDisposable {
  readonly way: WayName;
  /** Gives the tree up and starts with a new one: no descriptor, no actor, no audit record, nothing made by guests is left. */
  begin(spec: WorldSpec): Promise<void>;
  /** Ends what `begin` began; fails when the way in kept what it should have let go. */
  end(): Promise<void>;
  as(identity: Identity): Actor;
  /** Changes the tree from outside; resolves when an open from inside sees it. */
  load(spec: WorldSpec): Promise<void>;
  look(path: string): Promise<OutsideView | undefined>;
  /** Records since `begin`. */
  audit(): Promise<readonly AuditRecord[]>;
  /** From now on the audit log keeps nothing, or works again. */
  breakAudit(broken: boolean): Promise<void>;
  /** The clock by which the way in decides time windows, milliseconds since the epoch. */
  nowMs(): number;
  /** How long a reader of `/.changes` waits until it gets a heartbeat. */
  readonly heartbeatMs: number;
  /** Resolves when that clock has moved on by so much. */
  pass(ms: number): Promise<void>;
}
