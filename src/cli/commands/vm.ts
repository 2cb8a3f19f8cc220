/** `porthole vm`: machines that are made, started, stopped and deleted here. */
import { type Command, Option } from 'commander';
import { ownHost, vmStatuses } from '../../records/index.ts';
import { ago, moment, size } from '../amounts.ts';
import type { Api } from '../api.ts';
import { apiCommand, collect, examples, group, parseCount, printJson, type Shell } from '../command.ts';
import { exitCodes, toExitCode } from '../exit-code.ts';
import { withVm } from '../near.ts';
import { finished } from '../operation.ts';
import { Interrupted, promptYes } from '../prompt.ts';
import { report } from '../report.ts';
import type { Operation, Vm, VmAndOperation } from '../shapes.ts';
import { facts, table } from '../table.ts';
import { type Colours, paintFor } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';
import { attachCommand } from './attach.ts';
import { createCommand, told, waitOption } from './create.ts';
import { topCommand } from './top.ts';

interface ListFlags {
  readonly status?: Vm['status'];
  readonly type?: string;
  readonly label?: readonly string[];
  readonly prefix?: string;
  readonly quiet?: true;
  readonly count?: true;
  readonly json?: true;
}

interface RequestFlags {
  readonly selector?: readonly string[];
  readonly prefix?: string;
  readonly all?: true;
  readonly wait: boolean;
  readonly json?: true;
  readonly grace?: number;
  readonly yes?: true;
}

/** @returns the group, for what others add to it */
export const vmCommands = (program: Command, shell: Shell): Command => {
  const { terminal } = shell;
  const vm = group(program, 'vm', 'create, start, stop and look at virtual machines');
  createCommand(vm, shell);

  apiCommand(vm, 'ls', 'list virtual machines')
    .addOption(new Option('--status <status>', 'those in this status').choices(vmStatuses))
    .option('--type <type>', 'those of this type')
    .option('--label <label>', 'those with KEY, or with KEY=VALUE (any number of times)', collect)
    .option('--prefix <text>', 'those whose names begin so')
    .option('-q, --quiet', 'print names only')
    .option('--count', 'how many there are, by region, type and status; without any other option')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole vm ls --status running --label role=web'))
    .action((flags: ListFlags) => list(shell, flags));

  apiCommand(vm, 'show', 'show all that is known of a virtual machine')
    .argument('<vm>', 'its name')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole vm show web-1'))
    .action(async (name: string, flags: { readonly json?: true }) => {
      const api = shell.api();
      const found = await withVm(api, name, () => api.call('getVm', { params: { name } }));
      if (flags.json === true) printJson(terminal, found);
      else terminal.out(shown(found, terminal.wallMs(), paintFor(terminal, 'out')));
    });

  const grace = (): Option =>
    new Option('--grace <seconds>', 'how long the guest has to stop by itself; 0: end it now').argParser(
      parseCount(0, 3600),
    );
  request(vm, 'start', 'start virtual machines', shell).addHelpText('after', examples('porthole vm start web-1 web-2'));
  request(vm, 'stop', 'stop virtual machines', shell)
    .addOption(grace())
    .addHelpText('after', examples('porthole vm stop web-1 --grace 10', 'porthole vm stop --selector app=web'));
  request(vm, 'reboot', 'stop virtual machines and start them again', shell)
    .addOption(grace())
    .addHelpText('after', examples('porthole vm reboot web-1'));
  request(vm, 'rm', 'delete virtual machines, their disks and their metadata', shell)
    .option('-y, --yes', 'do not ask')
    .addHelpText('after', examples('porthole vm rm web-1'));
  apiCommand(vm, 'boot', 'tell of a new boot of a machine that others start, before it runs')
    .argument('<vm>', 'its name')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole vm boot db-1'))
    .action(async (name: string, flags: { readonly json?: true }) => {
      const api = shell.api();
      const boot = await withVm(api, name, () => api.call('tellBoot', { params: { name } }));
      if (flags.json === true) printJson(terminal, boot);
      else terminal.out(`boot ${boot.number} of ${name}: ${boot.bootId}\n`);
    });
  apiCommand(vm, 'renew', 'replace the processes that serve virtual machines, which go on')
    .argument('<vm...>', 'their names')
    .option('--json', 'print one JSON document: what serves them now')
    .addHelpText('after', examples('porthole vm renew web-1'))
    .action((names: readonly string[], flags: { readonly json?: true }) => renew(shell, names, flags));
  topCommand(vm, shell);
  attachCommand(vm, shell);
  return vm;
};

