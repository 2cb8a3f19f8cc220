/** The outside of ways in whose tree lives in this process, with a clock that a test moves. */
import type { AuditRecord } from '../../src/tree/index.ts';
import { World, type WorldSpec } from '../tree/world.ts';
import type { Actor, Driver, Identity, OutsideView, WayName } from './driver.ts';
import { typeOf } from './walk.ts';

export function lookAt(world: World, path: string): OutsideView | undefined {
  const node = world.authority.snapshot.resolve(path);
  if (node === undefined) return undefined;
  return {
    type: typeOf(node.mode),
    mode: node.mode & 0o7777,
    uid: node.uid,
    gid: node.gid,
    text: new TextDecoder().decode(node.bytes ?? new Uint8Array()),
  };
}

export abstract class WorldDriver implements Driver {
  abstract readonly way: WayName;
  abstract readonly heartbeatMs: number;
  #world: World | undefined;

  protected get world(): World {
    return this.#world!;
  }

  /** Opens the way in on a new world. */
  protected abstract open(world: World): void | Promise<void>;
  /** Ends every actor and the way in. */
  protected abstract shut(world: World): Promise<void>;
  /** Runs what is due by the clock. */
  protected abstract tick(nowMs: number): void;
  abstract as(identity: Identity): Actor;

  protected worldOf(spec: WorldSpec): World {
    return new World(spec);
  }

  /** Resolves when what the world has now is what the way shows. */
  protected shown(_world: World): Promise<void> {
    return Promise.resolve();
  }

  async begin(spec: WorldSpec): Promise<void> {
    await this.end();
    this.#world = this.worldOf(spec);
    await this.open(this.#world);
  }

  load(spec: WorldSpec): Promise<void> {
    this.world.load(spec);
    return this.shown(this.world);
  }

  look(path: string): Promise<OutsideView | undefined> {
    return Promise.resolve(lookAt(this.world, path));
  }

  audit(): Promise<readonly AuditRecord[]> {
    return Promise.resolve([...this.world.audit]);
  }

  breakAudit(broken: boolean): Promise<void> {
    this.world.auditWorks = !broken;
    return Promise.resolve();
  }

  nowMs(): number {
    return this.world.clock.nowMs;
  }

  pass(ms: number): Promise<void> {
    const { clock } = this.world;
    clock.advance(ms);
    this.tick(clock.nowMs);
    return Promise.resolve();
  }

  async end(): Promise<void> {
    const world = this.#world;
    if (world === undefined) return;
    this.#world = undefined;
    await this.shut(world);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }
}
