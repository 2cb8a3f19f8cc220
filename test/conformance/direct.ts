/** Calls on `TreeFileSystem`, by paths that are walked here as a kernel walks them. */

import assert from 'node:assert/strict';
import type { DirectoryHandle, Done, Handle } from '../../src/tree/index.ts';
import { type Caller, type Node, PENDING, ROOT_INO, type TreeFileSystem, ways } from '../../src/tree/index.ts';
import {
  EBADF,
  EEXIST,
  EINVAL,
  EISDIR,
  ELOOP,
  ENOENT,
  ENOSYS,
  ENOTDIR,
  ESPIPE,
  errnoName,
  O_ACCMODE,
  O_APPEND,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_RDONLY,
  O_TRUNC,
} from '../../src/wire/index.ts';
import type { World } from '../tree/world.ts';
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
import { O_PATH } from './people.ts';
import { type Place, parentOf, resolve, typeOf, type Walkable } from './walk.ts';
import { WorldDriver } from './world-driver.ts';

export const errno = (code: number): Errno => errnoName(code) as Errno;
export const verdict = (code: number): Verdict => errnoName(code) as Verdict;

interface OpenFile {
  readonly ino: number;
  readonly file: Handle | undefined;
  readonly directory: DirectoryHandle | undefined;
  offset: number;
}

class DirectActor extends Actor {
  readonly #fs: TreeFileSystem;
  readonly #caller: Caller;
  readonly #tree: Walkable<Node>;
  readonly #fds = new Map<Fd, OpenFile>();
  #nextFd = 3;
  #umask = 0o022;
  #giveUp: (() => void) | undefined;

