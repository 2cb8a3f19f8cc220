/**
 * The routed network of a host: what there is of devices, routes, filter, DHCP and BGP is made what its attachments need, as
 * often as it takes. What is attached is kept in the run directory, so that a daemon that is started again finds it.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { type Launcher, LogLimits } from '../qemu/index.ts';
import { type Attachment, gateway, ownPrefix, subnet64, type Tapped, tapName } from './attachment.ts';
import { dhcpConfiguration } from './dhcp.ts';
import { filterScript, noFilterScript } from './filter.ts';
import { program } from './program.ts';
import { type Bgp, routesConfiguration } from './routes.ts';
import { Service } from './service.ts';

export interface HostNetworkOptions {
  readonly runDirectory: string;
  readonly launcher: Launcher;
  /** How routes get to other hosts; undefined: they are somebody else's business. */
  readonly bgp?: Bgp | undefined;
  /** Default: whether this process is root's. */
  readonly isRoot?: boolean;
  readonly onTrouble: (what: string) => void;
}

const startAgainMs = 1_000;

const AttachmentRecord = z.object({
  id: z.string(),
  mac: z.string(),
  uid: z.int().optional(),
  ipv4: z.string().optional(),
  ipv6: z.string().optional(),
  udp: z.object({ address: z.string(), ports: z.array(z.int()) }).optional(),
  dns: z.array(z.string()),
  hasMetadata: z.boolean(),
});

export class HostNetwork {
  readonly #options: HostNetworkOptions;
  readonly #prefix: string;
  readonly #directory: string;
  readonly #dhcp: Service;
  readonly #bird: Service;
  readonly #logLimits: LogLimits;
  readonly #attached = new Map<string, Attachment>();
  /** Of those, whose devices this process has seen to. */
  readonly #made = new Set<string>();
  /** Devices that another user may open than the one of before: what runs as that one now is another VM's. */
  readonly #foreign = new Set<string>();
  #changing: Promise<void> = Promise.resolve();
  #next: Promise<void> | undefined;
  /** Nothing of it can be here. */
  #isUnused: boolean;
  #isReleased = false;
  /** False while devices may be of VMs that will be attached again, and nobody knows of which. */
  #knowsAll = true;
  /** The last change did not come to its end. */
  #hasFailed = false;

