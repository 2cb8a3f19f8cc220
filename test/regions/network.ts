/**
 * Machines with a network of their own each, on this one: network namespaces around the one of this process, which is the router
 * between them and reaches them all, whatever it is told to keep from each other.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import { until } from '../until.ts';

const mark = 'PORTHOLE_IN_OWN_NETWORK';
/** Where every machine has its router. */
const gateway = '169.254.1.1';
/** Of this process. */
const own = '10.77.0.1';
const trial =
  'ip link set lo up && ip link add one type veth peer name two && nft add table inet trial && cat /proc/sys/net/ipv4/ip_forward';

/** Begins this process anew in a network of its own, once. @returns why it can't have one; false: it has */
export const inOwnNetwork = (): string | false => {
  if (process.env[mark] !== undefined) return false;
  if (process.getuid?.() !== 0) return 'network namespaces take root';
  const { status, stderr } = spawnSync('unshare', ['--net', 'sh', '-ec', trial], { encoding: 'utf8' });
  if (status !== 0) return `network namespaces cannot be made here: ${stderr}`;
  const { env, execPath, execArgv, argv } = process;
  const again = ['unshare', '--net', execPath, ...execArgv, ...argv.slice(1)];
  process.execve!('/usr/bin/unshare', again, { ...(env as Record<string, string>), [mark]: '1' });
  throw new Error('unreachable');
};

export class Machine {
  readonly name: string;
  readonly address: string;
  readonly #holder: ChildProcess;

  constructor(name: string, address: string, holder: ChildProcess) {
    this.name = name;
    this.address = address;
    this.#holder = holder;
  }

  get network(): string {
    return `/proc/${this.#holder.pid}/ns/net`;
  }

  /** What `spawn` takes to run a program here. */
  command(...command: readonly string[]): readonly [string, readonly string[]] {
    return ['nsenter', [`--net=${this.network}`, ...command]];
  }

  /** Everything that runs here. */
  get pids(): number[] {
    const network = readlinkSync(this.network);
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name) && Number(name) !== this.#holder.pid)
      .map(Number)
      .filter((pid) => networkOf(pid) === network);
  }

  /** The power fails. */
  async fail(): Promise<void> {
    await until(`${this.name} to be dead`, () => {
      const { pids } = this;
      for (const pid of pids) kill(pid);
      return pids.length === 0;
    });
  }

  async end(): Promise<void> {
    await this.fail();
    const exit = once(this.#holder, 'exit');
    this.#holder.kill('SIGKILL');
    await exit;
  }
}

/** Undefined: it is gone. */
const networkOf = (pid: number): string | undefined => {
  try {
    return readlinkSync(`/proc/${pid}/ns/net`);
  } catch {
    return undefined;
  }
};

const kill = (pid: number): void => {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It is gone.
  }
};

export class Network implements AsyncDisposable {
  readonly machines = new Map<string, Machine>();
  /** Addresses and prefixes that are cut off from all that is not of them. */
  readonly #cut = new Set<string>();

  constructor() {
    ip('link set lo up', `address add ${own}/32 dev lo`);
    writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
    nft('add table inet cuts; add chain inet cuts forward { type filter hook forward priority 0; }');
  }

  async add(name: string, address: string): Promise<Machine> {
    const holder = spawn('unshare', ['--net', 'sleep', 'infinity'], { stdio: 'ignore' });
    const machine = new Machine(name, address, holder);
    this.machines.set(name, machine);
    await until('a network of its own', () => readlinkSync(machine.network) !== readlinkSync('/proc/self/ns/net'));
    const port = `to-${name}`;
    ip(
      `link add ${port} type veth peer name cable netns ${holder.pid}`,
      `address add ${gateway}/32 dev ${port}`,
      `link set ${port} up`,
      `route add ${address}/32 dev ${port} src ${own}`,
    );
    const within = [
      'link set lo up',
      `address add ${address}/32 dev cable`,
      'link set cable up',
      `route add ${gateway} dev cable scope link`,
      `route add default via ${gateway}`,
    ];
    const [file, args] = machine.command('ip', '-batch', '-');
    execFileSync(file, args, { input: within.join('\n'), stdio: ['pipe', 'ignore', 'inherit'] });
    return machine;
  }

  /** What is sent over the border of this address or prefix is lost, until it is healed. */
  cut(border: string): void {
    this.#cut.add(border);
    this.#rule();
  }

  heal(border: string): void {
    this.#cut.delete(border);
    this.#rule();
  }

  #rule(): void {
    const rules = [...this.#cut].flatMap((border) => [
      `add rule inet cuts forward ip saddr ${border} ip daddr != ${border} drop`,
      `add rule inet cuts forward ip daddr ${border} ip saddr != ${border} drop`,
    ]);
    nft(['flush chain inet cuts forward', ...rules].join('; '));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.machines.values()].map((machine) => machine.end()));
  }
}

const ip = (...commands: readonly string[]): void => {
  execFileSync('ip', ['-batch', '-'], { input: commands.join('\n'), stdio: ['pipe', 'ignore', 'inherit'] });
};

const nft = (commands: string): void => {
  execFileSync('nft', [commands], { stdio: ['ignore', 'ignore', 'inherit'] });
};