  constructor(fs: TreeFileSystem, identity: Identity, pid: number) {
    super(identity);
    this.#fs = fs;
    const { uid, gid, groups, program } = identity;
    const caller: Caller = { uid, gid, groups, pid, program };
    this.#caller = caller;
    this.#tree = {
      top: () => fs.getattr(caller, ROOT_INO),
      lookup: (parent, name) => fs.lookup(caller, parent.ino, name),
      readlink: (node) => fs.readlink(caller, node.ino),
      modeOf: (node) => node.mode,
    };
  }

  umask(mask: number): Promise<Verdict> {
    this.#umask = mask;
    return Promise.resolve('OK');
  }

  async open(path: PathName, flags: number, mode = 0o666): Promise<Fd | Errno> {
    if ((flags & O_CREAT) !== 0) return await this.#create(path, flags, mode);
    const node = this.#resolve(path, (flags & O_NOFOLLOW) === 0);
    return typeof node === 'number' ? errno(node) : this.#open(node, flags);
  }

  async createNamed(directory: PathName, name: string): Promise<Verdict> {
    const parent = this.#resolve(directory, true);
    if (typeof parent === 'number') return errno(parent);
    const made = await settled<{ readonly handle: Handle }>((done) =>
      this.#fs.create(this.#caller, parent.ino, name, 0o644, this.#umask, O_EXCL, done),
    );
    if (typeof made === 'number') return errno(made);
    await answered((done) => this.#fs.release(made.handle, done));
    return 'OK';
  }

  async #create(path: PathName, flags: number, mode: number): Promise<Fd | Errno> {
    const at = this.#parent(path);
    if (typeof at === 'number') return errno(at);
    if (at.slash) return errno(EISDIR);
    const there = this.#fs.lookup(this.#caller, at.parent.ino, at.name);
    if (typeof there === 'number') {
      if (there !== ENOENT) return errno(there);
      const made = await settled<{ readonly node: Node; readonly handle: Handle }>((done) =>
        this.#fs.create(this.#caller, at.parent.ino, at.name, mode, this.#umask, flags, done),
      );
      if (typeof made === 'number') return errno(made);
      return this.#add({ ino: made.node.ino, file: made.handle, directory: undefined, offset: 0 });
    }
    if ((flags & O_EXCL) !== 0) return errno(EEXIST);
    const node = typeOf(there.mode) === 'symlink' && (flags & O_NOFOLLOW) === 0 ? this.#resolve(path, true) : there;
    return typeof node === 'number' ? errno(node) : this.#open(node, flags);
  }

  #open(node: Node, flags: number): Fd | Errno {
    const type = typeOf(node.mode);
    if ((flags & O_PATH) !== 0) return this.#add({ ino: node.ino, file: undefined, directory: undefined, offset: 0 });
    if (type === 'symlink') return errno(ELOOP);
    if (type !== 'directory') {
      if ((flags & O_DIRECTORY) !== 0) return errno(ENOTDIR);
      const file = this.#fs.open(this.#caller, node.ino, flags);
      if (typeof file === 'number') return errno(file);
      return this.#add({ ino: node.ino, file, directory: undefined, offset: 0 });
    }
    if ((flags & O_ACCMODE) !== O_RDONLY || (flags & (O_CREAT | O_TRUNC)) !== 0) return errno(EISDIR);
    const directory = this.#fs.opendir(this.#caller, node.ino);
    if (typeof directory === 'number') return errno(directory);
    return this.#add({ ino: node.ino, file: undefined, directory, offset: 0 });
  }

  #add(open: OpenFile): Fd {
    const fd = this.#nextFd++;
    this.#fds.set(fd, open);
    return fd;
  }

  async close(fd: Fd): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    this.#fds.delete(fd);
    if (open.directory !== undefined) this.#fs.releasedir(open.directory);
    // What release(2) answers is not told to close(2).
    else if (open.file !== undefined) await answered((done) => this.#fs.release(open.file!, done));
    return 'OK';
  }

  /** Closes what was left open. */
  async exit(): Promise<void> {
    for (const fd of this.#fds.keys()) await this.close(fd);
  }

  async read(fd: Fd, bytes: number): Promise<Uint8Array | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    const part = await this.#read(open, bytes, open.offset);
    if (typeof part !== 'string') open.offset += part.length;
    return part;
  }

  async pread(fd: Fd, bytes: number, offset: number): Promise<Uint8Array | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    if (open.file?.stream === true) return errno(ESPIPE);
    return await this.#read(open, bytes, offset);
  }

  async #read(open: OpenFile, bytes: number, offset: number): Promise<Uint8Array | Errno> {
    const { file } = open;
    if (file === undefined) return errno(EISDIR);
    const part = this.#fs.read(file, offset, bytes);
    if (part === PENDING) {
      const waited = await settled<Uint8Array>((done) => {
        this.#giveUp = this.#fs.waitRead(file, offset, bytes, done);
      });
      this.#giveUp = undefined;
      return typeof waited === 'number' ? errno(waited) : waited.slice();
    }
    return typeof part === 'number' ? errno(part) : part.slice();
  }

  async write(fd: Fd, data: Uint8Array): Promise<number | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    const written = await this.pwrite(fd, data, open.offset);
    if (typeof written === 'string') return written;
    open.offset =
      (open.file!.flags & O_APPEND) === 0 ? open.offset + written : (this.#fs.node(open.ino)?.sizeBytes ?? 0);
    return written;
  }

  async pwrite(fd: Fd, data: Uint8Array, offset: number): Promise<number | Errno> {
    const file = this.#fds.get(fd)?.file;
    if (file === undefined) return errno(EBADF);
    const written = await settled<number>((done) => this.#fs.write(file, offset, data, done), 0);
    return typeof written === 'object' ? errno(written.refused) : written;
  }

  async fsync(fd: Fd): Promise<Verdict> {
    const file = this.#fds.get(fd)?.file;
    return file === undefined ? errno(EBADF) : verdict(await answered((done) => this.#fs.fsync(file, done)));
  }

  fstat(fd: Fd): Promise<Stat | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return Promise.resolve(errno(EBADF));
    const pinned = open.file !== undefined && this.#fs.caching(open.file.node) !== 'mutable';
    const node = pinned ? open.file.node : this.#fs.getattr(this.#caller, open.ino);
    return Promise.resolve(typeof node === 'number' ? errno(node) : this.#stat(node));
  }

  async ftruncate(fd: Fd, size: number): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open?.file === undefined) return errno(EBADF);
    return await this.#setattr(open.ino, { sizeBytes: size }, open.file);
  }

  async fchmod(fd: Fd, mode: number): Promise<Verdict> {
    const open = this.#fds.get(fd);
    return open === undefined ? errno(EBADF) : await this.#setattr(open.ino, { mode }, open.file);
  }

  readable(fd: Fd): Promise<boolean> {
    const file = this.#fds.get(fd)?.file;
    return Promise.resolve(file !== undefined && this.#fs.readable(file));
  }

  stat(path: PathName): Promise<Stat | Errno> {
    return Promise.resolve(this.#at(path, true, (node) => this.#getattr(node.ino)));
  }

  lstat(path: PathName): Promise<Stat | Errno> {
    return Promise.resolve(this.#at(path, false, (node) => this.#getattr(node.ino)));
  }

  access(path: PathName, mask: number): Promise<Verdict> {
    return Promise.resolve(this.#at(path, true, (node) => verdict(this.#fs.access(this.#caller, node.ino, mask))));
  }

  readdir(path: PathName): Promise<readonly Entry[] | Errno> {
    return Promise.resolve(
      this.#at(path, true, (node) => {
        const directory = this.#fs.opendir(this.#caller, node.ino);
        if (typeof directory === 'number') return errno(directory);
        const entries: Entry[] = [];
        for (let index = 0; ; index++) {
          const entry = this.#fs.entry(this.#caller, directory, index);
          if (entry === undefined) break;
          entries.push({ name: entry.name, ino: entry.ino, type: typeOf(entry.type) });
        }
        this.#fs.releasedir(directory);
        return entries;
      }),
    );
  }

  async mkdir(path: PathName, mode: number): Promise<Verdict> {
    return await this.#make(path, (parent, name, done) =>
      this.#fs.mkdir(this.#caller, parent, name, mode, this.#umask, done),
    );
  }

  async symlink(target: PathName, path: PathName): Promise<Verdict> {
    const bytes = typeof target === 'string' ? new TextEncoder().encode(target) : target;
    if (bytes.length === 0) return errno(ENOENT);
    return await this.#make(path, (parent, name, done) => this.#fs.symlink(this.#caller, parent, name, bytes, done));
  }

  async #make(path: PathName, make: (parentIno: number, name: string, done: Done<Node>) => void): Promise<Verdict> {
    const at = this.#parent(path);
    if (typeof at === 'number') return errno(at);
    const there = this.#fs.lookup(this.#caller, at.parent.ino, at.name);
    if (typeof there !== 'number') return errno(EEXIST);
    if (there !== ENOENT) return errno(there);
    const made = await settled<Node>((done) => make(at.parent.ino, at.name, done));
    return typeof made === 'number' ? errno(made) : 'OK';
  }

  async rmdir(path: PathName): Promise<Verdict> {
    const at = this.#parent(path);
    if (typeof at === 'number') return errno(at);
    return verdict(await answered((done) => this.#fs.rmdir(this.#caller, at.parent.ino, at.name, done)));
  }

  async unlink(path: PathName): Promise<Verdict> {
    const at = this.#parent(path);
    if (typeof at === 'number') return errno(at);
    return verdict(await answered((done) => this.#fs.unlink(this.#caller, at.parent.ino, at.name, done)));
  }

  async rename(path: PathName, newPath: PathName, flags = 0): Promise<Verdict> {
    const from = this.#parent(path);
    if (typeof from === 'number') return errno(from);
    const to = this.#parent(newPath);
    if (typeof to === 'number') return errno(to);
    return verdict(
      await answered((done) =>
        this.#fs.rename(this.#caller, from.parent.ino, from.name, to.parent.ino, to.name, flags, done),
      ),
    );
  }

  readlink(path: PathName): Promise<Uint8Array | Errno> {
    return Promise.resolve(
      this.#at(path, false, (node) => {
        const target = this.#fs.readlink(this.#caller, node.ino);
        return typeof target === 'number' ? errno(target) : target.slice();
      }),
    );
  }

  link(): Promise<Verdict> {
    return Promise.resolve(errno(ENOSYS));
  }

  mknod(): Promise<Verdict> {
    return Promise.resolve(errno(ENOSYS));
  }

  async chmod(path: PathName, mode: number): Promise<Verdict> {
    return await this.#set(path, true, { mode });
  }

  async chown(path: PathName, uid: number, gid: number): Promise<Verdict> {
    return await this.#set(path, false, { ...(uid < 0 ? {} : { uid }), ...(gid < 0 ? {} : { gid }) });
  }

  async truncate(path: PathName, size: number): Promise<Verdict> {
    return await this.#set(path, true, { sizeBytes: size });
  }

  async utimens(path: PathName, atime: Timespec | 'now' | 'omit', mtime: Timespec | 'now' | 'omit'): Promise<Verdict> {
    return await this.#set(path, true, {
      ...(atime === 'omit' ? {} : { atime }),
      ...(mtime === 'omit' ? {} : { mtime }),
    });
  }

  async #set(path: PathName, follow: boolean, attributes: Parameters<TreeFileSystem['setattr']>[2]): Promise<Verdict> {
    const node = this.#resolve(path, follow);
    return typeof node === 'number' ? errno(node) : await this.#setattr(node.ino, attributes, undefined);
  }

  async #setattr(
    ino: number,
    attributes: Parameters<TreeFileSystem['setattr']>[2],
    file: Handle | undefined,
  ): Promise<Verdict> {
    if (attributes.sizeBytes !== undefined && attributes.sizeBytes < 0) return errno(EINVAL);
    return verdict(
      await answered((done) => this.#fs.setattr(this.#caller, ino, attributes, file, (code) => done(code, undefined))),
    );
  }

  getxattr(path: PathName, name: string): Promise<Uint8Array | Errno> {
    return Promise.resolve(
      this.#at(path, true, (node) => {
        const value = this.#fs.getxattr(this.#caller, node.ino, name);
        return typeof value === 'number' ? errno(value) : value.slice();
      }),
    );
  }

  listxattr(path: PathName): Promise<readonly string[] | Errno> {
    return Promise.resolve(
      this.#at(path, true, (node) => {
        const value = this.#fs.listxattr(this.#caller, node.ino);
        return typeof value === 'number' ? errno(value) : new TextDecoder().decode(value).split('\0').slice(0, -1);
      }),
    );
  }

  async setxattr(path: PathName, name: string, value: Uint8Array, flags = 0): Promise<Verdict> {
    const node = this.#resolve(path, true);
    if (typeof node === 'number') return errno(node);
    return verdict(await answered((done) => this.#fs.setxattr(this.#caller, node.ino, name, value, flags, done)));
  }

  async removexattr(path: PathName, name: string): Promise<Verdict> {
    const node = this.#resolve(path, true);
    if (typeof node === 'number') return errno(node);
    return verdict(await answered((done) => this.#fs.removexattr(this.#caller, node.ino, name, done)));
  }

  statfs(path: PathName): Promise<FileSystemStat | Errno> {
    return Promise.resolve(this.#at(path, true, () => this.#fs.statfs()));
  }

  interrupt(): void {
    this.#giveUp?.();
  }

  #at<T>(path: PathName, follow: boolean, then: (node: Node) => T): T | Errno {
    const node = this.#resolve(path, follow);
    return typeof node === 'number' ? errno(node) : then(node);
  }

  #getattr(ino: number): Stat | Errno {
    const node = this.#fs.getattr(this.#caller, ino);
    return typeof node === 'number' ? errno(node) : this.#stat(node);
  }

  #stat(node: Node): Stat {
    const { uid, gid, ino, nlink, atime, mtime, ctime } = node;
    const mode = this.#fs.shownMode(node);
    const size = this.#fs.pendingTruncation(ino) ? 0 : node.sizeBytes;
    return { type: typeOf(mode), mode: mode & 0o7777, uid, gid, size, ino, nlink, atime, mtime, ctime };
  }

  #resolve(path: PathName, follow: boolean): Node | number {
    return resolve(this.#tree, path, follow);
  }

  #parent(path: PathName): Place<Node> | number {
    return parentOf(this.#tree, path);
  }
}

function answered(call: (done: Done) => void): Promise<number> {
  return new Promise((resolve) => {
    call((code) => resolve(code));
  });
}

interface Refused {
  readonly refused: number;
}

/** The value that a call settles with, or its errno; with `wrap`, errnos come wrapped because the value is a number too. */
function settled<T extends object>(call: (done: Done<T>) => void): Promise<T | number>;
function settled<T extends number>(call: (done: Done<T>) => void, wrap: 0): Promise<T | Refused>;
function settled<T>(call: (done: Done<T>) => void, wrap?: 0): Promise<T | number | Refused> {
  return new Promise((resolve) => {
    call((code, value) => resolve(code === 0 ? value! : wrap === undefined ? code : { refused: code }));
  });
}

export class DirectDriver extends WorldDriver {
  readonly way = 'direct';
  readonly heartbeatMs = ways.direct.heartbeatMs;
  readonly #actors: DirectActor[] = [];
  #fs: TreeFileSystem | undefined;

  protected open(world: World): void {
    this.#fs = world.fileSystem(ways.direct);
  }

  as(identity: Identity): Actor {
    const actor = new DirectActor(this.#fs!, identity, 100 + this.#actors.length);
    this.#actors.push(actor);
    return actor;
  }

  protected tick(nowMs: number): void {
    this.#fs!.tick(nowMs);
  }

  protected async shut(): Promise<void> {
    for (const actor of this.#actors.splice(0)) {
      actor.interrupt();
      await actor.exit();
    }
    assert.equal(this.#fs!.openHandles, 0);
    this.#fs!.close();
  }
}
