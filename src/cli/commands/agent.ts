/** `porthole agent`: the tree inside a guest, by way of its metadata server. */
import { statSync, writeFileSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { Agent, AgentError, type AgentEvent, identify, isMountedAt, parseServerAddress } from '../../agent/index.ts';
import { endMachine } from '../../sys/index.ts';
import { errnoName, printable } from '../../wire/index.ts';
import { command, parseCount, type Shell } from '../command.ts';
import type { Terminal } from '../terminal.ts';
import { UsageError } from '../usage-error.ts';

interface AgentFlags {
  readonly server?: string;
  readonly mount?: string;
  readonly ca?: string;
  readonly onTokenDenied: OnTokenDenied;
  readonly wait: number;
  readonly json?: true;
}

const onTokenDenied = ['poweroff', 'halt', 'report'] as const;
type OnTokenDenied = (typeof onTokenDenied)[number];

const LONGEST_WAIT_SECONDS = 3_600;

export const agentCommand = (program: Command, { terminal }: Shell): void => {
  const agent = command(program, 'agent', 'mount the tree inside a VM, by way of its metadata server')
    .option('--server <address>', 'the metadata server: unix:PATH, http://IP:PORT or https://IP:PORT')
    .option('--mount <directory>', 'where to mount: /run/metadata, say')
    .option('--ca <file>', 'the only authority to believe the server by, as PEM; for https')
    .addOption(
      new Option('--on-token-denied <what>', "what to do when somebody else has this boot's token")
        .choices(onTokenDenied)
        .default('report'),
    )
    .option(
      '--wait <seconds>',
      'let requests wait so long for a server that is away',
      parseCount(0, LONGEST_WAIT_SECONDS),
      0,
    )
    .option('--json', 'print events as JSON lines')
    .addHelpText(
      'after',
      `
It takes root. What everybody may read is answered in the machine; all else is
asked of the server at each open(2), in the name of who asks. While the server
is away, the first goes on and the second fails with EIO.

Examples:
  porthole agent --server unix:/run/porthole/web.imds --mount /run/metadata
  porthole agent --server http://169.254.169.254:80 --mount /run/metadata \\
    --on-token-denied poweroff
  porthole agent who 4711

Ctrl-C unmounts, and hands the token back.`,
    )
    .action((flags: AgentFlags) => runAgent(flags, terminal));
  command(agent, 'who', 'say what the agent would prove of a process')
    .argument('<pid>', 'the number of a process or thread')
    .addHelpText('after', '\nExample:\n  porthole agent who 4711')
    .action((pid: string) => who(pid, terminal));
};

const runAgent = async (flags: AgentFlags, terminal: Terminal): Promise<void> => {
  const { server, mount: mountPath, ca } = flags;
  if (server === undefined || mountPath === undefined)
    throw new UsageError('an agent needs a server and a directory: add --server ADDRESS and --mount DIRECTORY');
  if (!isDirectory(mountPath)) throw new UsageError(`"${mountPath}" is no directory; make it first`);
  const tell = (event: AgentEvent): void => {
    const { to, text } = inWords(event);
    if (flags.json === true) terminal.out(`${JSON.stringify(event)}\n`);
    else if (to === 'out') terminal.out(`${text}\n`);
    else terminal.err(`${text}\n`);
  };
  const agent = new Agent({
    server: addressOf(server, ca),
    mountPath,
    waitMs: flags.wait * 1000,
    environment: terminal.environment,
    onEvent: tell,
  });
  try {
    const leaving = new AbortController();
    terminal.onLeave(() => leaving.abort());
    await agent.run({ stop: terminal.interrupted, leave: leaving.signal });
  } catch (error) {
    if (error instanceof AgentError && error.code === 'TOKEN_DENIED') end(flags.onTokenDenied, error, terminal);
    throw error;
  }
};

/** Also one on which an agent that was killed has left its mount, which may wait for this one to answer. */
const isDirectory = (path: string): boolean => {
  try {
    return isMountedAt(path) || statSync(path).isDirectory();
  } catch {
    return false;
  }
};

const addressOf = (server: string, ca: string | undefined) => {
  try {
    return parseServerAddress(server, ca);
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
};

/** The server knows already: it is what refused. */
const end = (how: OnTokenDenied, { message }: AgentError, terminal: Terminal): void => {
  if (how === 'report') return;
  const words = `porthole agent: ${message}: this machine may be somebody else's. It ends now (${how}).\n`;
  terminal.err(words);
  try {
    writeFileSync('/dev/console', words, { flag: 'a' });
  } catch {
    // A machine without one.
  }
  const error = endMachine(how);
  terminal.err(`ending the machine failed: ${errnoName(-error)}\n`);
};

const inWords = (event: AgentEvent): { readonly to: 'out' | 'err'; readonly text: string } => {
  const out = (text: string) => ({ to: 'out', text }) as const;
  const err = (text: string) => ({ to: 'err', text }) as const;
  switch (event.event) {
    case 'waiting':
      return err(`no token yet: ${event.why}; trying again`);
    case 'mounted':
      return out(`${event.resumed ? 'goes on' : 'mounted'} on ${event.path}, revision ${event.revision}`);
    case 'connected':
      return out(`connected, revision ${event.revision}`);
    case 'cut-off':
      return err(`cut off: ${event.why}; what everybody may read goes on, all else fails`);
    case 'token-denied':
      return err(`TOKEN DENIED: ${event.why}`);
    case 'trouble':
      return err(event.what);
    case 'left':
      return out('ended; token and mount are left to the next agent');
    case 'stopped':
      return event.tokenReturned
        ? out('stopped')
        : err('stopped; the token could not be handed back: another agent of this boot will be refused');
  }
};

const who = (text: string, terminal: Terminal): void => {
  const pid = /^\d{1,10}$/.test(text) ? Number(text) : 0;
  const found = identify(pid);
  if (found === undefined) throw new Error(`there is no process ${text}, or it may not be looked at`);
  const rows = [
    ['uid', String(found.uid)],
    ['gid', String(found.gid)],
    ['groups', found.groups.join(' ') || 'none'],
    ['program', found.program ?? `not proved: ${found.programDoubt ?? ''}`],
    ['unit', found.unit ?? 'not proved: it is in no unit of the system'],
    ['started', `${found.startTime} clock ticks after the boot`],
  ];
  terminal.out(rows.map(([key, value]) => `${key!.padEnd(8)} ${printable(value!)}\n`).join(''));
};
