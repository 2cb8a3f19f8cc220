/** A region with two hosts, each in a network namespace of its own, joined by a cable; the manager is in the first. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { TestContext } from 'node:test';
import type { HostEvent } from '../../src/cli/host-daemon.ts';
import type { ManagerEvent } from '../../src/cli/manager-daemon.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';
import { Daemon } from './region-machine.ts';

export type HostName = 'a' | 'b';
export const hostNames = ['a', 'b'] as const;
const own = { a: { ipv4: '10.0.0.1', ipv6: 'fd00:1::1' }, b: { ipv4: '10.0.0.2', ipv6: 'fd00:1::2' } } as const;
const managerPort = 4665;
/** Where udev runs everybody may open it. */
const ownTun = 'mount -t tmpfs -o mode=0755 tun /dev/net && mknod -m 0666 /dev/net/tun c 10 200 && exec "$0" "$@"';

export class RoutedRegion extends UpMachine {
  readonly hosts = new Map<HostName, Daemon<HostEvent>>();
  #manager: Daemon<ManagerEvent> | undefined;
  readonly #holders = new Map<HostName, ChildProcess>();

  constructor(t: Pick<TestContext, 'after'>) {
    super(t);
    t.after(async () => {
      for (const holder of this.#holders.values()) {
        holder.kill('SIGKILL');
        await once(holder, 'exit');
      }
    });
  }

  /** Runs a program in the network of a host; gives back what it prints. */
  within(host: HostName, ...command: readonly string[]): string {
    return execFileSync('nsenter', [`--net=${this.#network(host)}`, ...command], { encoding: 'utf8' });
  }

  /** Of the host's filter: how many packets it has dropped so far as one of these. */
  dropped(host: HostName, counter: 'spoofed' | 'refused'): number {
    const counted = this.within(host, 'nft', 'list', 'counters');
    return Number(new RegExp(`counter ${counter} \\{\\s+packets (\\d+)`).exec(counted)?.[1]);
  }

  /** Programs of a host's network. */
  pidsOf(host: HostName, name: string): number[] {
    return this.pidsWithin(path.join(this.directory, host, `run/network/${name}.conf`));
  }

  #network(host: HostName): string {
    return `/proc/${this.#holders.get(host)!.pid}/ns/net`;
  }

  async #namespaces(): Promise<void> {
    for (const host of hostNames) {
      this.#holders.set(host, spawn('unshare', ['--net', 'sleep', '3600'], { stdio: 'ignore' }));
      await until(
        'a network of its own',
        () => readlinkSync(this.#network(host)) !== readlinkSync('/proc/self/ns/net'),
      );
    }
    const peer = String(this.#holders.get('b')!.pid);
    this.within('a', 'ip', 'link', 'add', 'cable', 'type', 'veth', 'peer', 'name', 'cable', 'netns', peer);
    for (const host of hostNames) {
      const { ipv4, ipv6 } = own[host];
      this.within(
        host,
        'sh',
        '-ec',
        `ip link set lo up; ip address add ${ipv4}/24 dev cable; ip -6 address add ${ipv6}/64 dev cable nodad || true; ip link set cable up`,
      );
    }
  }

  /** A program that runs Porthole in the network of a host. */
  #programOf(host: HostName): string {
    const program = path.join(this.directory, `porthole-in-${host}`);
    const command = `nsenter --net=${this.#network(host)} unshare --mount --propagation private sh -c '${ownTun}' '${this.program}'`;
    writeFileSync(program, `#!/bin/sh\nexec ${command} "$@"\n`, { mode: 0o755 });
    return program;
  }

  override async start(): Promise<void> {
    if (this.#holders.size === 0) await this.#namespaces();
    if (this.#manager === undefined) {
      const state = path.join(this.directory, 'manager');
      const hosts = `${own.a.ipv4}:${managerPort}`;
      const directories = ['--state', state, '--run', path.join(this.directory, 'run')];
      this.#manager = new Daemon(this.#programOf('a'), ['manager', '--region', 'eu', '--hosts', hosts, ...directories]);
      await this.#manager.told('up');
    }
    for (const host of hostNames) if (this.hosts.get(host)?.hasEnded !== false) await this.startHost(host);
  }

  async startHost(host: HostName): Promise<void> {
    const directory = path.join(this.directory, host);
    const key = path.join(directory, 'join.key');
    if (!this.hosts.has(host)) {
      mkdirSync(directory, { mode: 0o711 });
      const { text } = await this.client.call('createJoinKey', { body: { host } });
      writeFileSync(key, `${text}\n`, { mode: 0o600 });
    }
    const { ipv4, ipv6 } = own[host === 'a' ? 'b' : 'a'];
    const daemon: Daemon<HostEvent> = new Daemon(this.#programOf(host), [
      ...['host', '--manager', `${own.a.ipv4}:${managerPort}`, '--region', 'eu', '--as', host, '--join-key', key],
      ...['--state', path.join(directory, 'state'), '--run', path.join(directory, 'run')],
      ...['--bgp-as', '64512', '--bgp-peer', ipv4, '--bgp-peer', ipv6],
    ]);
    this.hosts.set(host, daemon);
    await daemon.told('up');
    await until('the host to be connected', async () => {
      const { hosts } = await this.client.call('listHosts', {});
      return hosts.some(({ name, isConnected }) => name === host && isConnected);
    });
  }

  override async release(): Promise<void> {
    for (const host of this.hosts.values()) await host.kill('SIGTERM');
    await this.#manager?.kill('SIGTERM');
  }
}