const counted = async ({ api: connect, terminal }: Shell, { json, ...others }: ListFlags): Promise<void> => {
  if (Object.keys(others).length > 1) throw new UsageError('--count counts all of them: leave out the other options');
  const { counts } = await connect().call('countVms');
  if (json === true) {
    printJson(terminal, counts);
    return;
  }
  type Count = (typeof counts)[number];
  const columns = [
    { title: 'REGION', cell: ({ region }: Count) => region },
    { title: 'TYPE', cell: ({ type }: Count) => type },
    { title: 'STATUS', cell: ({ status }: Count) => status },
    { title: 'COUNT', cell: ({ count }: Count) => String(count) },
  ];
  terminal.out(table(columns, counts, paintFor(terminal, 'out').dim));
};

const list = async (shell: Shell, flags: ListFlags): Promise<void> => {
  if (flags.count === true) return counted(shell, flags);
  const { apis, terminal } = shell;
  const { status, type, label, prefix } = flags;
  const vms: Vm[] = [];
  const query = { status, type, prefix, limit: 500, ...(label !== undefined && { label: [...label] }) };
  for (const api of apis()) for await (const page of api.pages('listVms', query)) vms.push(...page.vms);
  if (flags.json === true) {
    printJson(terminal, vms);
    return;
  }
  if (flags.quiet === true) {
    terminal.out(vms.map(({ name }) => `${name}\n`).join(''));
    return;
  }
  if (vms.length === 0) {
    const isFiltered = [status, type, label, prefix].some((filter) => filter !== undefined);
    terminal.err(
      isFiltered ? 'no virtual machine matches\n' : 'no virtual machines yet; "porthole vm create" makes one\n',
    );
    return;
  }
  const paint = paintFor(terminal, 'out');
  const nowMs = terminal.wallMs();
  const columns = [
    { title: 'NAME', cell: ({ name }: Vm) => name },
    {
      title: 'STATUS',
      cell: ({ status: text, device }: Vm) => (device?.outdated === true ? `${text} (outdated)` : text),
      paint: (text: string, { status: painted }: Vm) => statusPaint(painted, paint)(text),
    },
    { title: 'FOR', cell: ({ since }: Vm) => (since === undefined ? '' : ago(Date.parse(since), nowMs)) },
    { title: 'TYPE', cell: (one: Vm) => one.type },
    { title: 'IMAGE', cell: ({ image }: Vm) => (image === undefined ? '-' : `${image.name}:${image.version}`) },
    { title: 'ADDRESSES', cell: ({ addresses }: Vm) => addresses.join(',') || '-' },
    { title: 'AGE', cell: ({ createdAt }: Vm) => ago(Date.parse(createdAt), nowMs) },
  ];
  terminal.out(table(columns, vms, paint.dim));
};

const statusPaint = (status: string, paint: Colours): ((text: string) => string) => {
  if (status === 'running') return paint.good;
  if (status === 'failed' || status === 'lost' || status === 'compromised') return paint.error;
  return status === 'stopped' ? paint.dim : paint.warning;
};

