/** `porthole serve --9p` in a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { json } from 'node:stream/consumers';

const porthole = path.join(import.meta.dirname, '../../porthole');

/** What `--json` prints. */
export interface Event {
  readonly event: string;
  readonly what?: string;
  readonly detail?: string;
  readonly target?: { readonly kind: string; readonly path: string };
}

/** A port of this machine that nobody listens on now. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { readonly port: number };
  server.close();
  await once(server, 'close');
  return port;
}

/** Ports that the kernel gives out by itself are below 1024 there. */
const privilegedNetwork = `ip link set lo up
echo 512 >/proc/sys/net/ipv4/ip_unprivileged_port_start
echo '512 1023' >/proc/sys/net/ipv4/ip_local_port_range
exec "$@"`;

export interface ServedNinepOptions {
  /** Also on this port of a guest's vsock. */
  readonly vsockPort?: number;
  /** In a network of its own, whose clients all come from privileged ports: for those that can't ask for one (`inside`). */
  readonly ownNetwork?: boolean;
  /** Also the metadata server, at a socket that is a relay's for the guest's root. */
  readonly http?: boolean;
}

export class ServedNinep implements AsyncDisposable {
  readonly socket: string;
  readonly port: number;
  readonly events: Event[] = [];
  readonly #directory: string;
  readonly #server: ChildProcess;
  readonly #wakes = new Set<() => void>();

  private constructor(directory: string, port: number, server: ChildProcess) {
    this.#directory = directory;
    this.socket = path.join(directory, 'ninep.sock');
    this.port = port;
    this.#server = server;
  }

  /** The path of a guest's vsock device, where there is one. */
  get vsock(): string {
    return path.join(this.#directory, 'vsock');
  }

  /** The socket of the metadata server, where there is one. */
  get http(): string {
    return path.join(this.#directory, 'http.sock');
  }

  /** The arguments by which a program runs in the network of the server. */
  get inside(): readonly string[] {
    return ['nsenter', '--net', '--target', `${this.#server.pid}`];
  }

  /** Serves `spec` on a unix socket and on a port of 127.0.0.1. */
  static async start(
    spec: string,
    { vsockPort, ownNetwork = false, http = false }: ServedNinepOptions = {},
  ): Promise<ServedNinep> {
    const directory = mkdtempSync(path.join(tmpdir(), 'porthole-9p-'));
    const file = path.join(directory, 'spec.yaml');
    writeFileSync(file, spec);
    const port = await freePort();
    const args = ['serve', file, '--9p', path.join(directory, 'ninep.sock'), '--9p', `tcp:127.0.0.1:${port}`, '--json'];
    const vsock = ['--vsock', path.join(directory, 'vsock'), '--9p', `vsock:${vsockPort}`];
    if (vsockPort !== undefined) args.push(...vsock);
    if (http) args.push('--http', `unix:${path.join(directory, 'http.sock')},privileged`);
    const command = ownNetwork ? ['unshare', '--net', 'sh', '-ec', privilegedNetwork, 'sh', porthole] : [porthole];
    const server = spawn(command[0]!, [...command.slice(1), ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    const served = new ServedNinep(directory, port, server);
    createInterface(server.stdout!).on('line', (line) => {
      served.events.push(JSON.parse(line) as Event);
      for (const wake of served.#wakes) wake();
    });
    server.once('exit', () => {
      served.events.push({ event: 'stopped' });
      for (const wake of served.#wakes) wake();
    });
    await served.until(
      (events) => events.filter(({ event }) => event === 'ready').length === (vsockPort === undefined ? 2 : 4),
    );
    return served;
  }

  /** Claims this boot's token, as a relay for the guest's root. */
  async claimToken(): Promise<string> {
    const headers = { 'content-type': 'application/json' };
    const request = httpRequest({ socketPath: this.http, path: '/porthole/v1/token', method: 'POST', headers });
    request.end(JSON.stringify({ nonce: randomBytes(16).toString('hex') }));
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    return ((await json(response)) as { readonly token: string }).token;
  }

  /** Resolves when what was told so far is as `isSo` wants it; rejects when the server has ended before. */
  async until(isSo: (events: readonly Event[]) => boolean): Promise<void> {
    while (!isSo(this.events)) {
      if (this.events.some(({ event }) => event === 'stopped'))
        throw new Error(`porthole serve ended; it said ${JSON.stringify(this.events)}`);
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          this.#wakes.delete(wake);
          resolve();
        };
        this.#wakes.add(wake);
      });
    }
  }

  /** Pid of the device process: the only child that the server has. */
  get devicePid(): number {
    const { pid } = this.#server;
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
    if (children.length !== 1) throw new Error(`porthole serve has the children ${children.join(', ')}, and not one`);
    return children[0]!;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = this.#server.exitCode === null ? once(this.#server, 'exit') : undefined;
    this.#server.kill('SIGTERM');
    await ended;
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
