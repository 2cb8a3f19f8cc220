/**
 * A region in one process that can lose any of its parts: etcd members as they are, managers with connections of their own to
 * them, simulated hosts with connections of their own to the managers, each line with a proxy that cuts it.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { type ApiServer, listen, Manager } from '../../src/cluster/index.ts';
import { specChecker } from '../../src/host/tree-port.ts';
import type { Resources } from '../../src/records/index.ts';
import { openEtcdStores, type Stores } from '../../src/store/index.ts';
import { type Address, enrol, type Identity, UplinkServer } from '../../src/uplink/index.ts';
import { EtcdCluster } from '../etcd/cluster.ts';
import { CuttingProxy } from '../etcd/cutting-proxy.ts';
import { until } from '../until.ts';
import { Machine, SimulatedHost } from './simulated-host.ts';

const loopback = '127.0.0.1';
const withinMs = 240_000;

const addressOf = ({ endpoint }: CuttingProxy): Address => ({ host: loopback, port: Number(endpoint.split(':')[1]) });

const openStores = (endpoints: readonly string[], directory: string): Promise<Stores> =>
  openEtcdStores({ endpoints, prefix: 'fleet', keyFile: join(directory, 'key') });

interface RunningManager {
  readonly stores: Stores;
  readonly uplink: UplinkServer;
  readonly manager: Manager;
  readonly api: ApiServer;
}

export interface FleetOptions {
  readonly managers: number;
  readonly hosts: number;
  /** Of each host. */
  readonly capacity: Resources;
  readonly onTrouble: (what: string) => void;
}

/** A manager, at addresses that stay over its deaths. */
export class FleetManager {
  readonly name: string;
  readonly #fleet: Fleet;
  readonly #toEtcd: readonly CuttingProxy[];
  #running: RunningManager | undefined;
  /** Of before its first start: any that are free. */
  #ports = { hosts: 0, api: 0 };
  #ends: Promise<unknown>[] = [];

  constructor(fleet: Fleet, name: string, toEtcd: readonly CuttingProxy[]) {
    this.#fleet = fleet;
    this.name = name;
    this.#toEtcd = toEtcd;
  }

