import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { ImageStore } from '../qemu/index.ts';
import { openStores, type Store } from '../store/index.ts';
import { ImageNames } from './image-names.ts';

test('ImageNames keeps bytes that are named while another name of theirs is removed, and drops those without one', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const stored = new Set<string>();
  const bytes = {
    remove: (digest: string) => void stored.delete(digest),
    beUnnamed() {},
    beNamed() {},
    unnamed: () => [],
  };
  const names = new ImageNames(stores.region, bytes);
  const image = (version: string) => ({ name: 'tiny', version });
  const store = (digest: string) => async () => {
    stored.add(digest);
    return { digest };
  };
  await names.add(image('1'), store('a'));
  const [found, removed] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  // The same bytes again: they are there, and are named when the other name is gone.
  const adding = names.add(image('2'), async () => {
    found.resolve();
    await removed.promise;
    return { digest: 'a' };
  });
  await found.promise;
  await names.remove(image('1'));
  removed.resolve();
  await adding;
  assert.deepEqual([...stored], ['a']);
  await names.remove(image('2'));
  await names.remove(image('2'));
  assert.deepEqual([...stored], []);
  // Nobody gave these up: the one that was added meanwhile has failed.
  await names.add(image('3'), store('b'));
  const failing = Promise.withResolvers<{ digest: string }>();
  const failed = names.add(image('4'), () => failing.promise);
  await names.remove(image('3'));
  assert.deepEqual([...stored], ['b']);
  failing.reject(new Error('refused'));
  await assert.rejects(failed, /refused/);
  assert.deepEqual([...stored], []);
});

/** Goes no further once it has committed, or just before, as a daemon that is killed there. */
const stuck = (store: Store, when: 'before' | 'after', reached: () => void): Store =>
  new Proxy(store, {
    get: (target, name) => {
      const value = Reflect.get(target, name) as unknown;
      if (name !== 'commit') return typeof value === 'function' ? value.bind(target) : value;
      return async (transaction: Parameters<Store['commit']>[0]) => {
        if (when === 'after') await target.commit(transaction);
        reached();
        return new Promise(() => {});
      };
    },
  });

test('ImageNames.collect removes what a daemon that was killed left without a name, and nothing else', async (t) => {
  await using stores = await openStores(temporaryStore(t));
  const directory = mkdtempSync(join(tmpdir(), 'porthole-image-names-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const kernel = (text: string): string => {
    const file = join(directory, text);
    writeFileSync(file, text);
    return file;
  };
  const open = (region: Store = stores.region) => {
    const images = new ImageStore({ directory: join(directory, 'images') });
    const names = new ImageNames(region, images);
    const add = (version: string, text: string) =>
      names.add({ name: 'tiny', version }, () => images.addKernel({ kernel: kernel(text), commandLine: '' }));
    return { images, names, add };
  };
  const stored = (): string[] => readdirSync(join(directory, 'images')).toSorted();
  mkdirSync(join(directory, 'images'));

  const first = open();
  const kept = await first.add('1', 'kept');
  const whole = stored();
  assert.equal(whole.length, 2, 'an image and its record');
  const twin = await first.add('2', 'twin');
  await first.add('3', 'twin');

  /** Until a commit of it, where it is killed. */
  const killed = async (when: 'before' | 'after', work: (daemon: ReturnType<typeof open>) => Promise<unknown>) => {
    const reached = Promise.withResolvers<void>();
    void work(open(stuck(stores.region, when, reached.resolve)));
    await reached.promise;
  };
  // Stored and not named; named; named, and about to lose one of two names; without its last name.
  await killed('before', ({ add }) => add('4', 'lost'));
  assert.equal(open().images.list().length, 3);
  await killed('after', ({ add }) => add('5', 'named'));
  await killed('after', ({ names }) => names.remove({ name: 'tiny', version: '2' }));
  await killed('before', ({ names }) => names.remove({ name: 'tiny', version: '1' }));
  const last = open();
  await last.names.collect();
  const named = last.images.list().map(({ digest }) => digest);
  assert.equal(named.length, 3, stored().join(' '));
  assert.ok(named.includes(kept.digest) && named.includes(twin.digest));
  assert.equal(stored().length, 6, 'no note is left');
  await killed('after', ({ names }) => names.remove({ name: 'tiny', version: '1' }));
  await killed('after', ({ names }) => names.remove({ name: 'tiny', version: '3' }));
  await killed('after', ({ names }) => names.remove({ name: 'tiny', version: '5' }));
  await open().names.collect();
  assert.deepEqual(stored(), []);
});
