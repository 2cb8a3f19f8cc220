/** GCE's guest attributes: the one thing that somebody of whom nothing is known may write, through the same `FileSystem` as all. */
import { ANONYMOUS, type FileSystem, isDirectory, limits, ROOT_INO } from '../tree/index.ts';
import { EEXIST, EINVAL, EISDIR, ENOENT, O_CREAT, O_TRUNC, O_WRONLY } from '../wire/index.ts';
import { GUEST_ATTRIBUTES, isAttributeName } from './facade-paths.ts';

export class GuestAttributes {
  readonly #fileSystem: FileSystem;

  constructor(fileSystem: FileSystem) {
    this.#fileSystem = fileSystem;
  }

  /** An errno. The directories above are made where they are not there. */
  async put(namespace: string, key: string, value: Uint8Array): Promise<number> {
    if (!isAttributeName(namespace) || !isAttributeName(key) || value.length > limits.valueBytes) return EINVAL;
    let parent = ROOT_INO;
    for (const name of [...GUEST_ATTRIBUTES.slice(1).split('/'), namespace]) {
      const made = await this.#directory(parent, name);
      if (made < 0) return -made;
      parent = made;
    }
    return this.#write(parent, key, value);
  }

  async delete(namespace: string, key: string): Promise<number> {
    if (!isAttributeName(namespace) || !isAttributeName(key)) return ENOENT;
    let parent = ROOT_INO;
    for (const name of [...GUEST_ATTRIBUTES.slice(1).split('/'), namespace]) {
      const node = this.#fileSystem.lookup(ANONYMOUS, parent, name);
      if (typeof node === 'number') return node;
      parent = node.ino;
    }
    return new Promise((resolve) => this.#fileSystem.unlink(ANONYMOUS, parent, key, resolve));
  }

  /** Its ino, or a negative errno. */
  #directory(parentIno: number, name: string): Promise<number> {
    const found = (): number => {
      const node = this.#fileSystem.lookup(ANONYMOUS, parentIno, name);
      if (typeof node === 'number') return -node;
      return isDirectory(node) ? node.ino : -EISDIR;
    };
    const there = found();
    if (there !== -ENOENT) return Promise.resolve(there);
    return new Promise((resolve) => {
      this.#fileSystem.mkdir(ANONYMOUS, parentIno, name, 0o755, 0, (errno, node) =>
        resolve(errno === EEXIST ? found() : errno === 0 ? node!.ino : -errno),
      );
    });
  }

  /** One replacement, as `>` in a shell. */
  #write(parentIno: number, name: string, value: Uint8Array): Promise<number> {
    return new Promise((resolve) => {
      const flags = O_WRONLY | O_CREAT | O_TRUNC;
      this.#fileSystem.create(ANONYMOUS, parentIno, name, 0o644, 0, flags, (errno, made) => {
        if (errno !== 0) return resolve(errno);
        const { handle } = made!;
        const close = (result: number): void =>
          this.#fileSystem.release(handle, (released) => resolve(result || released));
        if (value.length === 0) return close(0);
        this.#fileSystem.write(handle, 0, value, close);
      });
    });
  }
}
