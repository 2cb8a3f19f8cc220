/**
 * Follows the domains of one libvirt. Its events come from a `virsh` that runs for as long as somebody is followed; a lost
 * connection ends it, and it is started again. Who was started is taken from libvirt's list, which is looked at when events
 * say so, after each connection and now and then: so a start that no event told of is noticed too. Resets within a life of
 * QEMU are told of by events alone: what happens while nobody listens is not seen.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { promisify } from 'node:util';
import { printable } from '../wire/index.ts';
import { type DomainRun, listingCommands, readEvent, readListing } from './virsh.ts';

export interface DomainFollower {
  readonly domain: string;
  /** How it is: what runs, that it is defined and does not run, or that libvirt knows no such domain. */
  readonly onLook: (found: DomainRun | 'off' | 'unknown') => void;
  readonly onReboot: () => void;
}

export interface DomainWatchOptions {
  readonly uri: string;
  readonly onTrouble: (what: string) => void;
  readonly virsh?: string;
}

const run = promisify(execFile);
const environment = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  LC_ALL: 'C',
  // Where a user's own libvirt has its socket.
  ...Object.fromEntries(['HOME', 'XDG_RUNTIME_DIR'].map((name) => [name, process.env[name]])),
};
const lookEveryMs = 15_000;
const lookWithinMs = 20_000;
const againFirstMs = 1_000;
const againMostMs = 30_000;
/** Characters of a line: more than any event's. */
const lineMost = 64 * 1024;
/** QEMU tells of one reboot several times (7.2: up to seven times in 150 ms, seen); no guest boots in less. */
const sameRebootMs = 1_000;

export class DomainWatch {
  readonly #options: DomainWatchOptions;
  readonly #followers = new Set<DomainFollower>();
  readonly #rebootAtMs = new Map<string, number>();
  #child: ChildProcess | undefined;
  #again: NodeJS.Timeout | undefined;
  #lookTimer: NodeJS.Timeout | undefined;
  #looking: Promise<void> | undefined;
  #lookAgain = false;
  #againMs = againFirstMs;
  /** Told of once, until it is over. */
  #trouble = '';
  #closed = false;

  constructor(options: DomainWatchOptions) {
    this.#options = options;
  }

  /** Why libvirt can't be asked; empty while it can. */
  get trouble(): string {
    return this.#trouble;
  }

  /** @returns what ends it */
  follow(follower: DomainFollower): () => void {
    this.#followers.add(follower);
    if (this.#child === undefined && this.#again === undefined) this.#listen();
    else this.look();
    return () => {
      this.#followers.delete(follower);
      if (this.#followers.size === 0) this.#rest();
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#followers.clear();
    this.#rest();
    await this.#looking;
  }

  #rest(): void {
    clearTimeout(this.#again);
    clearInterval(this.#lookTimer);
    this.#again = undefined;
    this.#child?.kill('SIGKILL');
    this.#child = undefined;
  }

  #listen(): void {
    const { uri, virsh = 'virsh' } = this.#options;
    this.#again = undefined;
    // It must not outlive this process, and it would notice our end only by what it prints next.
    const words = ['--pdeathsig', 'KILL', '--', virsh, '-k', '10', '-K', '3', '-c', uri];
    const child = spawn('setpriv', [...words, 'event', '--all', '--loop', '--timestamp'], {
      env: environment,
      cwd: '/',
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child = child;
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-2_000);
    });
    child.once('error', (error) => {
      said = error.message;
    });
    let rest = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!.slice(-lineMost);
      for (const line of lines) this.#take(line);
    });
    child.once('close', () => {
      if (this.#child !== child) return;
      this.#child = undefined;
      clearInterval(this.#lookTimer);
      this.#lost(said);
    });
    this.look();
    clearInterval(this.#lookTimer);
    this.#lookTimer = setInterval(() => this.look(), lookEveryMs).unref();
  }

  #lost(said: string): void {
    if (this.#closed || this.#followers.size === 0) return;
    this.#tell(`libvirt at "${this.#options.uri}" tells nothing: ${errorOf(said) || 'virsh ended'}; trying again`);
    this.#again = setTimeout(() => this.#listen(), this.#againMs).unref();
    this.#againMs = Math.min(this.#againMs * 2, againMostMs);
  }

  #tell(what: string): void {
    const isNew = this.#trouble === '';
    this.#trouble = what;
    if (isNew) this.#options.onTrouble(what);
  }

  #take(line: string): void {
    const event = readEvent(line);
    if (event === undefined) return;
    if (event.what === 'lifecycle') {
      this.look();
      return;
    }
    const last = this.#rebootAtMs.get(event.domain);
    if (last !== undefined && Math.abs(event.atMs - last) < sameRebootMs) return;
    const told = [...this.#followers].filter(({ domain }) => domain === event.domain);
    if (told.length === 0) return;
    this.#rebootAtMs.set(event.domain, event.atMs);
    for (const follower of told) follower.onReboot();
  }

  /** Has everybody told how their domain is now. */
  look(): void {
    this.#lookAgain = true;
    this.#looking ??= this.#look().finally(() => {
      this.#looking = undefined;
      if (this.#lookAgain && this.#followers.size > 0) this.look();
    });
  }

  /** Ends one life of a domain at once, and no other. What fails is told of. */
  async destroy({ id }: DomainRun): Promise<void> {
    try {
      // That number is the life's alone.
      await this.#virsh(`destroy ${id}`);
    } catch (error) {
      this.#options.onTrouble(`libvirt did not destroy domain ${id}, trying again: ${errorOfRun(error)}`);
    }
  }

  async #virsh(commands: string): Promise<string> {
    const { uri, virsh = 'virsh' } = this.#options;
    const { stdout } = await run(virsh, ['-c', uri, commands], {
      env: environment,
      cwd: '/',
      timeout: lookWithinMs,
      maxBuffer: 64 * 1024 * 1024,
    });
    return stdout;
  }

  async #look(): Promise<void> {
    const { uri, onTrouble } = this.#options;
    while (this.#lookAgain && this.#followers.size > 0) {
      this.#lookAgain = false;
      try {
        const domains = readListing(await this.#virsh(listingCommands));
        if (this.#child !== undefined && this.#trouble !== '') {
          this.#trouble = '';
          onTrouble(`libvirt at "${uri}" can be asked again`);
        }
        this.#againMs = againFirstMs;
        for (const follower of this.#followers)
          follower.onLook(domains.get(follower.domain) ?? (domains.has(follower.domain) ? 'off' : 'unknown'));
      } catch (error) {
        if (!this.#closed) this.#tell(`libvirt at "${uri}" cannot be asked: ${errorOfRun(error)}; trying again`);
      }
    }
  }
}

const errorOfRun = (error: unknown): string => {
  const { stderr, message } = error as { readonly stderr?: string; readonly message: string };
  return errorOf(stderr || message);
};

const errorOf = (text: string): string => {
  const line = text.split('\n').find((each) => each.startsWith('error:'));
  return printable((line ?? text).trim()).slice(0, 300);
};
