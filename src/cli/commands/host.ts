/** `porthole status` and `porthole operation`: the host, and what it is doing. */
import { isDeepStrictEqual } from 'node:util';
import type { Command } from 'commander';
import { printable } from '../../wire/index.ts';
import { ago, moment, size } from '../amounts.ts';
import { apiCommand, examples, group, printJson, type Shell } from '../command.ts';
import { finished, isFinished, subject } from '../operation.ts';
import type { HostStatus, Operation, Store } from '../shapes.ts';
import { facts, table } from '../table.ts';
import { type Colours, paintFor } from '../terminal.ts';

interface JsonFlags {
  readonly json?: true;
}

interface ShowFlags extends JsonFlags {
  readonly wait?: true;
}

interface ListFlags extends JsonFlags {
  readonly all?: true;
}

export const hostCommands = (program: Command, shell: Shell): void => {
  apiCommand(program, 'status', 'say how the host is')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole status'))
    .action((flags: JsonFlags) => status(shell, flags));

  const operation = group(program, 'operation', 'look at long work, and cancel it');
  apiCommand(operation, 'ls', 'list operations, those that go on')
    .option('-a, --all', 'those that have finished too, for a day')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole operation ls --all'))
    .action((flags: ListFlags) => list(shell, flags));

  apiCommand(operation, 'show', 'show an operation')
    .argument('<operation>', 'its id')
    .option('--wait', 'wait until it has finished, and fail when it failed')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole operation show op-0123456789abcdef012345 --wait'))
    .action((id: string, flags: ShowFlags) => show(shell, id, flags));

  apiCommand(operation, 'cancel', 'cancel an operation')
    .argument('<operation>', 'its id')
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole operation cancel op-0123456789abcdef012345'))
    .action(async (id: string, flags: JsonFlags) => {
      const operation = await shell.api().call('cancelOperation', { params: { id } });
      if (flags.json === true) printJson(shell.terminal, operation);
    });
};

const status = async ({ api: connect, terminal }: Shell, flags: JsonFlags): Promise<void> => {
  const api = connect();
  const host = await api.call('getHost');
  const { region, global } = host.stores;
  // The index is in the global store: without it this would wait, and fail.
  const counts = global.reachable ? (await api.call('countVms')).counts : undefined;
  if (flags.json === true) {
    printJson(terminal, { ...host, counts });
    return;
  }
  const paint = paintFor(terminal, 'out');
  const byStatus = new Map<string, number>();
  for (const one of counts ?? []) byStatus.set(one.status, (byStatus.get(one.status) ?? 0) + one.count);
  const outdated = host.vms
    .filter((vm) => vm.outdated)
    .map(({ name, deviceVersion: version }) => ({ name, version: version ?? '' }));
  const keeper = host.keeper.outdated ? [{ name: 'the keeper', version: host.keeper.version }] : [];
  terminal.out(
    facts(
      [
        host.hosts === undefined ? ['host', host.name] : ['manager of', `region ${host.name}`],
        ['hosts', connectedHosts(host)],
        ['version', host.version],
        ['running', `since ${moment(Date.parse(host.startedAt), terminal.wallMs())}`],
        ...(host.hosts === 0 ? [] : machineFacts(host)),
        ...(isDeepStrictEqual(region, global)
          ? [['store', storeText(region)] as const]
          : [['region store', storeText(region)] as const, ['global store', storeText(global)] as const]),
        ['machines', counts && ([...byStatus].map(([name, count]) => `${count} ${name}`).join(', ') || 'none')],
        ['replicas', host.vms.map((vm) => `${vm.name}: ${vm.replicas}`).join(', ')],
        ['outdated', [...outdated, ...keeper].map(({ name, version }) => `${name} (${version})`).join(', ')],
      ],
      paint.dim,
    ),
  );
  for (const warning of host.warnings) terminal.out(`${paint.warning('warning')}: ${printable(warning)}\n`);
};

const connectedHosts = ({ hosts }: HostStatus): string | undefined => {
  if (hosts === undefined) return undefined;
  return hosts === 0 ? 'none connected' : `${hosts} connected; what follows is their sum`;
};

const machineFacts = (host: HostStatus): (readonly [name: string, value: string])[] => [
  ['accelerator', host.accelerator === 'kvm' ? 'kvm' : 'tcg (no usable /dev/kvm: guests are slow)'],
  ['processors', String(host.cpus)],
  ['memory', `${size(host.freeMemoryBytes)} free of ${size(host.memoryBytes)}`],
  ['disk', `${size(host.freeDiskBytes)} free of ${size(host.diskBytes)}`],
];

const storeText = ({ engine, endpoints = [], prefix, reachable }: Store): string =>
  `${engine}${engine === 'etcd' ? ` at ${endpoints.join(', ')}, below "${prefix}/"` : ''}${reachable ? '' : ': does not answer'}`;

const list = async ({ api: connect, terminal }: Shell, flags: ListFlags): Promise<void> => {
  const found: Operation[] = [];
  for await (const { operations } of connect().pages('listOperations', { limit: 500 }))
    found.push(...operations.filter((operation) => flags.all === true || !isFinished(operation)));
  if (flags.json === true) {
    printJson(terminal, found);
    return;
  }
  if (found.length === 0) {
    terminal.err(flags.all === true ? 'no operations\n' : 'nothing goes on; --all lists what has finished\n');
    return;
  }
  const paint = paintFor(terminal, 'out');
  const nowMs = terminal.wallMs();
  const columns = [
    { title: 'ID', cell: ({ id }: Operation) => id },
    { title: 'KIND', cell: ({ kind }: Operation) => kind },
    { title: 'OF', cell: subject },
    {
      title: 'STATE',
      cell: ({ state }: Operation) => state,
      paint: (text: string) => statePaint(text, paint)(text),
    },
    { title: 'AGE', cell: ({ createdAt }: Operation) => ago(Date.parse(createdAt), nowMs) },
    { title: 'STEP', cell: (operation: Operation) => operation.error?.detail ?? operation.step },
  ];
  terminal.out(table(columns, found, paint.dim));
};

const statePaint = (state: string, paint: Colours): ((text: string) => string) => {
  if (state === 'succeeded') return paint.good;
  return state === 'failed' ? paint.error : paint.warning;
};

const show = async ({ api: connect, terminal }: Shell, id: string, flags: ShowFlags): Promise<void> => {
  const api = connect();
  const found = await api.call('getOperation', { params: { id } });
  const operation = flags.wait === true ? await finished(api, found, terminal) : found;
  if (flags.json === true) {
    printJson(terminal, operation);
    return;
  }
  const paint = paintFor(terminal, 'out');
  const nowMs = terminal.wallMs();
  const { done, total, error, finishedAt } = operation;
  terminal.out(
    facts(
      [
        ['id', operation.id],
        ['kind', operation.kind],
        ['of', subject(operation)],
        ['state', statePaint(operation.state, paint)(operation.state)],
        ['step', operation.step],
        [
          'progress',
          total === undefined || isFinished(operation) ? undefined : `${Math.floor((100 * done) / total)} %`,
        ],
        ['error', error && `${error.detail} (${error.code})`],
        ['begun', moment(Date.parse(operation.createdAt), nowMs)],
        ['finished', finishedAt && moment(Date.parse(finishedAt), nowMs)],
      ],
      paint.dim,
    ),
  );
};
