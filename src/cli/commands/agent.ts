/** `porthole agent`: the tree inside a guest, by way of its metadata server. */
import { type Command, Option } from 'commander';
import {
  AgentError,
  LONGEST_WAIT_SECONDS,
  type OnTokenDenied,
  onTokenDenied,
  runAgent,
  whoInWords,
} from '../../agent/index.ts';
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

export const agentCommand = (program: Command, { terminal }: Shell): void => {
  const agent = command(program, 'agent', 'mount the tree inside a VM, by way of its metadata server')
    .option(
      '--server <address>',
      'the metadata server: unix:PATH, http(s)://IP:PORT, vsock:CID:PORT or virtio-serial:PATH',
    )
    .option('--mount <directory>', 'where to mount: /run/metadata, say; it is made')
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

Ctrl-C unmounts, and hands the token back. SIGUSR2 leaves both to the next
agent, where systemd keeps them. "porthole-agent" is the same as an executable
of its own, for guests.`,
    )
    .action((flags: AgentFlags) => run(flags, terminal));
  command(agent, 'who', 'say what the agent would prove of a process')
    .argument('<pid>', 'the number of a process or thread')
    .addHelpText('after', '\nExample:\n  porthole agent who 4711')
    .action((pid: string) => void terminal.out(whoInWords(pid)));
};

const run = async ({ wait, json, ...flags }: AgentFlags, terminal: Terminal): Promise<void> => {
  const leaving = new AbortController();
  terminal.onLeave(() => leaving.abort());
  try {
    await runAgent(
      { ...flags, waitSeconds: wait, json: json === true },
      { ...terminal, stop: terminal.interrupted, leave: leaving.signal },
    );
  } catch (error) {
    if (error instanceof AgentError && (error.code === 'USAGE' || error.code === 'ADDRESS'))
      throw new UsageError(error.message);
    throw error;
  }
};