const shown = (vm: Vm, nowMs: number, paint: Colours): string => {
  const { image, network, since } = vm;
  const forwards = (network['forwards'] ?? []) as readonly {
    readonly protocol: string;
    readonly hostAddress: string;
    readonly hostPort: number;
    readonly guestPort: number;
  }[];
  const address = (text: string): string => (text.includes(':') ? `[${text}]` : text);
  return facts(
    [
      ['name', vm.name],
      ['id', vm.id],
      ['status', statusPaint(vm.status, paint)(vm.status) + (vm.reason === '' ? '' : ` (${vm.reason})`)],
      ['since', since && moment(Date.parse(since), nowMs)],
      ['wanted', vm.desired === vm.status ? undefined : vm.desired],
      [
        'type',
        vm.kind === 'attached' ? 'attached: others start it' : `${vm.type} (${vm.vcpus} vCPU, ${vm.memoryMiB} MiB)`,
      ],
      ['image', image && `${image.name}:${image.version} (${image.digest})`],
      ['host', vm.host === ownHost ? undefined : vm.host],
      [
        'disk',
        vm.diskBytes === undefined ? undefined : `${size(vm.diskBytes)}${vm.disk === 'network' ? ', network' : ''}`,
      ],
      ['network', network.mode],
      [
        'ports',
        forwards
          .map((one) => `${address(one.hostAddress)}:${one.hostPort} -> ${one.guestPort}/${one.protocol}`)
          .join('\n'),
      ],
      ['addresses', vm.addresses.join('\n')],
      ['UDP ports', vm.udp && vm.udp.ports.map((port) => `${vm.udp!.address}:${port}`).join('\n')],
      [
        'labels',
        Object.entries(vm.labels)
          .map(([key, value]) => `${key}=${value}`)
          .join('\n'),
      ],
      ['restart', vm.restart],
      ['when its host is lost', vm.restartWhere === 'elsewhere' ? 'starts elsewhere' : undefined],
      ['stateless', vm.stateless ? 'yes' : undefined],
      ['host changes', vm.epoch > 1 ? String(vm.epoch - 1) : undefined],
      ['9P', [vm.ninep && 'on hvc1', vm.vsock && 'on vsock port 564'].filter(Boolean).join('\n')],
      ['vsock', vm.vsock ? 'to this host' : undefined],
      ['metadata server', vm.metadataServer?.addresses.join('\n')],
      ['boot token', vm.metadataServer?.token && tokenWords(vm.metadataServer.token, nowMs)],
      ['domain', vm.libvirtDomain],
      [
        'device',
        vm.device && `${vm.device.version}${vm.device.outdated ? ' (outdated: "porthole vm renew" replaces it)' : ''}`,
      ],
      ['boot', vm.bootId === undefined ? undefined : `${vm.bootId} (number ${vm.bootNumber})`],
      ['created', moment(Date.parse(vm.createdAt), nowMs)],
    ],
    paint.dim,
  );
};

const tokenWords = (
  { state, claimedAt, usedAt }: NonNullable<NonNullable<Vm['metadataServer']>['token']>,
  nowMs: number,
): string => {
  const at = (time: string | undefined): string => (time === undefined ? '' : moment(Date.parse(time), nowMs));
  switch (state) {
    case 'unclaimed':
      return 'nobody has asked for it';
    case 'claimed':
      return `given out, not used; claimed ${at(claimedAt)}`;
    case 'used':
      return `in use; claimed ${at(claimedAt)}, first used ${at(usedAt)}`;
    case 'returned':
      return `handed back; claimed ${at(claimedAt)}`;
    case 'compromised':
      return `compromised: another asked before its first use; claimed ${at(claimedAt)}`;
  }
};

type Verb = 'start' | 'stop' | 'reboot' | 'rm';

const request = (vm: Command, verb: Verb, description: string, shell: Shell): Command =>
  apiCommand(vm, verb, description)
    .argument('[vm...]', 'their names')
    .option('--selector <label>', 'all that have the label KEY, or KEY=VALUE (any number of times)', collect)
    .option('--prefix <text>', 'all whose names begin so')
    .option('--all', 'all there are')
    .addOption(waitOption())
    .option('--json', 'print one JSON document: their operations')
    .action((names: readonly string[], flags: RequestFlags) =>
      isSelection(flags) ? requestSelected(shell, verb, names, flags) : requestAll(shell, verb, names, flags),
    );

const isSelection = ({ selector, prefix, all }: RequestFlags): boolean =>
  selector !== undefined || prefix !== undefined || all === true;

const actions = { start: 'start', stop: 'stop', reboot: 'reboot', rm: 'delete' } as const;

