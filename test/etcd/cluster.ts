/** Real etcd members on loopback, each of which can be killed, started again and replaced. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { until } from '../until.ts';

const run = promisify(execFile);

export interface Member {
  readonly name: string;
  readonly directory: string;
  readonly peerPort: number;
  readonly clientPort: number;
  process: ChildProcess | undefined;
}

export interface ClusterOptions {
  readonly members?: number;
  /** How large etcd's database may grow. */
  readonly quotaBytes?: number;
  /** Makes PEM files in a directory: clients are served over TLS only then, and must have a certificate themselves. */
  readonly makeTls?: (directory: string) => TlsFiles;
}

interface TlsFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** Ports that were free just now. */
const freePorts = async (count: number): Promise<number[]> => {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, '127.0.0.1');
      await once(server, 'listening');
      return server;
    }),
  );
  const ports = servers.map((server) => (server.address() as { readonly port: number }).port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
};

export class EtcdCluster implements AsyncDisposable {
  readonly members: Member[] = [];
  readonly #directory = mkdtempSync(join(tmpdir(), 'porthole-etcd-'));
  readonly #tls: TlsFiles | undefined;
  readonly #quotaBytes: number | undefined;

  private constructor({ makeTls, quotaBytes }: ClusterOptions) {
    this.#quotaBytes = quotaBytes;
    this.#tls = makeTls?.(this.#directory);
  }

  /** Resolves when all members answer. */
  static async start(options: ClusterOptions = {}): Promise<EtcdCluster> {
    const cluster = new EtcdCluster(options);
    try {
      for (let i = 0; i < (options.members ?? 3); i++) cluster.members.push(await cluster.#newMember(`m${i}`));
      for (const member of cluster.members) cluster.#spawn(member, 'new');
      await cluster.healthy();
      return cluster;
    } catch (error) {
      await cluster[Symbol.asyncDispose]();
      throw error;
    }
  }

  get endpoints(): string[] {
    return this.members.map(({ clientPort }) => `127.0.0.1:${clientPort}`);
  }

  /** `etcdctl`, to all members unless some are named. */
  async ctl(
    args: readonly string[],
    {
      endpoints = this.endpoints,
      input,
    }: { readonly endpoints?: readonly string[]; readonly input?: Uint8Array | undefined } = {},
  ): Promise<string> {
    const flags = [
      `--endpoints=${endpoints.map((endpoint) => `${this.#scheme}://${endpoint}`).join(',')}`,
      ...(this.#tls === undefined
        ? []
        : [`--cacert=${this.#tls.ca}`, `--cert=${this.#tls.cert}`, `--key=${this.#tls.key}`]),
    ];
    const ended = run('etcdctl', [...flags, ...args], { env: { ...process.env, ETCDCTL_API: '3' } });
    ended.child.stdin?.end(input);
    return (await ended).stdout;
  }

  /** All members that run have a leader and answer. */
  async healthy(): Promise<void> {
    const running = this.members.filter((member) => member.process !== undefined);
    await until('the members of etcd to answer', async () => {
      const ended = running.find((member) => member.process?.exitCode !== null);
      if (ended !== undefined)
        throw new Error(`etcd member ${ended.name} ended: ${readFileSync(join(ended.directory, 'log'), 'utf8')}`);
      return this.ctl(['endpoint', 'health'], { endpoints: running.map(endpointOf) }).then(
        () => true,
        () => false,
      );
    });
  }

  async leader(): Promise<Member> {
    const running = this.members.filter((member) => member.process !== undefined);
    for (;;) {
      const text = await this.ctl(['endpoint', 'status', '--write-out=json'], { endpoints: running.map(endpointOf) });
      const status = JSON.parse(text) as {
        readonly Endpoint: string;
        readonly Status: { readonly leader: number; readonly header: { readonly member_id: number } };
      }[];
      const found = status.find(({ Status }) => Status.leader === Status.header.member_id);
      const leader = running.find((member) => found?.Endpoint.endsWith(`:${member.clientPort}`));
      if (leader !== undefined) return leader;
    }
  }

  async kill(member: Member): Promise<void> {
    const { process } = member;
    if (process === undefined) return;
    member.process = undefined;
    const exited = once(process, 'exit');
    process.kill('SIGKILL');
    await exited;
  }

  restart(member: Member): void {
    this.#spawn(member, 'existing');
  }

  /** A killed member is removed, and another, without its data, put in its place. */
  async replace(member: Member): Promise<Member> {
    const others = this.members.filter((other) => other !== member);
    const endpoints = others.map(endpointOf);
    const list = await this.ctl(['member', 'list'], { endpoints });
    const id = list
      .split('\n')
      .find((line) => line.includes(`, ${member.name}, `))
      ?.split(',')[0];
    if (id === undefined) throw new Error(`etcd knows no member ${member.name}: ${list}`);
    await this.ctl(['member', 'remove', id], { endpoints });
    const next = await this.#newMember(`${member.name}n`);
    await until('etcd to take a new member', () =>
      this.ctl(['member', 'add', next.name, `--peer-urls=${peerUrl(next)}`], { endpoints }).then(
        () => true,
        () => false,
      ),
    );
    this.members.splice(this.members.indexOf(member), 1, next);
    this.#spawn(next, 'existing');
    return next;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.members.map((member) => this.kill(member)));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  get #scheme(): string {
    return this.#tls === undefined ? 'http' : 'https';
  }

  async #newMember(name: string): Promise<Member> {
    const [peerPort, clientPort] = await freePorts(2);
    const directory = join(this.#directory, name);
    mkdirSync(directory, { mode: 0o700 });
    return { name, directory, peerPort: peerPort!, clientPort: clientPort!, process: undefined };
  }

  #spawn(member: Member, state: 'new' | 'existing'): void {
    const tls = this.#tls;
    const clientUrl = `${this.#scheme}://${endpointOf(member)}`;
    const args = [
      `--name=${member.name}`,
      `--data-dir=${join(member.directory, 'data')}`,
      `--listen-peer-urls=${peerUrl(member)}`,
      `--initial-advertise-peer-urls=${peerUrl(member)}`,
      `--listen-client-urls=${clientUrl}`,
      `--advertise-client-urls=${clientUrl}`,
      `--initial-cluster=${this.members.map((other) => `${other.name}=${peerUrl(other)}`).join(',')}`,
      `--initial-cluster-state=${state}`,
      '--logger=zap',
      '--log-level=warn',
      ...(this.#quotaBytes === undefined ? [] : [`--quota-backend-bytes=${this.#quotaBytes}`]),
      ...(tls === undefined
        ? []
        : [`--cert-file=${tls.cert}`, `--key-file=${tls.key}`, `--trusted-ca-file=${tls.ca}`, '--client-cert-auth']),
    ];
    const log = openSync(join(member.directory, 'log'), 'a');
    member.process = spawn('etcd', args, { stdio: ['ignore', log, log] });
  }
}

const endpointOf = ({ clientPort }: Member): string => `127.0.0.1:${clientPort}`;
const peerUrl = ({ peerPort }: Member): string => `http://127.0.0.1:${peerPort}`;
