/** 9P2000.L requests to a session in this process, as v9fs with `access=user,cache=none` would send them. */
import assert from 'node:assert/strict';
import { abi } from '../../src/ninep/index.ts';
import { type TreeFileSystem, ways } from '../../src/tree/index.ts';
import {
  EBADF,
  EEXIST,
  EINVAL,
  EISDIR,
  ELOOP,
  ENOENT,
  ENOTDIR,
  ERANGE,
  O_ACCMODE,
  O_APPEND,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_RDONLY,
  O_TRUNC,
  O_WRONLY,
  RENAME_NOREPLACE,
  X_OK,
} from '../../src/wire/index.ts';
import { Client, entriesIn, type Fields, type Reply } from '../ninep/client.ts';
import type { World } from '../tree/world.ts';
import { errno, verdict } from './direct.ts';
import type { Actor, Entry, Errno, Fd, FileSystemStat, Identity, PathName, Stat, Timespec, Verdict } from './driver.ts';
import { PathActor } from './path-actor.ts';
import { O_PATH } from './people.ts';
import { nameBytes, type Place, parentOf, resolve, typeOf } from './walk.ts';
import { WorldDriver } from './world-driver.ts';

const S_IFIFO = 0o010000;

/** A fid with the attributes that came with it. */
interface Dentry {
  readonly fid: number;
  readonly name: string;
  readonly parent: Dentry | undefined;
  readonly stat: Stat;
  readonly mode: number;
}

interface OpenFile {
  readonly dentry: Dentry;
  readonly flags: number;
  readonly directory: boolean;
  readonly opened: boolean;
  offset: number;
}

function statIn(reply: Reply): { readonly stat: Stat; readonly mode: number } {
  const { Rgetattr, Qid } = abi;
  const mode = reply.get(Rgetattr.mode);
  const time = (sec: typeof Rgetattr.atimeSec, nsec: typeof Rgetattr.atimeNsec): Timespec => ({
    sec: Number(reply.view.getBigInt64(sec.offset, true)),
    nsec: reply.get(nsec),
  });
  const stat: Stat = {
    type: typeOf(mode),
    mode: mode & 0o7777,
    uid: reply.get(Rgetattr.uid),
    gid: reply.get(Rgetattr.gid),
    size: reply.get(Rgetattr.size),
    ino: reply.get(Qid.path, Rgetattr.qid.offset),
    nlink: reply.get(Rgetattr.nlink),
    atime: time(Rgetattr.atimeSec, Rgetattr.atimeNsec),
    mtime: time(Rgetattr.mtimeSec, Rgetattr.mtimeNsec),
    ctime: time(Rgetattr.ctimeSec, Rgetattr.ctimeNsec),
  };
  return { stat, mode };
}

class NinepActor extends PathActor<Dentry> {
  readonly #client: Client;
  readonly #root: number;
  readonly #fds = new Map<Fd, OpenFile>();
  /** Fids of the call at hand, to be clunked at its end. */
  #references: number[] = [];
  #nextFd = 3;
  #waiting: number | undefined;

  constructor(client: Client, identity: Identity) {
    super(identity);
    this.#client = client;
    this.#root = client.attach(identity.uid);
  }

