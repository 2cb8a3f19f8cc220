/** A manager and a host as processes of their own on this machine, with a proxy between them that can cut them off. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';
import type { TestContext } from 'node:test';
import type { HostEvent } from '../../src/cli/host-daemon.ts';
import type { ManagerEvent } from '../../src/cli/manager-daemon.ts';
import { noHostConnected } from '../../src/uplink/fleet.ts';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';

/** One process of `porthole`, and what it told. */
export class Daemon<E extends { readonly event: string }> {
  readonly events: E[] = [];
  readonly child: ChildProcess;
  said = '';

  constructor(program: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.child = spawn(program, [...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'], env });
    createInterface({ input: this.child.stdout! }).on('line', (line) => this.events.push(JSON.parse(line) as E));
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said += text;
    });
  }

  get hasEnded(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  async told<K extends E['event']>(event: K): Promise<Extract<E, { event: K }>> {
    return until(`"${event}" to be told`, () => {
      const found = this.events.findLast((told) => told.event === event);
      assert(found !== undefined || !this.hasEnded, `it ended: ${this.said}\n${JSON.stringify(this.events)}`);
      return found as Extract<E, { event: K }> | undefined;
    });
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    if (this.hasEnded) return;
    const exit = once(this.child, 'exit');
    this.child.kill(signal);
    await exit;
  }
}

/** Passes connections on, until it is told not to. */
export class Proxy {
  readonly #server = createServer((socket) => this.#pass(socket));
  readonly #sockets = new Set<Socket>();
  /** Where it leads. */
  port = 0;
  /** `silent`: what is sent is lost, as where packets are dropped; `closed`: nobody is there. */
  state: 'open' | 'silent' | 'closed' = 'open';

  async listen(): Promise<number> {
    if (!this.#server.listening) await once(this.#server.listen(0, '127.0.0.1'), 'listening');
    return (this.#server.address() as AddressInfo).port;
  }

  set(state: Proxy['state']): void {
    this.state = state;
    for (const socket of this.#sockets) {
      if (state === 'silent') socket.pause();
      // What was silent would come late.
      else socket.destroy();
    }
  }

  close(): void {
    this.set('closed');
    this.#server.close();
  }

  #pass(from: Socket): void {
    if (this.state === 'closed') {
      from.destroy();
      return;
    }
    const to = connect(this.port, '127.0.0.1');
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      this.#sockets.add(one);
      one.on('error', () => one.destroy());
      one.on('data', (bytes) => void (this.state === 'open' && other.write(bytes)));
      one.once('close', () => {
        this.#sockets.delete(one);
        other.destroy();
      });
    }
  }
}

export class RegionMachine extends UpMachine {
  manager: Daemon<ManagerEvent> | undefined;
  host: Daemon<HostEvent> | undefined;
  readonly proxy = new Proxy();
  #proxyPort = 0;

  constructor(t: Pick<TestContext, 'after'>) {
    super(t);
    t.after(() => this.proxy.close());
  }

  override async start(): Promise<void> {
    if (this.#proxyPort === 0) this.#proxyPort = await this.proxy.listen();
    this.proxy.set('open');
    if (this.manager?.hasEnded !== false) await this.startManager();
    if (this.host?.hasEnded !== false) await this.startHost();
  }

  async startManager(): Promise<void> {
    const state = path.join(this.directory, 'manager');
    const run = path.join(this.directory, 'run');
    const args = ['manager', '--region', 'eu', '--hosts', '127.0.0.1:0', '--state', state, '--run', run];
    this.manager = new Daemon(this.program, args);
    const { hosts } = await this.manager.told('up');
    this.proxy.port = Number(hosts.split(':')[1]);
  }

  async startHost(): Promise<void> {
    const state = path.join(this.directory, 'state');
    const key = path.join(this.directory, 'join.key');
    mkdirSync(state, { recursive: true, mode: 0o711 });
    if (this.host === undefined) {
      const { text } = await this.client.call('createJoinKey', { body: { host: 'h1' } });
      writeFileSync(key, `${text}\n`, { mode: 0o600 });
    }
    this.host = new Daemon(this.program, [
      ...['host', '--manager', `127.0.0.1:${this.#proxyPort}`, '--region', 'eu', '--as', 'h1', '--join-key', key],
      ...['--state', state, '--run', path.join(this.directory, 'run')],
    ]);
    await this.host.told('up');
    await until('the host to be known as connected', async () => {
      const { hosts } = await this.client.call('listHosts', {});
      return hosts.some(({ name, isConnected }) => name === 'h1' && isConnected);
    });
    // By another connection than the one that is live.
    await until('the host to be asked', async () => {
      const status = await this.client.call('getHost', {}).catch(() => undefined);
      return status?.hosts === 1 && !status.warnings.includes(noHostConnected);
    });
  }

  override async release(): Promise<void> {
    await this.host?.kill('SIGTERM');
    await this.manager?.kill('SIGTERM');
  }
}
