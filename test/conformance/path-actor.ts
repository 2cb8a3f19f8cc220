/** An actor that is its own kernel: it walks paths name by name, and asks again from the top when it meets ESTALE. */
import { EEXIST, EISDIR, ENOENT, ESTALE, O_CREAT, O_EXCL, O_NOFOLLOW } from '../../src/wire/index.ts';
import { errno } from './direct.ts';
import { Actor, type Errno, type Fd, type PathName, type Verdict } from './driver.ts';
import { type Place, parentOf, resolve, typeOf, type Walkable } from './walk.ts';

/** What a kernel remembers of a name. */
interface AnyDentry<D> {
  readonly mode: number;
  /** Undefined of the root. */
  readonly parent: D | undefined;
}

export abstract class PathActor<D extends AnyDentry<D>> extends Actor {
  protected mask = 0o022;
  protected readonly tree: Walkable<D> = {
    top: () => this.top(),
    lookup: (parent, name) => this.#lookup(parent, name),
    readlink: (dentry) => this.target(dentry),
    modeOf: (dentry) => dentry.mode,
  };

  protected abstract top(): D | number;
  /** A name that is neither `.` nor `..`. */
  protected abstract child(parent: D, name: string): D | number;
  protected abstract target(dentry: D): Uint8Array | number;
  protected abstract openNode(dentry: D, flags: number): Fd | Errno;
  protected abstract createNode(place: Place<D>, flags: number, mode: number): Promise<Fd | Errno>;
  /** Gives back what was looked up for the call that ends. */
  protected abstract letGo(): void;

  #lookup(parent: D, name: string): D | number {
    if (name === '.') return parent;
    if (name === '..') return parent.parent ?? parent;
    return this.child(parent, name);
  }

  /** Runs one system call: once more from the top when it meets ESTALE, as Linux does. */
  protected async call<T>(work: () => Promise<T | Errno> | T | Errno): Promise<T | Errno> {
    for (let attempt = 0; ; attempt++) {
      const result = await work();
      this.letGo();
      if (result !== errno(ESTALE) || attempt > 0) return result;
    }
  }

  protected async at<T>(path: PathName, follow: boolean, then: (dentry: D) => Promise<T | Errno> | T | Errno) {
    return await this.call(async () => {
      const dentry = resolve(this.tree, path, follow);
      return typeof dentry === 'number' ? errno(dentry) : await then(dentry);
    });
  }

  protected async within<T>(
    path: PathName,
    then: (place: Place<D>) => Promise<T | Errno> | T | Errno,
  ): Promise<T | Errno> {
    return await this.call(async () => {
      const place = parentOf(this.tree, path);
      return typeof place === 'number' ? errno(place) : await then(place);
    });
  }

  umask(mask: number): Promise<Verdict> {
    this.mask = mask;
    return Promise.resolve('OK');
  }

  async open(path: PathName, flags: number, mode = 0o666): Promise<Fd | Errno> {
    if ((flags & O_CREAT) === 0)
      return await this.at<Fd>(path, (flags & O_NOFOLLOW) === 0, (dentry) => this.openNode(dentry, flags));
    return await this.within<Fd>(path, async (place) => {
      if (place.slash) return errno(EISDIR);
      const there = this.#lookup(place.parent, place.name);
      if (there === ENOENT) return await this.createNode(place, flags, mode);
      if (typeof there === 'number') return errno(there);
      if ((flags & O_EXCL) !== 0) return errno(EEXIST);
      if (typeOf(there.mode) !== 'symlink' || (flags & O_NOFOLLOW) !== 0) return this.openNode(there, flags);
      const target = resolve(this.tree, path, true);
      return typeof target === 'number' ? errno(target) : this.openNode(target, flags);
    });
  }
}
