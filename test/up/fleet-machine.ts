/** A manager and several hosts as processes of their own on this machine, each of which can be cut off, stopped and killed. */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { TestContext } from 'node:test';
import type { HostEvent } from '../../src/cli/host-daemon.ts';
import type { ManagerEvent } from '../../src/cli/manager-daemon.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { type Qemu, qemuIn } from './one-life.ts';
import { Daemon, Proxy } from './region-machine.ts';

/** The shortest that there is. */
const leaseSeconds = 5;

export class FleetHost {
  readonly name: string;
  readonly proxy = new Proxy();
  readonly directory: string;
  daemon: Daemon<HostEvent> | undefined;

  constructor(name: string, directory: string) {
    this.name = name;
    this.directory = path.join(directory, name);
  }

  /** The QEMU of a VM on this host. */
  qemuOf(vm: string): Qemu | undefined {
    return qemuIn(path.join(this.directory, 'run'), vm);
  }
}

export class FleetMachine extends UpMachine {
  manager: Daemon<ManagerEvent> | undefined;
  readonly hosts: readonly FleetHost[];

  constructor(t: Pick<TestContext, 'after'>, names: readonly string[]) {
    super(t);
    this.hosts = names.map((name) => new FleetHost(name, this.directory));
    t.after(() => {
      for (const { proxy } of this.hosts) proxy.close();
    });
  }

  /** The region's network disks, each in a directory that is named after its VM's id. */
  get disks(): string {
    return path.join(this.directory, 'disks');
  }

  override async start(): Promise<void> {
    if (this.manager?.hasEnded !== false) {
      const state = path.join(this.directory, 'manager');
      const run = path.join(this.directory, 'run');
      this.manager = new Daemon(this.program, [
        ...['manager', '--region', 'eu', '--hosts', '127.0.0.1:0', '--state', state, '--run', run],
        ...['--host-lease', String(leaseSeconds), '--disks', this.disks, '--disks-address', '127.0.0.1'],
      ]);
      const { hosts } = await this.manager.told('up');
      for (const { proxy } of this.hosts) proxy.port = Number(hosts.split(':')[1]);
    }
    await Promise.all(this.hosts.map((host) => this.startHost(host)));
  }

  /** Has it go on, whatever became of it. */
  async startHost(host: FleetHost): Promise<void> {
    host.proxy.set('open');
    host.daemon?.child.kill('SIGCONT');
    if (host.daemon?.hasEnded !== false) {
      const state = path.join(host.directory, 'state');
      const key = path.join(host.directory, 'join.key');
      if (host.daemon === undefined) {
        mkdirSync(state, { recursive: true, mode: 0o711 });
        const { text } = await this.client.call('createJoinKey', { body: { host: host.name } });
        writeFileSync(key, `${text}\n`, { mode: 0o600 });
      }
      const port = await host.proxy.listen();
      host.daemon = new Daemon(this.program, [
        ...['host', '--manager', `127.0.0.1:${port}`, '--region', 'eu', '--as', host.name, '--join-key', key],
        ...['--state', state, '--run', path.join(host.directory, 'run')],
      ]);
      await host.daemon.told('up');
    }
    await until(`host ${host.name} to be connected`, async () => {
      const { hosts } = await this.client.call('listHosts', {});
      return hosts.some(({ name, isConnected }) => name === host.name && isConnected);
    });
  }

  override async release(): Promise<void> {
    await Promise.all(this.hosts.map(({ daemon }) => daemon?.kill('SIGTERM')));
    await this.manager?.kill('SIGTERM');
  }
}
