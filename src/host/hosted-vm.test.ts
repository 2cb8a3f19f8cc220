import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { until } from '../../test/until.ts';
import { newTokenRecord } from '../imds/index.ts';
import type { VmRecord } from '../records/index.ts';
import { openStores, type Store } from '../store/index.ts';
import { Boots } from './boots.ts';
import type { HostParts } from './host-parts.ts';
import { HostedVm } from './hosted-vm.ts';
import { parseSpec } from './spec-file.ts';
import { TokenKeeper } from './token-keeper.ts';
import { checkedSpec } from './tree-port.ts';
import { VmTree } from './vm-tree.ts';

const record: VmRecord = {
  id: 'i-00000000000000001',
  name: 'web',
  account: 'default',
  kind: 'managed',
  type: 'nano',
  vcpus: 1,
  memoryMiB: 256,
  diskBytes: 1024 * 1024,
  image: { name: 'a', version: '1', digest: 'd' },
  network: { mode: 'none' },
  labels: {},
  restart: 'on-failure',
  desired: 'running',
  generation: 1,
  rebootGeneration: 0,
  stopGraceSeconds: 30,
  createdAtMs: 1,
};

/** A VM of a host that can make no process and has, until it is told otherwise, no image. */
class World {
  readonly troubles: string[] = [];
  readonly #directory: string;
  readonly #stores: Awaited<ReturnType<typeof openStores>>;
  readonly #opened: HostedVm[] = [];
  readonly #launching = Promise.withResolvers<never>();
  hasImage = false;
  /** Why the next deletion of the machine's record fails; '' when it does not. */
  failure = '';

  private constructor(directory: string, stores: Awaited<ReturnType<typeof openStores>>) {
    this.#directory = directory;
    this.#stores = stores;
    this.#launching.promise.catch(() => {});
  }

  static async make(t: TestContext): Promise<World> {
    const directory = mkdtempSync(path.join(tmpdir(), 'ph-hosted-'));
    const stores = await openStores(temporaryStore(t));
    const world = new World(directory, stores);
    t.after(async () => {
      world.#launching.reject(new Error('no process can be started here'));
      for (const vm of world.#opened) await vm.release();
      await stores[Symbol.asyncDispose]();
      rmSync(directory, { recursive: true });
    });
    return world;
  }

  get #store(): Store {
    const store = this.#stores.region;
    return new Proxy(store, {
      get: (target, key) => {
        if (key !== 'commit') {
          const value = Reflect.get(target, key) as unknown;
          return typeof value === 'function' ? value.bind(target) : value;
        }
        return async (transaction: Parameters<Store['commit']>[0]) => {
          const { failure } = this;
          if (
            failure !== '' &&
            transaction.operations.some(({ type, key: of }) => type === 'delete' && of === 'machine/web')
          ) {
            this.failure = '';
            throw new Error(failure);
          }
          return target.commit(transaction);
        };
      },
    });
  }

