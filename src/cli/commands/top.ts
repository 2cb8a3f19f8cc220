/** `porthole vm top`: how a VM is doing, as its agent says, and as its host sees it. */
import type { Command } from 'commander';
import { ago, size } from '../amounts.ts';
import { apiCommand, examples, parseCount, printJson, type Shell } from '../command.ts';
import { withVm } from '../near.ts';
import type { Top } from '../shapes.ts';
import { facts, table } from '../table.ts';
import { type Colours, paintFor } from '../terminal.ts';

interface TopFlags {
  readonly limit: number;
  readonly json?: true;
}

const shownProcesses = 20;

export const topCommand = (vm: Command, shell: Shell): void => {
  apiCommand(vm, 'top', 'show how a virtual machine is doing, and its processes')
    .argument('<vm>', 'its name')
    .option('-n, --limit <count>', 'so many processes', parseCount(0, 1000), shownProcesses)
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
What is inside comes from the agent in the guest: whoever is root there may
write what it likes. Without an agent there is what the host sees.
${examples('porthole vm top web-1')}`,
    )
    .action(async (name: string, flags: TopFlags) => {
      const { terminal } = shell;
      const api = shell.api();
      const top = await withVm(api, name, () => api.call('getTop', { params: { name } }));
      if (flags.json === true) printJson(terminal, top);
      else terminal.out(words(top, flags.limit, paintFor(terminal, 'out')));
    });
};

const words = (top: Top, limit: number, paint: Colours): string => {
  const { inside, host } = top;
  const nowMs = Date.parse(host.at);
  const parts = [facts(hostFacts(host.values), paint.dim)];
  if (inside.status === undefined) parts.push('inside: no agent has said anything\n');
  else parts.push(facts(insideFacts(inside.status, inside.statusAgeMs ?? 0, nowMs), paint.dim));
  for (const problem of inside.problems) parts.push(`${paint.warning('not shown:')} ${problem}\n`);
  if (inside.processes !== undefined && limit > 0) {
    parts.push(`\n${processTable(inside.processes.slice(0, limit), paint)}`);
    const more = inside.processes.length - limit;
    if (more > 0) parts.push(`and ${more} more\n`);
  }
  return parts.join('');
};

const hostFacts = (values: Top['host']['values']): [string, string | undefined][] => {
  const value = (name: string, shown: (value: number) => string): string | undefined =>
    values[name] === undefined ? undefined : shown(values[name]);
  return [
    ['CPU time', value('cpu_seconds_total', (seconds) => `${seconds.toFixed(0)} s since the boot, by the host`)],
    ['memory', value('memory_resident_bytes', (bytes) => `${size(bytes)} resident, by the host`)],
    ['requests', value('requests_total', String)],
    ['denials', value('denials_total', String)],
  ];
};

const insideFacts = (
  { load, memory, swap, disks, uptimeSeconds, agent }: NonNullable<Top['inside']['status']>,
  ageMs: number,
  nowMs: number,
): [string, string | undefined][] => [
  ['inside', `as its agent (${agent.version}) said ${ago(nowMs - ageMs, nowMs)} ago`],
  ['up for', ago(nowMs - uptimeSeconds * 1000, nowMs)],
  ['load', load.map((value) => value.toFixed(2)).join(' ')],
  ['memory', `${size(memory.availableBytes)} of ${size(memory.totalBytes)} available`],
  ['swap', swap.totalBytes === 0 ? undefined : `${size(swap.freeBytes)} of ${size(swap.totalBytes)} free`],
  ['disks', disks.map((disk) => `${disk.mount}: ${size(disk.freeBytes)} of ${size(disk.totalBytes)} free`).join('\n')],
];

type Process = NonNullable<Top['inside']['processes']>[number];

const processTable = (processes: readonly Process[], paint: Colours): string =>
  table(
    [
      { title: 'PID', cell: ({ pid }: Process) => `${pid}`, align: 'right' },
      { title: 'USER', cell: ({ user }: Process) => user },
      { title: 'CPU', cell: ({ cpuPercent }: Process) => `${cpuPercent.toFixed(1)}%`, align: 'right' },
      { title: 'MEMORY', cell: ({ memoryBytes }: Process) => size(memoryBytes), align: 'right' },
      { title: 'STATE', cell: ({ state }: Process) => state },
      { title: 'COMMAND', cell: ({ command }: Process) => command },
    ],
    processes,
    paint.dim,
  );