  /** As `Client.call`, for requests whose answer may come later. */
  async #wait(name: string, fields: Fields): Promise<Reply> {
    const reply = this.#client.call(name, fields);
    if (reply.body !== undefined) return reply;
    this.#waiting = reply.tag;
    await reply.answered();
    this.#waiting = undefined;
    return reply;
  }

  async #verdict(name: string, fields: Fields): Promise<Verdict> {
    return verdict((await this.#wait(name, fields)).errno!);
  }

  #walk(fid: number, names: readonly (string | Uint8Array)[]): number | undefined {
    const newfid = this.#client.newFid();
    const reply = this.#client.call('Twalk', { fid, newfid, names });
    this.#errno = reply.errno!;
    if (reply.errno !== 0) return undefined;
    this.#references.push(newfid);
    return newfid;
  }

  #errno = 0;

  #dentry(fid: number, parent: Dentry | undefined, name: string): Dentry | number {
    const reply = this.#client.call('Tgetattr', { fid, requestMask: abi.GETATTR_BASIC });
    return reply.errno === 0 ? { fid, parent, name, ...statIn(reply) } : reply.errno!;
  }

  protected top(): Dentry | number {
    return this.#dentry(this.#root, undefined, '');
  }

  protected child(parent: Dentry, name: string): Dentry | number {
    const fid = this.#walk(parent.fid, [nameBytes(name)]);
    return fid === undefined ? this.#errno : this.#dentry(fid, parent, name);
  }

  protected letGo(): void {
    for (const fid of this.#references.splice(0)) this.#client.clunk(fid);
  }

  protected target({ fid }: Dentry): Uint8Array | number {
    const reply = this.#client.call('Treadlink', { fid });
    return reply.errno === 0 ? reply.body!.subarray(2) : reply.errno!;
  }

  /** v9fs clones the directory's fid, which becomes the file's. */
  protected async createNode({ parent, name }: Place<Dentry>, flags: number, mode: number): Promise<Fd | Errno> {
    const fid = this.#walk(parent.fid, []);
    if (fid === undefined) return errno(this.#errno);
    const made = await this.#wait('Tlcreate', {
      fid,
      name: nameBytes(name),
      flags,
      mode: mode & ~this.mask,
      gid: this.identity.gid,
    });
    if (made.errno !== 0) return errno(made.errno!);
    const dentry = this.#dentry(fid, parent, name);
    return typeof dentry === 'number' ? errno(dentry) : this.#hold(dentry, flags, false, true);
  }

  async createNamed(directory: PathName, name: string): Promise<Verdict> {
    const made = await this.at<Fd>(
      directory,
      true,
      async (parent) => await this.createNode({ parent, name, slash: false }, O_CREAT | O_EXCL, 0o644),
    );
    return typeof made === 'string' ? made : await this.close(made);
  }

  protected openNode(dentry: Dentry, flags: number): Fd | Errno {
    const type = typeOf(dentry.mode);
    if ((flags & O_PATH) !== 0) return this.#hold(this.#own(dentry), flags, false, false);
    if (type === 'symlink') return errno(ELOOP);
    const directory = type === 'directory';
    if (directory && ((flags & O_ACCMODE) !== O_RDONLY || (flags & (O_CREAT | O_TRUNC)) !== 0)) return errno(EISDIR);
    if (!directory && (flags & O_DIRECTORY) !== 0) return errno(ENOTDIR);
    const own = this.#own(dentry);
    const reply = this.#client.call('Tlopen', { fid: own.fid, flags: flags & ~O_TRUNC });
    if (reply.errno !== 0) return errno(reply.errno!);
    if ((flags & O_TRUNC) !== 0) {
      // The kernel leaves the flag out, and truncates what it has opened.
      const valid = abi.SETATTR_SIZE | abi.SETATTR_MTIME | abi.SETATTR_CTIME;
      const set = this.#client.call('Tsetattr', { fid: own.fid, valid });
      if (set.errno !== 0) return errno(set.errno!);
    }
    return this.#hold(own, flags, directory, true);
  }

  /** A fid that outlives the call. */
  #own(dentry: Dentry): Dentry {
    const fid = dentry.fid === this.#root ? this.#walk(dentry.fid, [])! : dentry.fid;
    return { ...dentry, fid };
  }

  #hold(dentry: Dentry, flags: number, directory: boolean, opened: boolean): Fd {
    const held = this.#references.indexOf(dentry.fid);
    assert.ok(held >= 0, 'the fid is of this call');
    this.#references.splice(held, 1);
    const fd = this.#nextFd++;
    this.#fds.set(fd, { dentry, flags, directory, opened, offset: 0 });
    return fd;
  }

  async close(fd: Fd): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    this.#fds.delete(fd);
    await this.#client.clunk(open.dentry.fid).answered();
    return 'OK';
  }

  /** Closes what was left open, and ends its attach. */
  async exit(): Promise<void> {
    for (const fd of this.#fds.keys()) await this.close(fd);
    this.#client.clunk(this.#root);
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
    return await this.#read(open, bytes, offset);
  }

  /** Linux asks on until it has all, an end or an error (`p9_client_read`). */
  async #read(open: OpenFile, count: number, offset: number): Promise<Uint8Array | Errno> {
    if (open.directory) return errno(EISDIR);
    if (!open.opened || (open.flags & O_ACCMODE) === O_WRONLY) return errno(EBADF);
    const parts: Uint8Array[] = [];
    for (let done = 0; done < count; done += parts.at(-1)!.length) {
      const { fid } = open.dentry;
      const reply = await this.#wait('Tread', { fid, offset: offset + done, count: count - done });
      // What came before an error is read.
      if (reply.errno !== 0 && done === 0) return errno(reply.errno!);
      if (reply.errno !== 0 || reply.data.length === 0) break;
      parts.push(reply.data);
    }
    return Buffer.concat(parts);
  }

  async write(fd: Fd, data: Uint8Array): Promise<number | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    if ((open.flags & O_APPEND) !== 0) {
      const stat = await this.fstat(fd);
      if (typeof stat !== 'string') open.offset = stat.size;
    }
    const written = await this.pwrite(fd, data, open.offset);
    if (typeof written !== 'string') open.offset += written;
    return written;
  }

  /** In pieces that fit a frame. */
  async pwrite(fd: Fd, data: Uint8Array, offset: number): Promise<number | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined || !open.opened || (open.flags & O_ACCMODE) === O_RDONLY) return errno(EBADF);
    const pieceBytes = this.#client.msize - 24;
    let done = 0;
    do {
      const piece = data.subarray(done, done + pieceBytes);
      const reply = await this.#wait('Twrite', { fid: open.dentry.fid, offset: offset + done, data: piece });
      if (reply.errno !== 0) return done > 0 ? done : errno(reply.errno!);
      done += reply.get(abi.Count.count);
    } while (done < data.length);
    return done;
  }

  async fsync(fd: Fd): Promise<Verdict> {
    const open = this.#fds.get(fd);
    return open === undefined ? errno(EBADF) : await this.#verdict('Tfsync', { fid: open.dentry.fid });
  }

  fstat(fd: Fd): Promise<Stat | Errno> {
    const open = this.#fds.get(fd);
    return Promise.resolve(open === undefined ? errno(EBADF) : this.#getattr(open.dentry));
  }

  #getattr({ fid }: Dentry): Stat | Errno {
    const reply = this.#client.call('Tgetattr', { fid, requestMask: abi.GETATTR_BASIC });
    return reply.errno === 0 ? statIn(reply).stat : errno(reply.errno!);
  }

  async ftruncate(fd: Fd, size: number): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    if ((open.flags & O_ACCMODE) === O_RDONLY) return errno(EINVAL);
    return await this.#verdict('Tsetattr', { fid: open.dentry.fid, valid: abi.SETATTR_SIZE, size });
  }

  async fchmod(fd: Fd, mode: number): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    return await this.#verdict('Tsetattr', { fid: open.dentry.fid, valid: abi.SETATTR_MODE, mode });
  }

  /** 9P has no message for poll(2): Linux calls every file readable. */
  readable(fd: Fd): Promise<boolean> {
    return Promise.resolve(this.#fds.has(fd));
  }

  async stat(path: PathName): Promise<Stat | Errno> {
    return await this.at<Stat>(path, true, (dentry) => this.#getattr(dentry));
  }

  async lstat(path: PathName): Promise<Stat | Errno> {
    return await this.at<Stat>(path, false, (dentry) => this.#getattr(dentry));
  }

  /** 9P has no message for access(2): Linux looks at the mode alone, and lets root pass. */
  async access(path: PathName, mask: number): Promise<Verdict> {
    return await this.at<'OK'>(path, true, ({ stat }) => {
      const { uid, gid } = this.identity;
      const bits = uid === stat.uid ? stat.mode >> 6 : gid === stat.gid ? stat.mode >> 3 : stat.mode;
      const rootMay = uid === 0 && ((mask & X_OK) === 0 || stat.type === 'directory' || (stat.mode & 0o111) !== 0);
      return rootMay || (bits & mask) === mask ? 'OK' : 'EACCES';
    });
  }

  async readdir(path: PathName): Promise<readonly Entry[] | Errno> {
    return await this.at<readonly Entry[]>(path, true, async (dentry) => {
      const fd = this.openNode(dentry, O_RDONLY | O_DIRECTORY);
      if (typeof fd === 'string') return fd;
      const { fid } = this.#fds.get(fd)!.dentry;
      const found: Entry[] = [];
      for (let offset = 0; ; ) {
        const reply = this.#client.call('Treaddir', { fid, offset, count: 4096 });
        if (reply.errno !== 0) return errno(reply.errno!);
        const entries = entriesIn(reply.data);
        if (entries.length === 0) break;
        found.push(...entries.map(({ name, ino, type }) => ({ name, ino, type: typeOf(type << 12) })));
        offset = entries.at(-1)!.offset;
      }
      await this.close(fd);
      return found;
    });
  }

  /** Tmkdir, Tsymlink: what the kernel sends only when it knows that the name is free. */
  async #make(name: string, path: PathName, fields: Fields): Promise<Verdict> {
    const there = await this.lstat(path);
    if (typeof there !== 'string') return errno(EEXIST);
    if (there !== errno(ENOENT)) return there;
    return await this.within<'OK'>(path, async (place) => {
      const { gid } = this.identity;
      return await this.#verdict(name, { fid: place.parent.fid, name: nameBytes(place.name), gid, ...fields });
    });
  }

  async mkdir(path: PathName, mode: number): Promise<Verdict> {
    return await this.#make('Tmkdir', path, { mode: mode & ~this.mask });
  }

  async #unlink(path: PathName, flags: number): Promise<Verdict> {
    return await this.within<'OK'>(path, async (place) => {
      return await this.#verdict('Tunlinkat', { fid: place.parent.fid, name: nameBytes(place.name), flags });
    });
  }

  async rmdir(path: PathName): Promise<Verdict> {
    return await this.#unlink(path, abi.AT_REMOVEDIR);
  }

  async unlink(path: PathName): Promise<Verdict> {
    return await this.#unlink(path, 0);
  }

  /** v9fs refuses flags: Trenameat has none. */
  async rename(path: PathName, newPath: PathName, flags = 0): Promise<Verdict> {
    if ((flags & RENAME_NOREPLACE) !== 0 && typeof (await this.lstat(newPath)) !== 'string') return errno(EEXIST);
    if (flags !== 0) return errno(EINVAL);
    return await this.within<'OK'>(path, async (from) => {
      const to = parentOf(this.tree, newPath);
      if (typeof to === 'number') return errno(to);
      return await this.#verdict('Trenameat', {
        fid: from.parent.fid,
        oldname: nameBytes(from.name),
        newdirfid: to.parent.fid,
        newname: nameBytes(to.name),
      });
    });
  }

  async symlink(target: PathName, path: PathName): Promise<Verdict> {
    return await this.#make('Tsymlink', path, { symtgt: typeof target === 'string' ? nameBytes(target) : target });
  }

  async readlink(path: PathName): Promise<Uint8Array | Errno> {
    return await this.at<Uint8Array>(path, false, (dentry) => {
      if (typeOf(dentry.mode) !== 'symlink') return errno(EINVAL);
      const target = this.tree.readlink(dentry);
      return typeof target === 'number' ? errno(target) : target;
    });
  }

  async link(path: PathName, newPath: PathName): Promise<Verdict> {
    return await this.within<'OK'>(newPath, async (place) => {
      const old = resolve(this.tree, path, false);
      if (typeof old === 'number') return errno(old);
      return await this.#verdict('Tlink', { dfid: place.parent.fid, fid: old.fid, name: nameBytes(place.name) });
    });
  }

  async mknod(path: PathName, mode: number): Promise<Verdict> {
    return await this.within<'OK'>(path, async (place) => {
      return await this.#verdict('Tmknod', {
        fid: place.parent.fid,
        name: nameBytes(place.name),
        mode: S_IFIFO | (mode & ~this.mask),
      });
    });
  }

  async #set(path: PathName, follow: boolean, fields: Fields): Promise<Verdict> {
    return await this.at<'OK'>(path, follow, async ({ fid }) => await this.#verdict('Tsetattr', { fid, ...fields }));
  }

  async chmod(path: PathName, mode: number): Promise<Verdict> {
    return await this.#set(path, true, { valid: abi.SETATTR_MODE, mode });
  }

  async chown(path: PathName, uid: number, gid: number): Promise<Verdict> {
    const valid = (uid < 0 ? 0 : abi.SETATTR_UID) | (gid < 0 ? 0 : abi.SETATTR_GID) | abi.SETATTR_CTIME;
    return await this.#set(path, false, { valid, uid: Math.max(0, uid), gid: Math.max(0, gid) });
  }

  async truncate(path: PathName, size: number): Promise<Verdict> {
    return await this.at<'OK'>(path, true, async ({ fid, mode }) =>
      typeOf(mode) === 'directory'
        ? errno(EISDIR)
        : await this.#verdict('Tsetattr', { fid, valid: abi.SETATTR_SIZE | abi.SETATTR_MTIME, size }),
    );
  }

  async utimens(path: PathName, atime: Timespec | 'now' | 'omit', mtime: Timespec | 'now' | 'omit'): Promise<Verdict> {
    const bits = (time: Timespec | 'now' | 'omit', now: number, set: number) =>
      time === 'omit' ? 0 : time === 'now' ? now : now | set;
    return await this.#set(path, true, {
      valid:
        bits(atime, abi.SETATTR_ATIME, abi.SETATTR_ATIME_SET) | bits(mtime, abi.SETATTR_MTIME, abi.SETATTR_MTIME_SET),
      ...(typeof atime === 'object' ? { atimeSec: atime.sec, atimeNsec: atime.nsec } : {}),
      ...(typeof mtime === 'object' ? { mtimeSec: mtime.sec, mtimeNsec: mtime.nsec } : {}),
    });
  }

  /** Walks to the attribute, and reads it from its own fid. */
  async #xattr(path: PathName, name: string): Promise<Uint8Array | Errno> {
    return await this.at<Uint8Array>(path, true, ({ fid }) => {
      const newfid = this.#client.newFid();
      const walked = this.#client.call('Txattrwalk', { fid, newfid, name });
      if (walked.errno !== 0) return errno(walked.errno!);
      this.#references.push(newfid);
      const size = walked.get(abi.Rxattrwalk.size);
      const parts: Uint8Array[] = [];
      for (let offset = 0; offset < size; offset += parts.at(-1)!.length) {
        parts.push(this.#client.ok('Tread', { fid: newfid, offset, count: size - offset }).data);
        assert.ok(parts.at(-1)!.length > 0, 'an attribute has the bytes that Rxattrwalk told');
      }
      return Buffer.concat(parts);
    });
  }

  async getxattr(path: PathName, name: string): Promise<Uint8Array | Errno> {
    return name.length > 255 ? errno(ERANGE) : await this.#xattr(path, name);
  }

  async listxattr(path: PathName): Promise<readonly string[] | Errno> {
    const names = await this.#xattr(path, '');
    return typeof names === 'string' ? names : new TextDecoder().decode(names).split('\0').slice(0, -1);
  }

  async setxattr(path: PathName, name: string, value: Uint8Array, flags = 0): Promise<Verdict> {
    return await this.at<'OK'>(path, true, async (dentry) => {
      const fid = this.#walk(dentry.fid, []);
      if (fid === undefined) return errno(this.#errno);
      const created = await this.#wait('Txattrcreate', { fid, name, attrSize: value.length, flags });
      if (created.errno !== 0) return errno(created.errno!);
      const pieceBytes = this.#client.msize - 24;
      for (let offset = 0; offset < value.length; offset += pieceBytes)
        this.#client.ok('Twrite', { fid, offset, data: value.subarray(offset, offset + pieceBytes) });
      this.#references.splice(this.#references.indexOf(fid), 1);
      return verdict((await this.#client.clunk(fid).answered()).errno!);
    });
  }

  /** Linux asks for it with an attribute of no bytes. */
  async removexattr(path: PathName, name: string): Promise<Verdict> {
    return await this.setxattr(path, name, new Uint8Array(), 2);
  }

  async statfs(path: PathName): Promise<FileSystemStat | Errno> {
    return await this.at<FileSystemStat>(path, true, ({ fid }) => {
      const reply = this.#client.call('Tstatfs', { fid });
      if (reply.errno !== 0) return errno(reply.errno!);
      const { Rstatfs } = abi;
      return {
        blockSizeBytes: reply.get(Rstatfs.bsize),
        blocks: reply.get(Rstatfs.blocks),
        blocksFree: reply.get(Rstatfs.bfree),
        files: reply.get(Rstatfs.files),
        filesFree: reply.get(Rstatfs.ffree),
        nameBytes: reply.get(Rstatfs.namelen),
      };
    });
  }

  /** The client is not told of what was flushed: the call ends with EINTR. */
  interrupt(): void {
    if (this.#waiting !== undefined) this.#client.flush(this.#waiting);
  }
}

export class NinepDriver extends WorldDriver {
  readonly way = 'ninep';
  readonly heartbeatMs = ways.ninep.heartbeatMs;
  readonly #actors: NinepActor[] = [];
  #fs: TreeFileSystem | undefined;
  #client: Client | undefined;

  protected open(world: World): void {
    this.#fs = world.fileSystem(ways.ninep);
    this.#client = new Client(this.#fs);
    this.#client.version();
  }

  as(identity: Identity): Actor {
    const actor = new NinepActor(this.#client!, identity);
    this.#actors.push(actor);
    return actor;
  }

  protected tick(nowMs: number): void {
    this.#client!.session.tick(nowMs);
  }

  /** What a client was given, it gives back: afterwards the session holds nothing. */
  protected async shut(): Promise<void> {
    for (const actor of this.#actors.splice(0)) {
      actor.interrupt();
      await actor.exit();
    }
    const { bugs, held, malformation } = this.#client!.session;
    assert.deepEqual({ bugs, malformation, ...held }, { bugs: 0, malformation: undefined, fids: 0, requests: 0 });
    this.#client!.session[Symbol.dispose]();
    this.#fs!.close();
  }
}