  boots(): ReturnType<Boots['all']> {
    return new Boots(this.#stores.region, 'web', 0).all();
  }

  /** A boot whose token somebody else asked for first. */
  async bootAsCompromised(): Promise<void> {
    const { region } = this.#stores;
    await new Boots(region, 'web', 0).commit({ bootId: 'b', reason: 'started' });
    await new TokenKeeper(region, record).save({ ...newTokenRecord('b', randomBytes), compromised: true });
  }

  /** What the store has of the machine. */
  async kept(): Promise<Uint8Array> {
    return (await this.#stores.region.get('machine/web'))!.value;
  }

  /** Puts it back, as a daemon leaves it that is killed before it has written more. */
  async lose(value: Uint8Array): Promise<void> {
    await this.#stores.region.commit({ operations: [{ type: 'put', key: 'machine/web', value }] });
  }

  async open(of: VmRecord = record): Promise<HostedVm> {
    const tree = new VmTree({ vm: 'web', epoch: 1, audit: () => true, kept: { persist: async () => {} } });
    await tree.load(checkedSpec(parseSpec('porthole: 1', 'spec')).spec);
    const parts = {
      store: this.#store,
      stateDirectory: path.join(this.#directory, 'state'),
      runDirectory: path.join(this.#directory, 'run'),
      launcher: { kind: 'session', enforced: [], launch: () => this.#launching.promise, adopt: () => undefined },
      accelerator: { accelerator: 'tcg', groups: [] },
      images: {
        of: async () => {
          if (!this.hasImage) throw new Error('there is no such image');
          return { kind: 'kernel', kernel: '/none', commandLine: '' };
        },
      },
      audit: { ringLog: () => ({}) },
      keeper: { open: async () => {}, close: async () => {} },
      version: 'test',
      deviceBuild: 'test',
      deviceRoot: undefined,
      onOutdated: () => {},
      onTrouble: (_vm: string, what: string) => this.troubles.push(what),
    } as unknown as HostParts;
    const vm = await HostedVm.open(parts, of, tree);
    this.#opened.push(vm);
    return vm;
  }
}

test('a VM that is deleted while it is being created is gone, and never starts', async (t) => {
  const world = await World.make(t);
  world.hasImage = true;
  const vm = await world.open();
  vm.take({ ...record, desired: 'deleted', generation: 2 });
  await until('it to be gone', () => vm.status.status === 'deleted');
  assert.deepEqual([vm.status.outcome, vm.status.generation], ['done', 2]);
  assert.notEqual(vm.machine?.state.status, 'running');
  assert.equal(vm.machine?.state.bootId, undefined);
});

test('a VM whose daemon ends while it is being created is created and started by the next', async (t) => {
  const world = await World.make(t);
  world.hasImage = true;
  const vm = await world.open();
  assert.equal(vm.machine?.state.status, 'creating');
  await vm.release();
  const next = await world.open();
  await until('it to start', () => next.machine?.state.status === 'starting');
  assert.equal(next.status.generation, 1);
});

test('a stop that was taken in is brought about by the next daemon', async (t) => {
  const world = await World.make(t);
  world.hasImage = true;
  const vm = await world.open();
  vm.take({ ...record, desired: 'stopped', generation: 2 });
  await vm.release();
  const next = await world.open({ ...record, desired: 'stopped', generation: 2 });
  await until('it to be created', () => next.status.outcome !== 'underway');
  assert.equal(next.status.outcome, 'done', next.status.reason);
  assert.equal(next.machine?.state.status, 'stopped');
});

test('a stop that was told as begun, and of which nothing else was kept, is brought about by the next daemon', async (t) => {
  const world = await World.make(t);
  world.hasImage = true;
  const vm = await world.open();
  await until('it to start', () => vm.machine?.state.status === 'starting');
  const keeps = (status: string) => async (): Promise<boolean> => Buffer.from(await world.kept()).includes(status);
  await until('that to be kept', keeps('"starting"'));
  const before = await world.kept();
  const stopped = { ...record, desired: 'stopped', generation: 2 } as const;
  vm.take(stopped);
  await until('that to be kept', async () => !(await keeps('"starting"')()));
  await world.lose(before);
  const next = await world.open(stopped);
  assert.equal(next.status.generation, 2);
  await until('it to be stopped', () => next.machine?.state.status === 'stopped');
  assert.equal(next.status.outcome, 'done');
});

test('a VM that could not be created and was started later stays stopped when it is stopped', async (t) => {
  const world = await World.make(t);
  const vm = await world.open();
  await until('it to fail', () => vm.status.outcome === 'failed');
  assert.match(vm.status.reason, /there is no such image/);
  world.hasImage = true;
  vm.take({ ...record, generation: 2 });
  await until('it to start', () => vm.machine?.state.status === 'starting');
  vm.take({ ...record, desired: 'stopped', generation: 3 });
  assert.notEqual(vm.machine?.state.stop?.next, 'start');
});

test('a compromised VM that was started anew is not ended by the next daemon, its boot not kept yet', async (t) => {
  const world = await World.make(t);
  world.hasImage = true;
  const served: VmRecord = { ...record, metadataServer: { ways: ['socket'] } };
  const vm = await world.open(served);
  await until('it to start', () => vm.machine?.state.status === 'starting');
  await until('that to be kept', async () => Buffer.from(await world.kept()).includes('"starting"'));
  await world.bootAsCompromised();
  const next = await world.open(served);
  assert.equal(next.machine?.state.status, 'starting');
});

test('a deletion that fails says so, is tried again, and ends nothing else', async (t) => {
  const world = await World.make(t);
  const vm = await world.open();
  world.failure = 'the disk is full';
  vm.take({ ...record, desired: 'deleted', generation: 2 });
  await until('it to be told', () =>
    world.troubles.some((what) => /deleting it failed, trying again: the disk is full/.test(what)),
  );
  await until('it to be gone', () => vm.status.status === 'deleted');
  assert.deepEqual([vm.status.outcome, vm.status.reason], ['done', '']);
});

test('boots that are told of at once are two, each with a number and an id of its own', async (t) => {
  const world = await World.make(t);
  const vm = await world.open({ ...record, kind: 'attached' });
  const told = await Promise.all([vm.boot(undefined), vm.boot(undefined), vm.boot(undefined)]);
  assert.deepEqual(
    told.map(({ number }) => number),
    [1, 2, 3],
  );
  assert.deepEqual(
    (await world.boots()).map(({ bootId, number }) => ({ bootId, number })),
    told,
  );
  assert.deepEqual([vm.status.bootId, vm.status.bootNumber], [told[2]!.bootId, 3]);
});
