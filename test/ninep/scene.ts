/** A tree, and one client of a session on it. */
import { type FileSystem, ways } from '../../src/tree/index.ts';
import { O_CREAT, O_RDWR } from '../../src/wire/index.ts';
import { Symlink, World } from '../tree/world.ts';
import { Client, type ClientOptions } from './client.ts';

export const content = {
  instance: { id: 'i-1', link: new Symlink('id'), middle: 'x'.repeat(4085), big: 'x'.repeat(300_000) },
  secrets: { key: 'hunter2' },
  guest: {},
};
export const APP = 1000;

export interface Scene {
  readonly world: World;
  readonly client: Client;
}

export function scene(options: ClientOptions = {}, wrap: (inner: FileSystem) => FileSystem = (inner) => inner): Scene {
  const world = new World({ content, rules: [{ path: '/secrets/key', owner: APP, mode: 0o400 }] });
  const client = new Client(wrap(world.fileSystem(ways.ninep)), options);
  client.version();
  return { world, client };
}

/** Calls of `method` wait until they are let go, one by one. */
export function held(method: keyof FileSystem): { wrap: (inner: FileSystem) => FileSystem; calls: (() => void)[] } {
  const calls: (() => void)[] = [];
  const wrap = (inner: FileSystem) =>
    new Proxy(inner, {
      get: (target, key) => {
        const value = Reflect.get(target, key) as unknown;
        if (typeof value !== 'function') return value;
        if (key !== method) return value.bind(target);
        return (...parameters: unknown[]) => {
          calls.push(() => value.apply(target, parameters));
        };
      },
    });
  return { wrap, calls };
}

export const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
export const bytesOf = (value: string): Uint8Array => new TextEncoder().encode(value);

/** Makes a file with `value` in it and returns its open fid. */
export function made(client: Client, root: number, name: string, value = ''): number {
  const fid = client.walk(root, 'guest');
  client.ok('Tlcreate', { fid, name, flags: O_RDWR | O_CREAT, mode: 0o644, gid: APP });
  if (value !== '') client.ok('Twrite', { fid, data: bytesOf(value) });
  return fid;
}
