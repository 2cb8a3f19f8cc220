/** `porthole account`, `porthole region`, `porthole host`: who may use the cluster, and what it is made of. */
import { readFileSync } from 'node:fs';
import { type Command, InvalidArgumentError } from 'commander';
import type { ResultOf } from '../../cluster/index.ts';
import { vmTypes } from '../../records/index.ts';
import { ago, moment, size } from '../amounts.ts';
import { apiCommand, collect, collected, examples, group, parseLabel, printJson, type Shell } from '../command.ts';
import { finished } from '../operation.ts';
import { facts, table } from '../table.ts';
import { paintFor } from '../terminal.ts';
import { told, waitOption } from './create.ts';
import { hostDaemonCommand } from './host-daemon.ts';
import { joinKeyCommand } from './join-key.ts';

interface JsonFlags {
  readonly json?: true;
}

type Account = ResultOf<'getAccount'>;
type Region = ResultOf<'getRegion'>;
type Prefixes = ResultOf<'getPrefixes'>;
type HostRecord = ResultOf<'showHost'>['host'];

interface Quota {
  readonly region: string;
  readonly type: string;
  readonly limit: number;
}

export const clusterCommands = (program: Command, shell: Shell): void => {
  accountCommands(program, shell);
  regionCommands(program, shell);
  hostRecordCommands(program, shell);
};

/** An answer for programs, or in words. */
const printed = ({ terminal }: Shell, { json }: JsonFlags, value: unknown, words: () => string): void => {
  if (json === true) printJson(terminal, value);
  else terminal.out(words());
};

const accountCommands = (program: Command, shell: Shell): void => {
  const account = group(program, 'account', 'who owns virtual machines and images, and how many they may have');
  const shown = (one: Account) => () =>
    facts(
      [
        ['name', one.name],
        ['state', one.state === 'leaving' ? 'being deleted' : one.state],
        ['quotas', quotaWords(one)],
        ['created', moment(Date.parse(one.createdAt), shell.terminal.wallMs())],
      ],
      paintFor(shell.terminal, 'out').dim,
    );

  apiCommand(account, 'create', 'create an account')
    .argument('<account>', 'its name: a-z, 0-9 and "-"')
    .option('--quota <quota>', 'REGION/TYPE=COUNT (any number of times); default: no limit', collected(parseQuota))
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      examples(
        'porthole account create team --quota eu/small=20',
        'porthole key create "admin of team" --account team --role admin --out team.key',
      ),
    )
    .action(async (name: string, flags: JsonFlags & { readonly quota?: readonly Quota[] }) => {
      const made = await shell.api().call('createAccount', { body: { name, quotas: quotasOf(flags.quota) } });
      if (flags.json === true) printJson(shell.terminal, made);
    });

  apiCommand(account, 'ls', 'list accounts')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole account ls'))
    .action(async (flags: JsonFlags) => {
      const { accounts } = await shell.api().call('listAccounts');
      const nowMs = shell.terminal.wallMs();
      const columns = [
        { title: 'NAME', cell: ({ name }: Account) => name },
        { title: 'STATE', cell: ({ state }: Account) => (state === 'leaving' ? 'being deleted' : state) },
        { title: 'QUOTAS', cell: (one: Account) => quotaWords(one).replaceAll('\n', ', ') },
        { title: 'AGE', cell: ({ createdAt }: Account) => ago(Date.parse(createdAt), nowMs) },
      ];
      printed(shell, flags, accounts, () => table(columns, accounts, paintFor(shell.terminal, 'out').dim));
    });

  apiCommand(account, 'show', 'show an account')
    .argument('<account>', 'its name')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole account show team'))
    .action(async (name: string, flags: JsonFlags) => {
      const found = await shell.api().call('getAccount', { params: { account: name } });
      printed(shell, flags, found, shown(found));
    });

  apiCommand(account, 'quota', 'set the quotas of an account, in place of those it has')
    .argument('<account>', 'its name')
    .argument('[quota...]', 'REGION/TYPE=COUNT; what is not named has no limit', collected(parseQuota))
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole account quota team eu/small=20 eu/large=2'))
    .action(async (name: string, quotas: readonly Quota[] | undefined, flags: JsonFlags) => {
      const params = { account: name };
      const changed = await shell.api().call('setQuotas', { params, body: quotasOf(quotas) });
      printed(shell, flags, changed, shown(changed));
    });

  apiCommand(account, 'rm', 'delete accounts that own nothing, and their keys')
    .argument('<account...>', 'their names')
    .addHelpText('after', examples('porthole account rm team'))
    .action(async (names: readonly string[]) => {
      const api = shell.api();
      for (const name of names) await api.call('deleteAccount', { params: { account: name } });
    });
};

const quotaWords = ({ quotas }: Account): string =>
  Object.entries(quotas)
    .flatMap(([region, limits]) => Object.entries(limits).map(([type, limit]) => `${region}/${type}=${limit}`))
    .join('\n') || 'none';