  constructor(options: HostNetworkOptions) {
    this.#options = options;
    const { runDirectory, launcher } = options;
    this.#prefix = ownPrefix(runDirectory);
    const directory = join(runDirectory, 'network');
    this.#directory = directory;
    this.#isUnused = !existsSync(this.#stateFile);
    for (const attachment of this.#isUnused ? [] : this.#kept()) this.#attached.set(attachment.id, attachment);
    this.#dhcp = new Service({
      name: 'dnsmasq',
      description: 'Porthole: DHCP and router advertisements for VMs',
      directory,
      launcher,
      command: ({ configuration, mark }) => [
        'dnsmasq',
        '--keep-in-foreground',
        '--log-facility=-',
        '--user=nobody',
        `--pid-file=${mark}`,
        dnsmasqReads(configuration),
      ],
      argument: ({ configuration }) => dnsmasqReads(configuration),
      check: ({ configuration }) => program('dnsmasq', ['--test', dnsmasqReads(configuration)]),
      onEnd: (why) => this.#startAgain('dnsmasq', why),
    });
    this.#bird = new Service({
      name: 'bird',
      description: 'Porthole: routes between hosts',
      directory,
      launcher,
      command: ({ configuration, mark }) => ['bird', '-f', '-c', configuration, '-s', mark],
      argument: ({ configuration }) => configuration,
      reload: async ({ mark }) => void (await program('birdc', ['-s', mark, 'configure'])),
      check: ({ configuration }) => program('bird', ['-p', '-c', configuration]),
      onEnd: (why) => this.#startAgain('bird', why),
    });
    this.#logLimits = new LogLimits({
      files: () => [this.#dhcp.logFile, this.#bird.logFile],
      onTrouble: options.onTrouble,
    });
  }

  /** Of a VM that is attached, or will be. */
  tapOf(vmId: string): string {
    return tapName(this.#prefix, vmId);
  }

  /** Resolves when the VM's device is there with all that belongs to it. Error with words for people. */
  attach(attachment: Attachment): Promise<void> {
    if (!(this.#options.isRoot ?? process.getuid?.() === 0))
      return Promise.reject(
        new Error(
          'this host gives VMs no routed network, as its daemon does not run as root; start it as root, or create the VM with another network',
        ),
      );
    const before = this.#attached.get(attachment.id);
    const isSame = before !== undefined && JSON.stringify(before) === JSON.stringify(attachment);
    if (!isSame) this.#made.delete(attachment.id);
    if (before !== undefined && before.uid !== attachment.uid) this.#foreign.add(this.tapOf(attachment.id));
    this.#attached.set(attachment.id, attachment);
    return this.#change();
  }

  /** Resolves when nothing of it is left. */
  detach(vmId: string): Promise<void> {
    const had = this.#attached.delete(vmId);
    this.#made.delete(vmId);
    return had || this.#hasFailed ? this.#change() : this.#changing;
  }

  /** Detaches all others, of which nobody knows any more. Never rejects. */
  async keepOnly(vmIds: ReadonlySet<string>): Promise<void> {
    if (this.#isUnused) return;
    this.#knowsAll = true;
    for (const id of [...this.#attached.keys()]) if (!vmIds.has(id)) this.#attached.delete(id);
    await this.#changeAnyway();
  }

  /** All goes on without us. */
  async release(): Promise<void> {
    this.#isReleased = true;
    this.#logLimits[Symbol.dispose]();
    await this.#changing;
    this.#dhcp.release();
    this.#bird.release();
  }

  get #stateFile(): string {
    return join(this.#directory, 'attached.json');
  }

  #kept(): Attachment[] {
    try {
      return z.array(AttachmentRecord).parse(JSON.parse(readFileSync(this.#stateFile, 'utf8')));
    } catch {
      // Every VM is attached again by who has its record.
      this.#knowsAll = false;
      return [];
    }
  }

  #startAgain(name: string, why: string): void {
    const { onTrouble } = this.#options;
    onTrouble(`${name} ended by itself, it is started again: ${why}`);
    setTimeout(() => {
      if (!this.#isReleased) void this.#changeAnyway();
    }, startAgainMs).unref();
  }

  async #changeAnyway(): Promise<void> {
    await this.#change().catch((error: unknown) => {
      const why = error instanceof Error ? error.message : String(error);
      this.#options.onTrouble(`the network of routed VMs is not as it should be: ${why}`);
    });
  }

  /** What is asked for while a change is under way is one change after it. */
  #change(): Promise<void> {
    this.#next ??= this.#changeAfter(this.#changing);
    this.#changing = this.#next.catch(() => {});
    return this.#next;
  }

  async #changeAfter(before: Promise<void>): Promise<void> {
    await before;
    this.#next = undefined;
    this.#hasFailed = true;
    await this.#bringAbout();
    this.#hasFailed = false;
  }

  async #bringAbout(): Promise<void> {
    this.#isUnused = false;
    const guests = [...this.#attached.values()].map((one) => ({ ...one, tap: this.tapOf(one.id) }));
    const there = await this.#taps();
    // Before it is written down whose they are.
    const foreign = [...this.#foreign].filter((tap) => there.delete(tap));
    await deleteTaps(foreign);
    for (const tap of foreign) this.#foreign.delete(tap);
    mkdirSync(this.#directory, { recursive: true, mode: 0o711 });
    writeFileSync(`${this.#stateFile}.new`, JSON.stringify([...this.#attached.values()]), { mode: 0o600 });
    renameSync(`${this.#stateFile}.new`, this.#stateFile);
    const { bgp } = this.#options;
    const gone = [...there].filter((tap) => this.#knowsAll && !guests.some((guest) => guest.tap === tap));
    if (guests.length > 0) {
      forward(this.#prefix);
      // No packet passes by it.
      await program('nft', ['-f', '-'], filterScript(this.#prefix, guests));
      await this.#makeTaps(
        guests.filter(({ id, tap }) => !this.#made.has(id) || !there.has(tap)),
        there,
      );
      await this.#dhcp.run(dhcpConfiguration(guests));
    } else await this.#dhcp.stop();
    if (bgp !== undefined && guests.length > 0) await this.#bird.run(routesConfiguration(bgp, this.#prefix, guests));
    else await this.#bird.stop();
    await deleteTaps(gone);
    if (guests.length > 0 || !this.#knowsAll) return;
    await program('nft', ['-f', '-'], noFilterScript(this.#prefix));
    rmSync(this.#stateFile, { force: true });
    this.#isUnused = true;
  }

  async #taps(): Promise<Set<string>> {
    const links = z.array(z.looseObject({ ifname: z.string().optional() }));
    const found = links.parse(JSON.parse(await program('ip', ['-json', 'link', 'show'])));
    return new Set(found.flatMap(({ ifname }) => (ifname?.startsWith(`${this.#prefix}-`) ? [ifname] : [])));
  }

  async #makeTaps(guests: readonly Tapped[], there: ReadonlySet<string>): Promise<void> {
    if (guests.length === 0) return;
    const added = guests.filter(({ tap }) => !there.has(tap));
    const adding = added.map(
      ({ tap, uid }) => `tuntap add dev ${tap} mode tap${uid === undefined ? '' : ` user ${uid}`}\n`,
    );
    if (adding.length > 0) await program('ip', ['-batch', '-'], adding.join(''));
    for (const { tap } of guests) setUp(tap);
    const batch = guests.flatMap(({ tap, ipv4, ipv6 }) => [
      `address replace ${gateway}/32 dev ${tap}`,
      ...(ipv6 === undefined ? [] : [`address replace ${subnet64(ipv6)}/64 dev ${tap} noprefixroute nodad`]),
      `link set dev ${tap} up`,
      ...(ipv4 === undefined ? [] : [`route replace ${ipv4}/32 dev ${tap} scope link`]),
      ...(ipv6 === undefined ? [] : [`route replace ${ipv6}/128 dev ${tap}`]),
    ]);
    await program('ip', ['-batch', '-'], `${batch.join('\n')}\n`);
    for (const { id } of guests) this.#made.add(id);
  }
}

const deleteTaps = async (taps: readonly string[]): Promise<void> => {
  if (taps.length > 0) await program('ip', ['-batch', '-'], taps.map((tap) => `link delete dev ${tap}\n`).join(''));
};

const dnsmasqReads = (configuration: string): string => `--conf-file=${configuration}`;

const settings = '/proc/sys/net';

/** Where the kernel has the setting. Error with words for people where it may not be changed. */
const set = (file: string, value: string): void => {
  const path = join(settings, file);
  if (!existsSync(path) || readFileSync(path, 'utf8').trim() === value) return;
  try {
    writeFileSync(path, value);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new Error(`"${path}" cannot be set to ${value} (${code}); let the daemon write there`, { cause: error });
  }
};

/** Of one device: what a guest sends there changes nothing of this host. */
const setUp = (tap: string): void => {
  set(`ipv4/conf/${tap}/rp_filter`, '1');
  set(`ipv4/conf/${tap}/accept_redirects`, '0');
  set(`ipv4/conf/${tap}/send_redirects`, '0');
  set(`ipv4/conf/${tap}/arp_announce`, '2');
  set(`ipv6/conf/${tap}/accept_ra`, '0');
  set(`ipv6/conf/${tap}/autoconf`, '0');
  set(`ipv6/conf/${tap}/accept_dad`, '0');
  set(`ipv6/conf/${tap}/accept_redirects`, '0');
};

/** This host is a router. One that heard of its own routes by router advertisement goes on to. */
const forward = (prefix: string): void => {
  set('ipv4/ip_forward', '1');
  const all = 'ipv6/conf/all/forwarding';
  if (!existsSync(join(settings, all))) return;
  for (const device of readdirSync(join(settings, 'ipv6/conf'))) {
    if (['all', 'default', 'lo'].includes(device) || device.startsWith(`${prefix}-`)) continue;
    const file = `ipv6/conf/${device}/accept_ra`;
    if (readFileSync(join(settings, file), 'utf8').trim() === '1') set(file, '2');
  }
  set(all, '1');
};
