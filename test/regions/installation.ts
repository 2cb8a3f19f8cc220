/** The installation that docs/operations.md describes, made by its commands on machines of a network of its own. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { HostEvent } from '../../src/cli/host-daemon.ts';
import type { ManagerEvent } from '../../src/cli/manager-daemon.ts';
import { Client } from '../../src/cluster/index.ts';
import { checkout, porthole } from '../cli/stage.ts';
import { until } from '../until.ts';
import { Daemon } from '../up/region-machine.ts';
import { type Block, blocksOf } from './chapter.ts';
import { type Machine, Network } from './network.ts';

export const regions = ['eu', 'us', 'ap'] as const;
export type Region = (typeof regions)[number];
export const prefixOf = (region: Region): string => `10.77.${regions.indexOf(region) + 1}.0/24`;
export const withEtcd = ['eu-1', 'us-1', 'ap-1'] as const;
type WithEtcd = (typeof withEtcd)[number];
export const managerNames = [...withEtcd, 'eu-2'] as const;
export type ManagerName = (typeof managerNames)[number];
export const hostNames = ['eu-h1', 'eu-h2', 'us-h1'] as const;
export type HostName = (typeof hostNames)[number];

const addresses: Readonly<Record<ManagerName | HostName, string>> = {
  'eu-1': '10.77.1.1',
  'eu-2': '10.77.1.2',
  'eu-h1': '10.77.1.11',
  'eu-h2': '10.77.1.12',
  'us-1': '10.77.2.1',
  'us-h1': '10.77.2.11',
  'ap-1': '10.77.3.1',
};
/** Where the authority is, and users: the machine of the test. */
const office = 'office';
/** The shortest that there is. */
const leaseSeconds = 5;

/** Addresses of a region's managers. */
export const managersOf = (region: Region): string[] =>
  managerNames.filter((name) => regionOf(name) === region).map((name) => addresses[name]);

export const regionOf = (machine: string): Region => machine.slice(0, 2) as Region;

/** A daemon of the documentation that runs; what it says goes to a log. */
interface Service {
  readonly pid: number;
  readonly log: string;
}

