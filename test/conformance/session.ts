/** FUSE requests to a session in this process, as a kernel that caches nothing would send them. */
import assert from 'node:assert/strict';
import { abi, constants as c, FuseSession } from '../../src/fuse/index.ts';
import { type TreeFileSystem, ways } from '../../src/tree/index.ts';
import {
  EBADF,
  EEXIST,
  EINVAL,
  EISDIR,
  ELOOP,
  ENOENT,
  ENOTDIR,
  ESPIPE,
  O_ACCMODE,
  O_APPEND,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_RDONLY,
  O_TRUNC,
} from '../../src/wire/index.ts';
import { type Answer, Client, type Send } from '../fuse/client.ts';
import type { World } from '../tree/world.ts';
import { errno, verdict } from './direct.ts';
import type { Actor, Entry, Errno, Fd, FileSystemStat, Identity, PathName, Stat, Timespec, Verdict } from './driver.ts';
import { PathActor } from './path-actor.ts';
import { O_PATH } from './people.ts';
import { nameBytes, nameText, type Place, parentOf, resolve, typeOf } from './walk.ts';
import { WorldDriver } from './world-driver.ts';

const FUSE_FIFO = 0o010000;

/** A nodeid that the kernel would hold, with the attributes that came with it. */
interface Dentry {
  readonly nodeid: number;
  readonly parent: Dentry | undefined;
  readonly stat: Stat;
  readonly mode: number;
}

interface OpenFile {
  readonly dentry: Dentry;
  /** Undefined for O_PATH. */
  readonly fh?: number;
  readonly flags: number;
  readonly stream: boolean;
  readonly directory: boolean;
  offset: number;
}

function statAt(answer: Answer, base: number): { readonly stat: Stat; readonly mode: number } {
  const view = new DataView(answer.body.buffer, answer.body.byteOffset);
  const { Attr } = abi;
  const mode = Attr.mode.get(view, base);
  const time = (sec: typeof Attr.atime, nsec: typeof Attr.atimensec): Timespec => ({
    sec: Number(view.getBigInt64(base + sec.offset, true)),
    nsec: nsec.get(view, base),
  });
  const stat: Stat = {
    type: typeOf(mode),
    mode: mode & 0o7777,
    uid: Attr.uid.get(view, base),
    gid: Attr.gid.get(view, base),
    size: Attr.size.get(view, base),
    ino: Attr.ino.get(view, base),
    nlink: Attr.nlink.get(view, base),
    atime: time(Attr.atime, Attr.atimensec),
    mtime: time(Attr.mtime, Attr.mtimensec),
    ctime: time(Attr.ctime, Attr.ctimensec),
  };
  return { stat, mode };
}

/** Adds the entries of a READDIR answer; returns the offset to go on from. */
function direntsIn(body: Uint8Array, found: Entry[]): number {
  const { Dirent } = abi;
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  let offset = 0;
  for (let at = 0; at < body.length; ) {
    const start = at + Dirent.sizeBytes;
    const end = start + Dirent.namelen.get(view, at);
    const name = nameText(body.subarray(start, end));
    found.push({ name, ino: Dirent.ino.get(view, at), type: typeOf(Dirent.type.get(view, at) << 12) });
    offset = Dirent.off.get(view, at);
    at = Math.ceil(end / 8) * 8;
  }
  return offset;
}

class SessionActor extends PathActor<Dentry> {
  readonly #client: Client;
  readonly #pid: number;
  readonly #uniques: () => number;
  readonly #fds = new Map<Fd, OpenFile>();
  /** Lookups of the call at hand, to be forgotten at its end. */
  #references: number[] = [];
  #nextFd = 3;
  #waiting: number | undefined;

  constructor(client: Client, identity: Identity, pid: number, uniques: () => number) {
    super(identity);
    this.#client = client;
    this.#pid = pid;
    this.#uniques = uniques;
  }