  get socketPath(): string {
    return join(this.#fleet.directory, `${this.name}.sock`);
  }

  get url(): string {
    return `http://${loopback}:${this.#ports.api}`;
  }

  get hostsPort(): number {
    return this.#ports.hosts;
  }

  get enrolment() {
    return this.#running!.uplink.enrolment;
  }

  async start(): Promise<void> {
    const { directory, onTrouble } = this.#fleet;
    for (const proxy of this.#toEtcd) proxy.open();
    const stores = await openStores(
      this.#toEtcd.map(({ endpoint }) => endpoint),
      directory,
    );
    const { region, global } = stores;
    const told = (what: string): void => onTrouble(`${this.name}: ${what}`);
    const uplink = await UplinkServer.open({
      region,
      regionName: 'local',
      address: { host: loopback, port: this.#ports.hosts },
      checkSpec: specChecker(),
      version: 'test',
      onTrouble: told,
    });
    const manager = await Manager.open({
      region,
      global,
      host: uplink.hosts,
      connected: () => uplink.hosts.connected(),
      ownHost: false,
      enrolment: uplink.enrolment,
      takeoverSeconds: 1,
      log: pino({ level: 'warn' }, { write: (line: string) => told(line.trim()) }),
    });
    const tcp = { host: loopback, port: this.#ports.api };
    const api = await listen({ manager, version: '0.1.0', socketPath: this.socketPath, tcp, closeMs: 100 });
    this.#ports = { hosts: uplink.port, api: Number(new URL(api.url!).port) };
    this.#running = { stores, uplink, manager, api };
  }

  /** Nothing that it is at comes to anything any more: its lines are cut first. */
  async kill(): Promise<void> {
    const running = this.#running;
    if (running === undefined) return;
    this.#running = undefined;
    this.cutOff();
    const { stores, uplink, manager, api } = running;
    this.#fleet.cutHostsOff(this);
    // Its ports are its successor's.
    await Promise.all([api.close(), uplink.close()]);
    this.#ends.push(manager.close().then(() => stores.close()));
  }

  get isRunning(): boolean {
    return this.#running !== undefined;
  }

  /** From etcd. */
  cutOff(): void {
    for (const proxy of this.#toEtcd) proxy.close();
  }

  heal(): void {
    for (const proxy of this.#toEtcd) proxy.open();
  }

  async end(): Promise<void> {
    this.heal();
    const running = this.#running;
    if (running !== undefined) {
      await running.api.close();
      await running.manager.close();
      await running.uplink.close();
      await running.stores.close();
    }
    await Promise.all(this.#ends);
    for (const proxy of this.#toEtcd) await proxy[Symbol.asyncDispose]();
  }
}

/** A host's machine, which lives on when its daemon dies, and its lines to the managers. */
export class FleetHost {
  readonly name: string;
  readonly machine = new Machine();
  readonly #fleet: Fleet;
  readonly #lines: readonly CuttingProxy[];
  readonly #identity: Identity;
  readonly #capacity: Resources;
  #running: SimulatedHost | undefined;

  private constructor(fleet: Fleet, identity: Identity, capacity: Resources, lines: readonly CuttingProxy[]) {
    this.#fleet = fleet;
    this.#capacity = capacity;
    this.name = identity.host;
    this.#identity = identity;
    this.#lines = lines;
  }

  static async enrol(fleet: Fleet, name: string, capacity: Resources): Promise<FleetHost> {
    const lines = await Promise.all(fleet.managers.map(({ hostsPort }) => CuttingProxy.start(hostsPort)));
    const { text, operation } = fleet.managers[0]!.enrolment.newKey(name, 600);
    await fleet.stores.region.commit({ operations: [operation] });
    const identity = await enrol({
      managers: lines.map(addressOf),
      region: 'local',
      host: name,
      joinKey: text,
      facts: { version: 'test', capacity },
      directory: join(fleet.directory, name),
    });
    return new FleetHost(fleet, identity, capacity, lines);
  }

  get daemon(): SimulatedHost | undefined {
    return this.#running;
  }

  async start(): Promise<void> {
    const { directory, onTrouble } = this.#fleet;
    this.heal();
    this.#running = await SimulatedHost.start(
      {
        machine: this.machine,
        managers: this.#lines.map(addressOf),
        identity: this.#identity,
        capacity: this.#capacity,
        directory: join(directory, this.name),
        auditDirectory: join(directory, this.name, 'audit'),
        onTrouble,
      },
      AbortSignal.timeout(withinMs),
    );
  }

  async kill(): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    for (const line of this.#lines) line.close();
    await running?.kill();
  }

  /** From these of the managers. */
  cutOff(which: (manager: number) => boolean): void {
    for (const [i, line] of this.#lines.entries()) if (which(i)) line.close();
  }

  cut(manager: number): void {
    this.#lines[manager]?.cut();
  }

  heal(): void {
    for (const line of this.#lines) line.open();
  }

  async end(): Promise<void> {
    await this.#running?.kill();
    for (const line of this.#lines) await line[Symbol.asyncDispose]();
  }
}

export class Fleet implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'porthole-fleet-'));
  readonly etcd: EtcdCluster;
  readonly onTrouble: (what: string) => void;
  readonly managers: FleetManager[] = [];
  readonly hosts: FleetHost[] = [];
  #stores: Stores | undefined;

  private constructor(etcd: EtcdCluster, onTrouble: (what: string) => void) {
    this.etcd = etcd;
    this.onTrouble = onTrouble;
  }

  /** Resolves when every host is connected to every manager. */
  static async start({ managers, hosts, capacity, onTrouble }: FleetOptions): Promise<Fleet> {
    const fleet = new Fleet(await EtcdCluster.start(), onTrouble);
    try {
      fleet.#stores = await openStores(fleet.etcd.endpoints, fleet.directory);
      for (let i = 0; i < managers; i++) {
        const lines = fleet.etcd.members.map(({ clientPort }) => CuttingProxy.start(clientPort));
        const manager = new FleetManager(fleet, `m${i}`, await Promise.all(lines));
        fleet.managers.push(manager);
        await manager.start();
      }
      for (let i = 0; i < hosts; i++) {
        const host = await FleetHost.enrol(fleet, `h${i}`, capacity);
        fleet.hosts.push(host);
        await host.start();
      }
      return fleet;
    } catch (error) {
      await fleet[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** By connections that nobody cuts. */
  get stores(): Stores {
    return this.#stores!;
  }

  cutHostsOff(manager: FleetManager): void {
    for (const host of this.hosts) host.cut(this.managers.indexOf(manager));
  }

  /** All that was killed or cut off is there again. */
  async healAll(): Promise<void> {
    for (const member of this.etcd.members) if (member.process === undefined) this.etcd.restart(member);
    await this.etcd.healthy();
    for (const manager of this.managers) {
      manager.heal();
      if (!manager.isRunning) await manager.start();
    }
    for (const host of this.hosts) {
      host.heal();
      if (host.daemon === undefined) await host.start();
    }
    await until('all managers to answer', async () => {
      const { entries } = await this.stores.region.range({ start: 'hostlive/', end: 'hostlive0' });
      return entries.length === this.hosts.length;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const host of this.hosts) await host.end();
    for (const manager of this.managers) await manager.end();
    await this.#stores?.close();
    await this.etcd[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
