/** `porthole-agent`: the agent as an executable of its own, for guests. `porthole agent` does the same. */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { thisVersion, versionText } from '../parts/index.ts';
import { AgentError } from './agent-error.ts';
import { LONGEST_WAIT_SECONDS, type OnTokenDenied, onTokenDenied, runAgent, whoInWords } from './command.ts';

const usage = `usage: porthole-agent --server ADDRESS --mount DIRECTORY [options]
       porthole-agent who PID

Mounts the tree inside a VM, by way of its metadata server. It takes root. What
everybody may read is answered in the machine; all else is asked of the server
at each open(2), in the name of who asks.

  --server ADDRESS        unix:PATH, http://IP:PORT, https://IP:PORT,
                          vsock:CID:PORT or virtio-serial:PATH
  --mount DIRECTORY       where to mount: /run/metadata, say; it is made
  --ca FILE               the only authority to believe the server by, as PEM
  --on-token-denied WHAT  poweroff, halt or report (default) when somebody else
                          has this boot's token
  --wait SECONDS          let requests wait so long for a server that is away
  --json                  print events as JSON lines
  --help, --version

  who PID                 say what the agent would prove of a process

SIGTERM unmounts and hands the token back. SIGUSR2 leaves both to the next
agent, where systemd keeps them.
`;

const options = {
  server: { type: 'string' },
  mount: { type: 'string' },
  ca: { type: 'string' },
  'on-token-denied': { type: 'string', default: 'report' },
  wait: { type: 'string', default: '0' },
  json: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
  version: { type: 'boolean', default: false },
} as const;

const wrong = (why: string): AgentError => new AgentError('USAGE', why);
const isOnTokenDenied = (what: string): what is OnTokenDenied => (onTokenDenied as readonly string[]).includes(what);

const run = async (args: readonly string[]): Promise<void> => {
  let parsed: ReturnType<typeof parse>;
  try {
    parsed = parse(args);
  } catch (error) {
    throw wrong((error as Error).message);
  }
  const { positionals, values } = parsed;
  if (values.help) return void process.stdout.write(usage);
  if (values.version) return void process.stdout.write(`porthole-agent ${versionText(thisVersion())}\n`);
  const [command, pid, ...rest] = positionals;
  if (command === 'who' && pid !== undefined && rest.length === 0) return void process.stdout.write(whoInWords(pid));
  if (command !== undefined) throw wrong(`"${positionals.join(' ')}" is no command`);
  const what = values['on-token-denied'];
  if (!isOnTokenDenied(what)) throw wrong(`--on-token-denied "${what}" is none of ${onTokenDenied.join(', ')}`);
  const waitSeconds = Number(values.wait);
  if (!/^\d+$/.test(values.wait) || waitSeconds > LONGEST_WAIT_SECONDS)
    throw wrong(`--wait "${values.wait}" is no number of seconds from 0 to ${LONGEST_WAIT_SECONDS}`);
  const stop = new AbortController();
  const leave = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stop.abort());
  process.on('SIGUSR2', () => leave.abort());
  const { server, mount, ca, json } = values;
  await runAgent(
    { server, mount, ca, onTokenDenied: what, waitSeconds, json },
    {
      out: (text) => void process.stdout.write(text),
      err: (text) => void process.stderr.write(text),
      environment: process.env,
      stop: stop.signal,
      leave: leave.signal,
    },
  );
};

const parse = (args: readonly string[]) => parseArgs({ args: [...args], options, allowPositionals: true });

/** What the machine's lists of processes call it; Node's is "node-MainThread". */
const takeName = (): void => {
  try {
    writeFileSync('/proc/self/comm', 'porthole-agent');
  } catch {
    // Where /proc is not mounted nobody can look.
  }
};

try {
  takeName();
  await run(process.argv.slice(2));
} catch (error) {
  const isWrong = error instanceof AgentError && (error.code === 'USAGE' || error.code === 'ADDRESS');
  process.stderr.write(`porthole-agent: ${error instanceof Error ? error.message : String(error)}\n`);
  if (isWrong) process.stderr.write('"porthole-agent --help" says what there is\n');
  process.exitCode = isWrong ? 2 : 1;
}
