/** The outside of ways in that a device process serves: the tree and its authority are here, as in the host daemon. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { LinkConfig, ToHost } from '../../src/device/index.ts';
import { AuditRingReader } from '../../src/host/audit-ring-reader.ts';
import { DeviceProcess } from '../../src/host/device-process.ts';
import { type AuditRecord, ways } from '../../src/tree/index.ts';
import type { World, WorldSpec } from '../tree/world.ts';
import type { Actor, Driver, Identity, OutsideView, WayName } from './driver.ts';
import { eventually } from './people.ts';
import { AgentPool, type StartAgent } from './posix-agent.ts';
import { machineTimePasses, unseenWorld } from './unseen-world.ts';
import { lookAt } from './world-driver.ts';

type Statistics = Extract<ToHost, { type: 'statistics' }>['counters'];

export abstract class DeviceDriver implements Driver {
  abstract readonly way: WayName;
  abstract readonly heartbeatMs: number;
  readonly #pool: AgentPool;
  #world: World | undefined;
  #unsubscribe: (() => void) | undefined;
  #device: DeviceProcess | undefined;
  #ring: AuditRingReader | undefined;
  #ready = Promise.withResolvers<void>();
  #applied = 0;
  #case = 0;
  #revision = 0;
  readonly #appliedWaiters: { readonly revision: number; readonly done: () => void }[] = [];
  readonly #statistics = new Map<number, (counters: Statistics) => void>();
  #questions = 0;

  constructor(start: StartAgent) {
    this.#pool = new AgentPool(start);
  }

  protected get world(): World {
    return this.#world!;
  }

  /** Starts a device process that serves what `targets` say; resolves when it is ready, with the world's tree. */
  protected async startDevice(targets: Pick<LinkConfig, 'vhostUser' | 'mounts' | 'ninep' | 'vsock'>): Promise<void> {
    this.#ready = Promise.withResolvers();
    this.#ready.promise.catch(() => {});
    const options = { spinMicros: 0, allowUnsealedMemory: false };
    const directory = mkdtempSync(path.join(tmpdir(), 'porthole-ring-'));
    const auditRing = path.join(directory, 'audit.ring');
    this.#ring = new AuditRingReader({
      path: auditRing,
      vm: 'test',
      log: {
        writable: true,
        place: () => undefined,
        readFrom: () => new Uint8Array(0),
        write: (lines) => this.#keep(lines),
      },
      onLie: (reason) => assert.fail(reason),
      onTrouble: (what) => assert.fail(what),
    });
    this.#device = new DeviceProcess({
      onMessage: (message, send) => {
        if (message.type !== 'hello') return this.#take(message);
        send({ type: 'config', vm: 'test', options, auditRing, ...targets });
        if (this.#world !== undefined) this.#connect();
      },
      onEnd: (reason) => {
        rmSync(directory, { recursive: true });
        if (reason !== undefined) this.#ready.reject(new Error(`the device process ended: ${reason}`));
      },
    });
    await this.#ready.promise;
  }

  protected async stopDevice(): Promise<void> {
    this.#unsubscribe?.();
    await this.#device?.stop();
    this.#device = undefined;
    this.#ring?.[Symbol.dispose]();
    this.#ring = undefined;
    this.#applied = 0;
  }

  /** Makes a tree that has never been seen, and gives it to the device process, if one runs. */
  protected async newWorld(spec: WorldSpec): Promise<void> {
    this.#unsubscribe?.();
    this.#world = unseenWorld(spec, ++this.#case, ++this.#revision);
    if (this.#device !== undefined) {
      this.#connect();
      await this.#untilApplied();
    }
  }

  /** What the device process has counted; whatever it sent before has arrived then. */
  protected statistics(): Promise<Statistics> {
    const id = ++this.#questions;
    return new Promise((resolve) => {
      this.#statistics.set(id, resolve);
      this.#device!.send({ type: 'askStatistics', id });
    });
  }

  protected recallActors(how?: 'interrupt' | 'kill'): Promise<void> {
    return this.#pool.recall(how);
  }

  protected endActors(): Promise<void> {
    return this.#pool.end();
  }

  #connect(): void {
    const device = this.#device!;
    this.#unsubscribe = this.world.authority.subscribe('device', (delta) => device.send({ type: 'delta', delta }));
  }

  /** The lines of the ring's records. */
  #keep(lines: Uint8Array): number {
    for (const line of new TextDecoder().decode(lines).split('\n').filter(Boolean)) {
      const { time, ...record } = JSON.parse(line) as Omit<AuditRecord, 'timeMs'> & { readonly time: string };
      this.world.audit.push({ timeMs: Date.parse(time), ...record });
    }
    return lines.length;
  }

  #take(message: ToHost): void {
    switch (message.type) {
      case 'mutation': {
        const { sequence, mutation, way } = message;
        this.world.authority.commit(mutation, ways[way], 'device', undefined, (outcome) =>
          this.#device?.send({ type: 'outcome', sequence, outcome }),
        );
        return;
      }
      case 'auditWaiting':
        this.#ring?.doorbell();
        return;
      case 'ready':
        this.#ready.resolve();
        return;
      case 'failed':
        this.#ready.reject(new Error(message.reason));
        return;
      case 'applied':
        this.#applied = message.revision;
        for (const waiter of this.#appliedWaiters.splice(0)) {
          if (waiter.revision <= message.revision) waiter.done();
          else this.#appliedWaiters.push(waiter);
        }
        return;
      case 'statistics':
        this.#statistics.get(message.id)?.(message.counters);
        this.#statistics.delete(message.id);
        return;
      case 'event':
    }
  }

  #untilApplied(): Promise<void> {
    const { revision } = this.world.authority.snapshot;
    this.#revision = Math.max(this.#revision, revision);
    if (this.#applied >= revision) return Promise.resolve();
    return new Promise((done) => {
      this.#appliedWaiters.push({ revision, done });
    });
  }

  abstract begin(spec: WorldSpec): Promise<void>;
  abstract end(): Promise<void>;
  abstract [Symbol.asyncDispose](): Promise<void>;

  as(identity: Identity): Actor {
    return this.#pool.take(identity);
  }

  async load(spec: WorldSpec): Promise<void> {
    this.world.load(spec);
    await this.#untilApplied();
  }

  look(path: string): Promise<OutsideView | undefined> {
    return Promise.resolve(lookAt(this.world, path));
  }

  audit(): Promise<readonly AuditRecord[]> {
    this.#ring?.drain();
    return Promise.resolve([...this.world.audit]);
  }

  breakAudit(broken: boolean): Promise<void> {
    this.world.auditWorks = !broken;
    this.#ring!.setUnwritable(broken);
    return Promise.resolve();
  }

  nowMs(): number {
    return Date.now();
  }

  pass(ms: number): Promise<void> {
    return machineTimePasses(ms);
  }

  /** After a case the device process holds the root and no handle. */
  protected async assertNothingHeld(): Promise<void> {
    // /dev/fuse tells of a close when it has returned.
    await eventually(async () => {
      const counters = await this.statistics();
      const count = (name: string): number => counters[name] ?? 0;
      assert.equal(count('fuse.bugs') + count('9p.bugs'), 0, 'requests that were answered EIO by a mistake');
      assert.equal(count('fuse.handles') + count('9p.fids'), 0, 'handles and fids that were not given back');
    });
    this.#revision = Math.max(this.#revision, this.world.authority.snapshot.revision);
  }
}