/** One operation for all of them. */
const requestSelected = async (
  shell: Shell,
  verb: Verb,
  names: readonly string[],
  flags: RequestFlags,
): Promise<void> => {
  const { terminal } = shell;
  const { selector: labels = [], prefix, all, grace } = flags;
  if (names.length > 0) throw new UsageError('give names, or --selector, --prefix or --all, not both');
  const words = [...labels, ...(prefix === undefined ? [] : [`${prefix}*`])].join(', ');
  if (verb === 'rm' && flags.yes !== true)
    await confirmed(
      shell,
      `all virtual machines${words === '' ? '' : ` that match ${words}`}, with disks and metadata`,
    );
  const selector = { labels: [...labels], ...(prefix !== undefined && { prefix }), ...(all && { all }) };
  const body = { action: actions[verb], selector, ...(grace !== undefined && { graceSeconds: grace }) };
  const asked = [];
  for (const api of shell.apis()) asked.push({ api, ...(await api.call('actOnVms', { body })) });
  const ended: Operation[] = [];
  for (const { api, operation } of asked) {
    ended.push(flags.wait ? await finished(api, operation, terminal) : operation);
    if (!flags.wait && flags.json !== true) told(terminal, operation);
  }
  if (flags.json === true) printJson(terminal, ended);
  else if (flags.wait) terminal.err(`${ended.reduce((sum, { total = 0 }) => sum + total, 0)} virtual machines\n`);
};

/** One after the other, so that one guest waits at a time. */
const renew = async (shell: Shell, names: readonly string[], { json }: { readonly json?: true }): Promise<void> => {
  const api = shell.api();
  const renewed: { readonly vm: string; readonly version: string; readonly outdated: boolean }[] = [];
  for (const name of names)
    try {
      renewed.push({ vm: name, ...(await withVm(api, name, () => api.call('renewDevice', { params: { name } }))) });
    } catch (error) {
      failedOne(shell, names, error);
    }
  if (json === true) printJson(shell.terminal, renewed);
};

/** Of several, one that fails keeps no other from it. */
const failedOne = ({ terminal, setExitCode }: Shell, names: readonly string[], error: unknown): void => {
  if (error instanceof Interrupted || terminal.interrupted.aborted || names.length === 1) throw error;
  report(error, terminal);
  setExitCode(Math.max(exitCodes.failed, toExitCode(error)));
};

/** All are asked for first and waited for then. */
const requestAll = async (shell: Shell, verb: Verb, names: readonly string[], flags: RequestFlags): Promise<void> => {
  const { terminal } = shell;
  if (names.length === 0) throw new UsageError('say which: names, --selector, --prefix or --all');
  if (verb === 'rm' && flags.yes !== true) await confirmed(shell, wordsOfNames(names));
  const api = shell.api();
  const failed = (error: unknown): void => failedOne(shell, names, error);
  const begun: Operation[] = [];
  for (const name of names) {
    try {
      begun.push((await withVm(api, name, () => ask(api, verb, name, flags))).operation);
    } catch (error) {
      failed(error);
    }
  }
  const operations: Operation[] = [];
  for (const operation of begun) {
    try {
      operations.push(flags.wait ? await finished(api, operation, terminal) : operation);
      if (!flags.wait && flags.json !== true) told(terminal, operation);
    } catch (error) {
      failed(error);
    }
  }
  if (flags.json === true) printJson(terminal, operations);
};

const ask = (api: Api, verb: Verb, name: string, { grace }: RequestFlags): Promise<VmAndOperation> => {
  const params = { name };
  const body = grace === undefined ? {} : { body: { graceSeconds: grace } };
  switch (verb) {
    case 'start':
      return api.call('startVm', { params });
    case 'stop':
      return api.call('stopVm', { params, ...body });
    case 'reboot':
      return api.call('rebootVm', { params, ...body });
    case 'rm':
      return api.call('deleteVm', { params });
  }
};

const wordsOfNames = (names: readonly string[]): string =>
  names.length === 1 ? `"${names[0]}", its disk and its metadata` : `${names.join(', ')}, with disks and metadata`;

const confirmed = async ({ terminal }: Shell, what: string): Promise<void> => {
  if (!terminal.input.isTerminal)
    throw new UsageError('deleting cannot be undone: add --yes, as there is nobody to ask');
  if (!(await promptYes(terminal, `delete ${what}?`))) throw new Interrupted();
};
