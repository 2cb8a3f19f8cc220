/** What `porthole-agent`, and `porthole agent`, do with their arguments: events in words, the end of the machine, who asks. */
import { writeFileSync } from 'node:fs';
import { endMachine } from '../sys/index.ts';
import { errnoName, printable } from '../wire/index.ts';
import { Agent, type AgentEvent } from './agent.ts';
import { AgentError } from './agent-error.ts';
import { parseServerAddress } from './server-address.ts';
import { identify } from './who.ts';

export const onTokenDenied = ['poweroff', 'halt', 'report'] as const;
export type OnTokenDenied = (typeof onTokenDenied)[number];
export const LONGEST_WAIT_SECONDS = 3_600;

export interface AgentArguments {
  readonly server?: string | undefined;
  readonly mount?: string | undefined;
  readonly ca?: string | undefined;
  readonly onTokenDenied: OnTokenDenied;
  readonly waitSeconds: number;
  readonly json: boolean;
}

/** The process around it. */
export interface AgentSurroundings {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly stop: AbortSignal;
  /** End, and leave token and mount to a successor. */
  readonly leave: AbortSignal;
}

/** Runs an agent to its end. Rejects as `Agent.run` does, and with an AgentError `USAGE`. */
export const runAgent = async (given: AgentArguments, around: AgentSurroundings): Promise<void> => {
  const { server, mount: mountPath, ca } = given;
  if (server === undefined || mountPath === undefined)
    throw new AgentError(
      'USAGE',
      'an agent needs a server and a directory: add --server ADDRESS and --mount DIRECTORY',
    );
  const tell = (event: AgentEvent): void => {
    const { to, text } = inWords(event);
    if (given.json) around.out(`${JSON.stringify(event)}\n`);
    else around[to](`${text}\n`);
  };
  const agent = new Agent({
    server: parseServerAddress(server, ca),
    mountPath,
    waitMs: given.waitSeconds * 1000,
    environment: around.environment,
    onEvent: tell,
  });
  try {
    await agent.run(around);
  } catch (error) {
    if (error instanceof AgentError && error.code === 'TOKEN_DENIED') end(given.onTokenDenied, error, around);
    throw error;
  }
};

/** The server knows already: it is what refused. */
const end = (how: OnTokenDenied, { message }: AgentError, { err }: AgentSurroundings): void => {
  if (how === 'report') return;
  const words = `porthole agent: ${message}: this machine may be somebody else's. It ends now (${how}).\n`;
  err(words);
  try {
    writeFileSync('/dev/console', words, { flag: 'a' });
  } catch {
    // A machine without one.
  }
  const error = endMachine(how);
  err(`ending the machine failed: ${errnoName(-error)}\n`);
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
        : err('stopped; the token could not be handed back: another agent of this boot may be refused');
  }
};

/** What would be proved of a process, a line each. Throws where there is none. */
export const whoInWords = (pid: string): string => {
  const found = identify(/^\d{1,10}$/.test(pid) ? Number(pid) : 0);
  if (found === undefined) throw new Error(`there is no process ${pid}, or it may not be looked at`);
  const rows = [
    ['uid', String(found.uid)],
    ['gid', String(found.gid)],
    ['groups', found.groups.join(' ') || 'none'],
    ['program', found.program ?? `not proved: ${found.programDoubt ?? ''}`],
    ['unit', found.unit ?? 'not proved: it is in no unit of the system'],
    ['started', `${found.startTime} clock ticks after the boot`],
  ];
  return rows.map(([key, value]) => `${key!.padEnd(8)} ${printable(value!)}\n`).join('');
};