const quotaTypes: ReadonlySet<string> = new Set([...Object.keys(vmTypes), 'attached']);

/** `REGION/TYPE=COUNT`. */
const parseQuota = (text: string): Quota => {
  const [, region, type, limit] = /^([^/=]+)\/([a-z]+)=(\d{1,7})$/.exec(text) ?? [];
  if (region !== undefined && quotaTypes.has(type!)) return { region, type: type!, limit: Number(limit) };
  throw new InvalidArgumentError(`Write it as REGION/TYPE=COUNT; types are ${[...quotaTypes].join(', ')}.`);
};

const quotasOf = (quotas: readonly Quota[] = []): Record<string, Record<string, number>> => {
  const of: Record<string, Record<string, number>> = {};
  for (const { region, type, limit } of quotas) of[region] = { ...of[region], [type]: limit };
  return of;
};

const regionCommands = (program: Command, shell: Shell): void => {
  const region = group(program, 'region', 'where the cluster has hosts');

  apiCommand(region, 'ls', 'list regions')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole region ls'))
    .action(async (flags: JsonFlags) => {
      const { regions } = await shell.api().call('listRegions');
      const columns = [
        { title: 'NAME', cell: ({ name, isHere }: Region) => (isHere ? `${name} (this one)` : name) },
        { title: 'ADDRESSES', cell: ({ addresses }: Region) => addresses.join(',') || '-' },
      ];
      printed(shell, flags, regions, () => table(columns, regions, paintFor(shell.terminal, 'out').dim));
    });

  apiCommand(region, 'set', 'say where the managers of a region are reached')
    .argument('<region>', 'its name: a-z, 0-9 and "-"')
    .argument('<url...>', 'https://HOST:PORT of its managers')
    .option('--authority <file>', 'who signs their certificates, as PEM; default: whom the machine trusts')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole region set eu https://eu-1.example:8443 https://eu-2.example:8443'))
    .action(async (name: string, addresses: string[], flags: JsonFlags & { readonly authority?: string }) => {
      const { authority } = flags;
      const body = { addresses, ...(authority !== undefined && { authority: readFileSync(authority, 'utf8') }) };
      const set = await shell.api().call('setRegion', { params: { region: name }, body });
      if (flags.json === true) printJson(shell.terminal, set);
    });

  const prefixesShown = (prefixes: Prefixes) => (): string =>
    facts(
      [
        ['IPv4', prefixes.ipv4.join('\n') || 'none'],
        ['IPv6', prefixes.ipv6.join('\n') || 'none'],
        ['UDP ports', prefixes.udp ? `${prefixes.udp.address}:${prefixes.udp.first}-${prefixes.udp.last}` : 'none'],
        ['resolvers', prefixes.dns.join('\n') || 'none'],
      ],
      paintFor(shell.terminal, 'out').dim,
    );

  apiCommand(region, 'network', 'show, or set, which addresses a region gives to virtual machines')
    .option('--ipv4 <prefix>', 'as 10.20.0.0/16 (any number of times)', collect)
    .option('--ipv6 <prefix>', 'as fd00:20::/64 (any number of times)', collect)
    .option('--udp <ports>', 'ADDRESS:FIRST-LAST: UDP ports of an address that all share', parsePorts)
    .option('--dns <address>', 'a resolver that they are told of (any number of times)', collect)
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
With any of these options, all are set: what is not named, there is none of.
Machines keep what they were given.
${examples('porthole region network --ipv4 10.20.0.0/16 --ipv6 fd00:20::/64', 'porthole region network --region eu')}`,
    )
    .action(async ({ json, ...wish }: JsonFlags & Partial<Prefixes>) => {
      const api = shell.api();
      const isSet = Object.values(wish).some((value) => value !== undefined);
      const prefixes = await (isSet ? api.call('setPrefixes', { body: wish }) : api.call('getPrefixes'));
      printed(shell, json === true ? { json } : {}, prefixes, prefixesShown(prefixes));
    });

  apiCommand(region, 'rm', 'forget regions that have no virtual machines and no images')
    .argument('<region...>', 'their names')
    .option('--lost', 'with the machines and images that they had: of regions whose stores are gone for ever')
    .addHelpText('after', examples('porthole region rm eu'))
    .action(async (names: readonly string[], { lost }: { readonly lost?: true }) => {
      const api = shell.api();
      const query = lost && { query: { lost: 'true' } as const };
      for (const name of names) await api.call('removeRegion', { params: { region: name }, ...query });
    });
};

/** `ADDRESS:FIRST-LAST`. */
const parsePorts = (text: string): NonNullable<Prefixes['udp']> => {
  const [, address, first, last] = /^([\d.]+):(\d{1,5})-(\d{1,5})$/.exec(text) ?? [];
  if (address !== undefined) return { address, first: Number(first), last: Number(last) };
  throw new InvalidArgumentError('Write it as ADDRESS:FIRST-LAST, such as 192.0.2.1:20000-29999.');
};

const hostRecordCommands = (program: Command, shell: Shell): void => {
  const host = hostDaemonCommand(program, shell);
  joinKeyCommand(host, shell);

  apiCommand(host, 'ls', 'list hosts of the region')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole host ls'))
    .action(async (flags: JsonFlags) => {
      const { hosts } = await shell.api().call('listHosts');
      const columns = [
        { title: 'NAME', cell: ({ name }: HostRecord) => name },
        { title: 'STATUS', cell: statusWords },
        { title: 'VMS', cell: ({ taken }: HostRecord) => String(taken.vms) },
        { title: 'MEMORY', cell: (one: HostRecord) => takenOf(one, 'memoryMiB', (mib) => size(mib * 1024 * 1024)) },
        { title: 'VCPUS', cell: (one: HostRecord) => takenOf(one, 'vcpus', String) },
        { title: 'DISK', cell: (one: HostRecord) => takenOf(one, 'diskBytes', size) },
        { title: 'LABELS', cell: ({ labels }: HostRecord) => labelWords(labels).replaceAll('\n', ',') || '-' },
      ];
      printed(shell, flags, hosts, () => table(columns, hosts, paintFor(shell.terminal, 'out').dim));
    });

  apiCommand(host, 'show', 'show a host and its virtual machines')
    .argument('<host>', 'its name')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole host show local'))
    .action(async (name: string, flags: JsonFlags) => {
      const { host: found, vms } = await shell.api().call('showHost', { params: { host: name } });
      const words = (): string =>
        facts(
          [
            ['name', found.name],
            ['status', statusWords(found)],
            ['memory', takenOf(found, 'memoryMiB', (mib) => size(mib * 1024 * 1024))],
            ['vCPUs', takenOf(found, 'vcpus', String)],
            ['disk', takenOf(found, 'diskBytes', size)],
            ['labels', labelWords(found.labels)],
            ['added', moment(Date.parse(found.addedAt), shell.terminal.wallMs())],
            ['machines', vms.join('\n')],
          ],
          paintFor(shell.terminal, 'out').dim,
        );
      printed(shell, flags, { host: found, vms }, words);
    });

  const change = (
    name: string,
    description: string,
    body: { readonly cordoned?: boolean; readonly draining?: boolean },
  ): void => {
    apiCommand(host, name, description)
      .argument('<host...>', 'their names')
      .addHelpText('after', examples(`porthole host ${name} h1`))
      .action(async (names: readonly string[]) => {
        const api = shell.api();
        for (const one of names) await api.call('changeHost', { params: { host: one }, body });
      });
  };
  change('cordon', 'place no more virtual machines on hosts', { cordoned: true });
  change('uncordon', 'place virtual machines on hosts again', { cordoned: false, draining: false });

  apiCommand(host, 'drain', 'have the virtual machines of hosts go to others')
    .argument('<host...>', 'their names')
    .addOption(waitOption())
    .addHelpText(
      'after',
      `
Hosts are cordoned. Machines that are stateless or have a network disk are
stopped, and started on other hosts; the others stay, and are listed.
"porthole host uncordon" calls it off.
${examples('porthole host drain h1')}`,
    )
    .action(async (names: readonly string[], { wait }: { readonly wait: boolean }) => {
      const api = shell.api();
      for (const name of names) {
        const { operation } = await api.call('drainHost', { params: { host: name } });
        if (!wait) {
          told(shell.terminal, operation);
          continue;
        }
        const { step } = await finished(api, operation, shell.terminal);
        if (step !== '') shell.terminal.err(`${name}: ${step}\n`);
      }
    });

  apiCommand(host, 'label', 'set the labels of a host, in place of those it has')
    .argument('<host>', 'its name')
    .argument('[label...]', 'KEY=VALUE', collected(parseLabel))
    .addHelpText('after', examples('porthole host label h1 disk=ssd rack=7'))
    .action(async (name: string, labels: readonly (readonly [string, string])[] = []) => {
      await shell.api().call('changeHost', { params: { host: name }, body: { labels: Object.fromEntries(labels) } });
    });

  apiCommand(host, 'rm', 'remove hosts that have no virtual machines')
    .argument('<host...>', 'their names')
    .addHelpText('after', examples('porthole host rm h1'))
    .action(async (names: readonly string[]) => {
      const api = shell.api();
      for (const name of names) await api.call('removeHost', { params: { host: name } });
    });
};

const statusWords = ({ isConnected, draining, cordoned }: HostRecord): string =>
  [isConnected ? 'connected' : 'away', ...(draining ? ['draining'] : cordoned ? ['cordoned'] : [])].join(', ');

const takenOf = (
  { taken, capacity }: HostRecord,
  of: 'memoryMiB' | 'vcpus' | 'diskBytes',
  words: (amount: number) => string,
): string => (capacity === undefined ? words(taken[of]) : `${words(taken[of])} of ${words(capacity[of])}`);

const labelWords = (labels: Readonly<Record<string, string>>): string =>
  Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .join('\n');