export class Installation implements AsyncDisposable {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'ph-r-'));
  readonly network = new Network();
  readonly managers = new Map<ManagerName, Daemon<ManagerEvent>>();
  readonly hosts = new Map<HostName, Daemon<HostEvent>>();
  readonly #services = new Map<string, Service>();
  readonly #blocks = blocksOf('Three regions');
  readonly #clients = new Map<string, Client>();
  /** PEM, of the authority that signed every certificate. */
  authority = '';

  constructor() {
    // VMs run as users of their own.
    chmodSync(this.directory, 0o711);
    const bin = path.join(this.directory, 'bin');
    mkdirSync(bin);
    const words = porthole.map((word) => `'${word}'`).join(' ');
    writeFileSync(path.join(bin, 'porthole'), `#!/bin/sh\nexec ${words} "$@"\n`, { mode: 0o755 });
  }

  at(machine: string, ...below: readonly string[]): string {
    return path.join(this.directory, machine, ...below);
  }

  machine(name: string): Machine {
    const machine = this.network.machines.get(name);
    assert(machine !== undefined, `there is no machine ${name}`);
    return machine;
  }

  /** Up to hosts that are connected, where some are named. */
  async start(hosts: readonly HostName[]): Promise<void> {
    for (const name of [office, ...Object.keys(addresses)])
      mkdirSync(this.at(name, 'etc'), { recursive: true, mode: 0o711 });
    await Promise.all(Object.entries(addresses).map(([name, address]) => this.network.add(name, address)));
    await this.run('Certificates', office);
    this.#bringCertificates();
    for (const name of withEtcd) {
      this.startEtcd(name, 'region');
      this.startEtcd(name, 'global');
    }
    await this.etcdAnswers();
    await Promise.all([
      ...withEtcd.map((name) => this.run('etcd', name, /who may use the region's/)),
      this.run('etcd', 'eu-1', /who may use the global/),
    ]);
    await this.startManager('eu-1');
    for (const name of managerNames)
      if (name !== 'eu-1') copyFileSync(this.at('eu-1', 'etc/store.key'), this.at(name, 'etc/store.key'));
    await Promise.all(managerNames.filter((name) => name !== 'eu-1').map((name) => this.startManager(name)));
    await this.run('Regions, the first account, the first keys', 'eu-1');
    copyFileSync(this.at('eu-1', 'etc/team.key'), this.at(office, 'etc/team.key'));
    if (hosts.length === 0) return;
    await this.run('Regions, the first account, the first keys', office);
    await Promise.all((['eu-1', 'us-1'] as const).map((name) => this.run('Hosts', name)));
    for (const name of hosts)
      copyFileSync(this.at(`${regionOf(name)}-1`, `etc/${name}.join`), this.at(name, 'etc/host.join'));
    await Promise.all(hosts.map((name) => this.startHost(name)));
  }

  #bringCertificates(): void {
    const from = (file: string): string => this.at(office, 'etc', file);
    this.authority = readFileSync(from('ca.pem'), 'utf8');
    for (const name of managerNames) {
      const bring = (file: string, as = file): void => copyFileSync(from(file), this.at(name, 'etc', as));
      bring('ca.pem');
      for (const kind of ['pem', 'key']) {
        bring(`${name}.${kind}`, `machine.${kind}`);
        for (const user of ['porthole', 'root']) bring(`${user}.${kind}`);
      }
    }
  }

  startEtcd(name: WithEtcd, store: 'region' | 'global'): void {
    const words = { region: /^the region's etcd/, global: /^a member of the global etcd/ }[store];
    this.serve(`${store} etcd of ${name}`, name, this.#block('etcd', name, words));
  }

  /** `etcdctl`, as its root. */
  etcdctl(machine: string, endpoints: readonly string[], ...args: readonly string[]): Promise<string> {
    const at = (file: string): string => this.at(machine, 'etc', file);
    const access = `--cacert ${at('ca.pem')} --cert ${at('root.pem')} --key ${at('root.key')}`;
    return this.sh(machine, `ETCDCTL_API=3 etcdctl ${access} --endpoints ${endpoints.join(',')} ${args.join(' ')}`);
  }

  /** Every member of every etcd. */
  async etcdAnswers(): Promise<void> {
    const endpoints = withEtcd.flatMap((name) => [2378, 2379].map((port) => `https://${addresses[name]}:${port}`));
    await until('every etcd to answer', () =>
      this.etcdctl('eu-1', endpoints, 'endpoint', 'health').then(
        () => true,
        () => false,
      ),
    );
  }

  /** A daemon of the documentation, in the background. */
  serve(what: string, machine: string, block: Block): void {
    const log = this.at(machine, `${what.replaceAll(' ', '-')}.log`);
    const [file, args] = this.#command(machine, `exec >> '${log}' 2>&1\n${asDaemon(block.text)}`);
    const child = spawn(file, args, { stdio: 'ignore', env: this.#environment(machine) });
    this.#services.set(what, { pid: child.pid!, log });
  }

  async endService(what: string): Promise<void> {
    const { pid } = this.#services.get(what)!;
    process.kill(pid, 'SIGKILL');
    await until(`${what} to be dead`, () => !isAlive(pid));
  }

  /** With its data. */
  async loseGlobalMember(name: WithEtcd): Promise<void> {
    await this.endService(`global etcd of ${name}`);
    rmSync(this.at(name, 'etcd/global'), { recursive: true });
  }

  async replaceGlobalMember(name: WithEtcd): Promise<void> {
    await this.run('Loss of a member of etcd', 'eu-1');
    this.serve(`global etcd of ${name}`, name, this.#block('Loss of a member of etcd', name, undefined, isDaemon));
  }

  async startManager(name: ManagerName): Promise<void> {
    const daemon = this.#daemon<ManagerEvent>('Managers', name, ['--host-lease', String(leaseSeconds)]);
    this.managers.set(name, daemon);
    await daemon.told('up');
  }

  async startHost(name: HostName): Promise<void> {
    const daemon = this.#daemon<HostEvent>('Hosts', name);
    this.hosts.set(name, daemon);
    await daemon.told('up');
    await until(`host ${name} to be connected`, async () => {
      const { hosts } = await this.root(`${regionOf(name)}-1`).call('listHosts');
      return hosts.some((host) => host.name === name && host.isConnected);
    });
  }

  /** The manager of a machine, as root there. */
  root(name: string): Client {
    return this.#client(name, () => new Client({ socketPath: this.at(name, 'run/api.sock') }));
  }

  /** As whoever has the key, over the network. */
  as(key: string, manager: ManagerName, region?: Region): Client {
    const url = `https://${addresses[manager]}:8443`;
    return this.#client(`${key} ${manager} ${region}`, () => new Client({ url, key, ca: this.authority }, { region }));
  }

  #client(id: string, make: () => Client): Client {
    const client = this.#clients.get(id) ?? make();
    this.#clients.set(id, client);
    return client;
  }

  /** A block of the documentation that ends by itself, on one of its machines. @returns what it printed */
  async run(title: string, machine: string, which?: RegExp): Promise<string> {
    return this.sh(machine, this.#block(title, machine, which, (text) => !isDaemon(text)).text);
  }

  /** Commands on a machine. */
  async sh(machine: string, script: string): Promise<string> {
    const [file, args] = this.#command(machine, script);
    const child = spawn(file, args, {
      cwd: this.at(machine, 'etc'),
      env: this.#environment(machine),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [out, err] = ['', ''];
    child.stdout!.setEncoding('utf8').on('data', (text: string) => (out += text));
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (err += text));
    const [code] = (await once(child, 'close')) as [number | null];
    assert.equal(code, 0, `on ${machine}:\n${script}\n${out}${err}`);
    return out;
  }

  #block(title: string, machine: string, which: RegExp = /./, isRight: (text: string) => boolean = () => true): Block {
    const found = this.#blocks.filter(
      (block) => block.title === title && block.on.includes(machine) && which.test(block.what) && isRight(block.text),
    );
    assert.equal(found.length, 1, `blocks under "${title}" for ${machine}`);
    return found[0]!;
  }

  #daemon<E extends { readonly event: string }>(
    title: string,
    machine: string,
    more: readonly string[] = [],
  ): Daemon<E> {
    const { text } = this.#block(title, machine, undefined, isDaemon);
    const own = ['--state', this.at(machine, 'state'), '--run', this.at(machine, 'run'), ...more];
    const [file, args] = this.#command(machine, `${asDaemon(text).trimEnd()} ${own.join(' ')} "$@"`);
    return new Daemon(file, [...args, 'sh'], this.#environment(machine));
  }

  #command(machine: string, script: string): readonly [string, readonly string[]] {
    const text = script
      .replaceAll('/etc/porthole', this.at(machine, 'etc'))
      .replaceAll('/var/lib/etcd', this.at(machine, 'etcd'))
      .replaceAll('/srv/porthole', this.at(regionOf(machine), 'srv'));
    const command = ['sh', '-euc', text];
    return machine === office ? ['env', command] : this.machine(machine).command(...command);
  }

  #environment(machine: string): Record<string, string> {
    return {
      PATH: `${path.join(this.directory, 'bin')}:${process.env['PATH']}`,
      HOME: this.at(machine),
      NAME: machine,
      REGION: regionOf(machine),
      ADDRESS: machine === office ? '' : this.machine(machine).address,
      PORTHOLE_API: `unix:${this.at(machine, 'run/api.sock')}`,
      NODE_COMPILE_CACHE: path.join(checkout, '.cache/compile'),
      ...(process.env['PORTHOLE_TEST_MARK'] && { PORTHOLE_TEST_MARK: process.env['PORTHOLE_TEST_MARK'] }),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.#clients.values()) client[Symbol.dispose]();
    await this.network[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const isDaemon = (text: string): boolean => /^(etcd --|porthole manager --|porthole host --)/m.test(text);

/** As a service manager runs it, in place of the shell. */
const asDaemon = (text: string): string => text.replace(/^(?=etcd |porthole )/m, 'exec ');

const isAlive = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return false;
  }
};