  #send(name: string, options: Send): Answer {
    const { uid, gid } = this.identity;
    return this.#client.send(name, { uid, gid, pid: this.#pid, unique: this.#uniques(), ...options });
  }

  /** As `send`, for requests whose answer may come later. */
  async #wait(name: string, options: Send): Promise<Answer> {
    const unique = this.#uniques();
    const answer = this.#send(name, { ...options, unique });
    if (answer.errno !== undefined) return answer;
    this.#waiting = unique;
    await new Promise<void>((done) => {
      const accept = answer.accept.bind(answer);
      answer.accept = (head, headBytes, payload) => {
        accept(head, headBytes, payload);
        done();
      };
    });
    this.#waiting = undefined;
    return answer;
  }

  protected top(): Dentry | number {
    const answer = this.#send('GETATTR', { nodeid: 1 });
    if (answer.errno !== 0) return answer.errno!;
    return { nodeid: 1, parent: undefined, ...statAt(answer, abi.AttrOut.attr.offset) };
  }

  protected child(parent: Dentry, name: string): Dentry | number {
    const answer = this.#send('LOOKUP', { nodeid: parent.nodeid, rest: [nameBytes(name), Uint8Array.of(0)] });
    return answer.errno === 0 ? this.#entry(answer, parent) : answer.errno!;
  }

  #entry(answer: Answer, parent: Dentry): Dentry {
    const nodeid = answer.get(abi.EntryOut.nodeid);
    this.#references.push(nodeid);
    return { nodeid, parent, ...statAt(answer, abi.EntryOut.attr.offset) };
  }

  #forget(nodeid: number): void {
    this.#send('FORGET', { nodeid, in: { nlookup: 1 } });
  }

  protected letGo(): void {
    for (const nodeid of this.#references.splice(0)) this.#forget(nodeid);
  }

  protected target(dentry: Dentry): Uint8Array | number {
    const answer = this.#send('READLINK', { nodeid: dentry.nodeid });
    return answer.errno === 0 ? answer.body : answer.errno!;
  }

  protected async createNode({ parent, name }: Place<Dentry>, flags: number, mode: number): Promise<Fd | Errno> {
    const answer = this.#send('CREATE', {
      nodeid: parent.nodeid,
      in: { flags, mode, umask: this.mask },
      rest: [nameBytes(name), Uint8Array.of(0)],
    });
    if (answer.errno !== 0) return errno(answer.errno!);
    const dentry = this.#entry(answer, parent);
    return this.#add(dentry, answer, abi.EntryOut.sizeBytes, flags, false);
  }

  async createNamed(directory: PathName, name: string): Promise<Verdict> {
    const made = await this.at<Fd>(directory, true, (parent) =>
      this.createNode({ parent, name, slash: false }, O_CREAT | O_EXCL, 0o644),
    );
    return typeof made === 'string' ? made : await this.close(made);
  }

  protected openNode(dentry: Dentry, flags: number): Fd | Errno {
    const type = typeOf(dentry.mode);
    const { nodeid } = dentry;
    if ((flags & O_PATH) !== 0)
      return this.#hold(dentry, { dentry, flags, stream: false, directory: false, offset: 0 });
    if (type === 'symlink') return errno(ELOOP);
    const directory = type === 'directory';
    if (directory && ((flags & O_ACCMODE) !== O_RDONLY || (flags & (O_CREAT | O_TRUNC)) !== 0)) return errno(EISDIR);
    if (!directory && (flags & O_DIRECTORY) !== 0) return errno(ENOTDIR);
    const answer = this.#send(directory ? 'OPENDIR' : 'OPEN', { nodeid, in: { flags } });
    return answer.errno === 0 ? this.#add(dentry, answer, 0, flags, directory) : errno(answer.errno!);
  }

  #add(dentry: Dentry, answer: Answer, base: number, flags: number, directory: boolean): Fd {
    const stream = (answer.get(abi.OpenOut.openFlags, base) & c.FOPEN_STREAM) !== 0;
    const fh = answer.get(abi.OpenOut.fh, base);
    return this.#hold(dentry, { dentry, fh, flags, stream, directory, offset: 0 });
  }

  /** The descriptor holds the nodeid until it is closed. */
  #hold(dentry: Dentry, open: OpenFile): Fd {
    const held = this.#references.indexOf(dentry.nodeid);
    if (held >= 0) this.#references.splice(held, 1);
    const fd = this.#nextFd++;
    this.#fds.set(fd, open);
    return fd;
  }

  async close(fd: Fd): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    this.#fds.delete(fd);
    const { nodeid } = open.dentry;
    const { fh } = open;
    if (fh !== undefined) await this.#wait(open.directory ? 'RELEASEDIR' : 'RELEASE', { nodeid, in: { fh } });
    if (nodeid !== 1) this.#forget(nodeid);
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
    return open.stream ? errno(ESPIPE) : await this.#read(open, bytes, offset);
  }

  async #read(open: OpenFile, size: number, offset: number): Promise<Uint8Array | Errno> {
    if (open.directory) return errno(EISDIR);
    if ((open.flags & O_ACCMODE) !== O_RDONLY && (open.flags & 2) === 0) return errno(EBADF);
    const { fh, flags, dentry } = open;
    if (fh === undefined) return errno(EBADF);
    const answer = await this.#wait('READ', { nodeid: dentry.nodeid, in: { fh, offset, size, flags } });
    return answer.errno === 0 ? answer.body : errno(answer.errno!);
  }

  async write(fd: Fd, data: Uint8Array): Promise<number | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    const append = (open.flags & O_APPEND) !== 0;
    if (append) {
      const stat = await this.fstat(fd);
      if (typeof stat !== 'string') open.offset = stat.size;
    }
    const written = await this.pwrite(fd, data, open.offset);
    if (typeof written !== 'string') open.offset += written;
    return written;
  }

  async pwrite(fd: Fd, data: Uint8Array, offset: number): Promise<number | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined || (open.flags & O_ACCMODE) === O_RDONLY) return errno(EBADF);
    const { fh, flags, dentry } = open;
    if (fh === undefined) return errno(EBADF);
    const answer = await this.#wait('WRITE', {
      nodeid: dentry.nodeid,
      in: { fh, offset, size: data.length, flags },
      rest: [data],
    });
    return answer.errno === 0 ? answer.get(abi.WriteOut.size) : errno(answer.errno!);
  }

  async fsync(fd: Fd): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    return verdict((await this.#wait('FSYNC', { nodeid: open.dentry.nodeid, in: { fh: open.fh! } })).errno!);
  }

  fstat(fd: Fd): Promise<Stat | Errno> {
    const open = this.#fds.get(fd);
    if (open === undefined) return Promise.resolve(errno(EBADF));
    return Promise.resolve(this.#getattr(open.dentry));
  }

  #getattr({ nodeid }: Dentry): Stat | Errno {
    const answer = this.#send('GETATTR', { nodeid });
    return answer.errno === 0 ? statAt(answer, abi.AttrOut.attr.offset).stat : errno(answer.errno!);
  }

  async ftruncate(fd: Fd, size: number): Promise<Verdict> {
    const open = this.#fds.get(fd);
    if (open === undefined) return errno(EBADF);
    if ((open.flags & O_ACCMODE) === O_RDONLY) return errno(EINVAL);
    return await this.#setattr(open.dentry, { valid: c.FATTR_SIZE | c.FATTR_FH, size, fh: open.fh! });
  }

  async fchmod(fd: Fd, mode: number): Promise<Verdict> {
    const open = this.#fds.get(fd);
    return open === undefined ? errno(EBADF) : await this.#setattr(open.dentry, { valid: c.FATTR_MODE, mode });
  }

  readable(fd: Fd): Promise<boolean> {
    const open = this.#fds.get(fd);
    if (open === undefined) return Promise.resolve(false);
    const events = c.POLLIN | c.POLLRDNORM;
    const answer = this.#send('POLL', { nodeid: open.dentry.nodeid, in: { fh: open.fh!, kh: open.fh!, events } });
    assert.equal(answer.errno, 0, 'POLL');
    return Promise.resolve((answer.get(abi.PollOut.revents) & c.POLLIN) !== 0);
  }

  async stat(path: PathName): Promise<Stat | Errno> {
    return await this.at<Stat>(path, true, (dentry) => this.#getattr(dentry));
  }

  async lstat(path: PathName): Promise<Stat | Errno> {
    return await this.at<Stat>(path, false, (dentry) => this.#getattr(dentry));
  }

  async access(path: PathName, mask: number): Promise<Verdict> {
    return await this.at<'OK'>(path, true, ({ nodeid }) => {
      const answer = this.#send('ACCESS', { nodeid, in: { mask } });
      return verdict(answer.errno!);
    });
  }

  async readdir(path: PathName): Promise<readonly Entry[] | Errno> {
    return await this.at<readonly Entry[]>(path, true, (dentry) => {
      const fd = this.openNode(dentry, O_RDONLY | O_DIRECTORY);
      if (typeof fd === 'string') return fd;
      const fh = this.#fds.get(fd)!.fh!;
      const found: Entry[] = [];
      for (let offset = 0; ; ) {
        const answer = this.#send('READDIR', { nodeid: dentry.nodeid, in: { fh, offset, size: 4096 } });
        if (answer.errno !== 0) return errno(answer.errno!);
        if (answer.body.length === 0) break;
        offset = direntsIn(answer.body, found);
      }
      return this.close(fd).then(() => found);
    });
  }

  async #change(name: string, path: PathName, fields: Send['in'] = {}, extra: readonly Uint8Array[] = []) {
    return await this.within<'OK'>(path, async (place) => {
      const rest = [nameBytes(place.name), Uint8Array.of(0), ...extra];
      const answer = await this.#wait(name, { nodeid: place.parent.nodeid, in: fields, rest });
      if (answer.errno === 0 && answer.body.length > 0) this.#entry(answer, place.parent);
      return verdict(answer.errno!);
    });
  }

  /** MKDIR, SYMLINK: what the kernel sends only when it knows that the name is free. */
  async #make(name: string, path: PathName, fields: Send['in'], extra: readonly Uint8Array[] = []): Promise<Verdict> {
    const there = await this.lstat(path);
    if (typeof there !== 'string') return errno(EEXIST);
    return there === errno(ENOENT) ? await this.#change(name, path, fields, extra) : there;
  }

  async mkdir(path: PathName, mode: number): Promise<Verdict> {
    return await this.#make('MKDIR', path, { mode, umask: this.mask });
  }

  async rmdir(path: PathName): Promise<Verdict> {
    return await this.#change('RMDIR', path);
  }

  async unlink(path: PathName): Promise<Verdict> {
    return await this.#change('UNLINK', path);
  }

  async rename(path: PathName, newPath: PathName, flags = 0): Promise<Verdict> {
    return await this.within<'OK'>(path, async (from) => {
      const to = parentOf(this.tree, newPath);
      if (typeof to === 'number') return errno(to);
      const newdir = to.parent.nodeid;
      const rest = [nameBytes(from.name), Uint8Array.of(0), nameBytes(to.name), Uint8Array.of(0)];
      const name = flags === 0 ? 'RENAME' : 'RENAME2';
      const fields = flags === 0 ? { newdir } : { newdir, flags };
      return verdict((await this.#wait(name, { nodeid: from.parent.nodeid, in: fields, rest })).errno!);
    });
  }

  async symlink(target: PathName, path: PathName): Promise<Verdict> {
    const bytes = typeof target === 'string' ? nameBytes(target) : target;
    return await this.#make('SYMLINK', path, {}, [bytes, Uint8Array.of(0)]);
  }

  async readlink(path: PathName): Promise<Uint8Array | Errno> {
    return await this.at<Uint8Array>(path, false, (dentry) => {
      if (typeOf(dentry.mode) !== 'symlink') return errno(EINVAL);
      const target = this.tree.readlink(dentry);
      return typeof target === 'number' ? errno(target) : target;
    });
  }

  async link(path: PathName, newPath: PathName): Promise<Verdict> {
    return await this.within<'OK'>(newPath, (place) => {
      const old = resolve(this.tree, path, false);
      if (typeof old === 'number') return errno(old);
      const rest = [nameBytes(place.name), Uint8Array.of(0)];
      const linkIn = new Uint8Array(abi.LinkIn.sizeBytes);
      abi.LinkIn.oldnodeid.set(new DataView(linkIn.buffer), 0, old.nodeid);
      return verdict(this.#send('LINK', { nodeid: place.parent.nodeid, rest: [linkIn, ...rest] }).errno!);
    });
  }

  async mknod(path: PathName, mode: number): Promise<Verdict> {
    const mknodIn = new Uint8Array(abi.MknodIn.sizeBytes);
    const view = new DataView(mknodIn.buffer);
    abi.MknodIn.mode.set(view, 0, FUSE_FIFO | mode);
    abi.MknodIn.umask.set(view, 0, this.mask);
    return await this.within<'OK'>(path, (place) => {
      const rest = [mknodIn, nameBytes(place.name), Uint8Array.of(0)];
      return verdict(this.#send('MKNOD', { nodeid: place.parent.nodeid, rest }).errno!);
    });
  }

  async chmod(path: PathName, mode: number): Promise<Verdict> {
    return await this.#set(path, true, { valid: c.FATTR_MODE, mode });
  }

  async chown(path: PathName, uid: number, gid: number): Promise<Verdict> {
    const valid = (uid < 0 ? 0 : c.FATTR_UID) | (gid < 0 ? 0 : c.FATTR_GID);
    return await this.#set(path, false, { valid, uid: Math.max(0, uid), gid: Math.max(0, gid) });
  }

  async truncate(path: PathName, size: number): Promise<Verdict> {
    return await this.at<'OK'>(path, true, (dentry) =>
      typeOf(dentry.mode) === 'directory' ? errno(EISDIR) : this.#setattr(dentry, { valid: c.FATTR_SIZE, size }),
    );
  }

  async utimens(path: PathName, atime: Timespec | 'now' | 'omit', mtime: Timespec | 'now' | 'omit'): Promise<Verdict> {
    const bits = (time: Timespec | 'now' | 'omit', set: number, now: number) =>
      time === 'omit' ? 0 : time === 'now' ? set | now : set;
    const valid = bits(atime, c.FATTR_ATIME, c.FATTR_ATIME_NOW) | bits(mtime, c.FATTR_MTIME, c.FATTR_MTIME_NOW);
    return await this.#set(path, true, {
      valid,
      ...(typeof atime === 'object' ? { atime: atime.sec, atimensec: atime.nsec } : {}),
      ...(typeof mtime === 'object' ? { mtime: mtime.sec, mtimensec: mtime.nsec } : {}),
    });
  }

  async #set(path: PathName, follow: boolean, fields: Readonly<Record<string, number>>): Promise<Verdict> {
    return await this.at<'OK'>(path, follow, (dentry) => this.#setattr(dentry, fields));
  }

  async #setattr({ nodeid }: Dentry, fields: Readonly<Record<string, number>>): Promise<Verdict> {
    return verdict((await this.#wait('SETATTR', { nodeid, in: fields })).errno!);
  }

  async getxattr(path: PathName, name: string): Promise<Uint8Array | Errno> {
    return await this.at<Uint8Array>(path, true, ({ nodeid }) => {
      const asked = this.#send('GETXATTR', { nodeid, in: { size: 0 }, rest: [name] });
      if (asked.errno !== 0) return errno(asked.errno!);
      const answer = this.#send('GETXATTR', { nodeid, in: { size: asked.get(abi.GetxattrOut.size) }, rest: [name] });
      return answer.errno === 0 ? answer.body : errno(answer.errno!);
    });
  }

  async listxattr(path: PathName): Promise<readonly string[] | Errno> {
    return await this.at<readonly string[]>(path, true, ({ nodeid }) => {
      const answer = this.#send('LISTXATTR', { nodeid, in: { size: 65_536 } });
      return answer.errno === 0 ? answer.text.split('\0').slice(0, -1) : errno(answer.errno!);
    });
  }

  async setxattr(path: PathName, name: string, value: Uint8Array, flags = 0): Promise<Verdict> {
    return await this.at<'OK'>(path, true, async ({ nodeid }) => {
      const fields = { size: value.length, flags };
      return verdict((await this.#wait('SETXATTR', { nodeid, in: fields, rest: [name, value] })).errno!);
    });
  }

  async removexattr(path: PathName, name: string): Promise<Verdict> {
    return await this.at<'OK'>(path, true, async ({ nodeid }) =>
      verdict((await this.#wait('REMOVEXATTR', { nodeid, rest: [name] })).errno!),
    );
  }

  async statfs(path: PathName): Promise<FileSystemStat | Errno> {
    return await this.at<FileSystemStat>(path, true, ({ nodeid }) => {
      const answer = this.#send('STATFS', { nodeid });
      if (answer.errno !== 0) return errno(answer.errno!);
      const { Kstatfs } = abi;
      return {
        blockSizeBytes: answer.get(Kstatfs.frsize),
        blocks: answer.get(Kstatfs.blocks),
        blocksFree: answer.get(Kstatfs.bfree),
        files: answer.get(Kstatfs.files),
        filesFree: answer.get(Kstatfs.ffree),
        nameBytes: answer.get(Kstatfs.namelen),
      };
    });
  }

  interrupt(): void {
    if (this.#waiting === undefined) return;
    const unique = this.#waiting;
    this.#send('INTERRUPT', { unique: unique | c.FUSE_INT_REQ_BIT, in: { unique } });
  }
}

export class SessionDriver extends WorldDriver {
  readonly way = 'session';
  readonly heartbeatMs = ways.mount.heartbeatMs;
  readonly #actors: SessionActor[] = [];
  #fs: TreeFileSystem | undefined;
  #session: FuseSession | undefined;
  #client: Client | undefined;
  #unique = 2;

  protected open(world: World): void {
    this.#fs = world.fileSystem(ways.mount);
    this.#session = new FuseSession(this.#fs, { transport: 'dev-fuse', clock: world.clock });
    this.#client = new Client(this.#session);
    assert.equal(this.#client.init().errno, 0, 'INIT');
  }

  as(identity: Identity): Actor {
    const actor = new SessionActor(this.#client!, identity, 100 + this.#actors.length, () => (this.#unique += 2));
    this.#actors.push(actor);
    return actor;
  }

  protected tick(nowMs: number): void {
    this.#session!.tick(nowMs);
  }

  /** What a kernel was given, it gives back: afterwards the session holds the root and nothing else. */
  protected async shut(): Promise<void> {
    for (const actor of this.#actors.splice(0)) {
      actor.interrupt();
      await actor.exit();
    }
    const { bugs, held } = this.#session!;
    assert.deepEqual({ bugs, ...held }, { bugs: 0, inodes: 1, handles: 0 });
    this.#session!.reset();
    this.#fs!.close();
  }
}
