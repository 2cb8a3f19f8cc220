/**
 * `npm start`: brings up a host daemon, makes a VM with examples/web.yaml through its API, and shows what Porthole is for. On
 * a terminal it stays up with a prompt for more until Ctrl-C; elsewhere it ends by itself. Nothing is left behind.
 */
import { createInterface } from 'node:readline';
import { StartDaemon } from './start/daemon.ts';
import { GuestShell } from './start/guest-shell.ts';

const isInteractive = process.stdin.isTTY && process.stdout.isTTY;
const color = process.stdout.isTTY && process.env['NO_COLOR'] === undefined;
const paint = (code: number, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text);
const width = 80;

const say = (text: string): void => console.log(`\n${paint(1, text)}`);

/** Below what it belongs to; a long line goes on in the next. */
const show = (text: string): void => {
  for (const line of text.trimEnd().split('\n')) if (line !== '') console.log(`  ${folded(line)}`);
};

const folded = (line: string): string => {
  let [text, column] = ['', 2];
  for (const word of line.match(/\S+\s*|^\s+/g) ?? []) {
    if (column + word.trimEnd().length > width && text !== '') {
      text = `${text.trimEnd()}\n    `;
      column = 4;
    }
    text += word;
    column += word.length;
  }
  return text;
};

const command = (prompt: string, text: string): void => console.log(`  ${paint(36, prompt)} ${text}`);

const stopped = new AbortController();
let isOthersTurn = false;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.on(signal, () => {
    // Ctrl-C is for the command that has the terminal.
    if (signal !== 'SIGINT' || !isOthersTurn) stopped.abort();
  });

/** Shows a command of this machine and what it prints. What takes long shows its progress on a terminal by itself. */
async function host(daemon: StartDaemon, line: string, { isLong = false, keep = (text: string) => text } = {}) {
  command('$', line);
  const { text, exitCode } = await daemon.sh(line, isLong && process.stderr.isTTY ? 'inherit' : 'pipe');
  show(keep(text));
  if (stopped.signal.aborted) throw stopped.signal.reason;
  if (exitCode !== 0) throw new Error(`"${line}" ended with exit code ${exitCode}`);
}

async function guest(shell: GuestShell, user: string, script: string): Promise<void> {
  command(`${user}@web${user === 'root' ? '#' : '$'}`, script);
  show(await shell.run(user, script));
}

/** Shows the audit record of a denial: without the title of the table, and as narrow as it can be. */
async function denial(daemon: StartDaemon, path: string): Promise<void> {
  await daemon.untilDenied('web', path);
  await host(daemon, `./porthole audit --vm web --denied --path ${path} --limit 1`, {
    keep: (table) => table.trimEnd().split('\n').at(-1)!.replaceAll(/ {2,}/g, '  '),
  });
}

async function begin(daemon: StartDaemon): Promise<void> {
  say('A host daemon, in a directory of its own:');
  command('$', `D=${daemon.directory}`);
  command('$', './porthole up --state $D/state --run $D/run &');
  const { accelerator, ownUsers } = await daemon.up((what) => console.error(`trouble: ${what}`));
  const runs = accelerator === 'kvm' ? 'VMs run on KVM' : 'No KVM here: VMs are emulated, which is slow';
  show(`${runs}; ${ownUsers ? 'each is a user of its own' : 'without root: all as you'}.`);
  command('$', 'export PORTHOLE_API=unix:$D/run/api.sock');

  say('An image, and a VM of it with the metadata and the rules of examples/web.yaml:');
  await host(daemon, './porthole image build tiny', { isLong: true });
  await host(daemon, './porthole vm create web --image tiny --type nano \\\n      --metadata examples/web.yaml', {
    isLong: true,
  });
}

async function story(daemon: StartDaemon, shell: GuestShell): Promise<void> {
  say('The tree as the guest sees it:');
  await guest(shell, 'root', 'cd /run/metadata; ls -l . secrets');

  say('What everybody may read, and what postgres alone may:');
  await guest(shell, 'alice', 'cat instance/hostname');
  await guest(shell, 'postgres', 'cat secrets/db-password');

  say("A stranger is refused by the guest's own kernel, by the mode that it was shown:");
  await guest(shell, 'alice', 'cat secrets/db-password');

  say("The guest's root is refused outside, by `root: deny`, and that is on record:");
  await guest(shell, 'root', 'cat secrets/tls.key');
  await denial(daemon, '/secrets/tls.key');

  say('With `decide: host` every attempt is decided and recorded outside:');
  await guest(shell, 'app', 'cat secrets/api-token');
  await guest(shell, 'alice', 'cat secrets/api-token');
  await denial(daemon, '/secrets/api-token');

  say('Why? Ask the file:');
  await guest(shell, 'alice', 'getfattr --only-values -n system.porthole.why secrets/api-token');

  say('What a program writes inside is visible outside before its write(2) returns:');
  await guest(shell, 'app', "echo 'ready since boot' > guest/status");
  await host(daemon, './porthole metadata get web /guest/status');

  say('What changes outside shows inside at once:');
  await host(daemon, 'printf web-2 | ./porthole metadata set web /instance/hostname');
  await guest(shell, 'alice', 'cat instance/hostname');
}

const next = [
  ['./porthole vm console web', 'a root shell inside'],
  ['./porthole metadata ls web /secrets', 'names, no values'],
  ['./porthole metadata set web /secrets/db-password', 'asks for it'],
  ['./porthole policy explain web /secrets/tls.key --uid 0', 'may root read it?'],
  ['./porthole audit --follow', 'who reads what'],
] as const;

function showNext(): void {
  for (const [line, words] of next) console.log(`  ${line.padEnd(54)}  ${paint(2, `# ${words}`)}`);
}

/** One line of the person's; undefined when they want no more. */
function ask(history: string[]): Promise<string | undefined> {
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: '$ ', history });
  const stop = (): void => lines.close();
  stopped.signal.addEventListener('abort', stop, { once: true });
  lines.on('history', (now: string[]) => history.splice(0, history.length, ...now));
  lines.once('SIGINT', () => lines.close());
  lines.once('line', (line) => {
    resolve(line);
    lines.close();
  });
  lines.once('close', () => {
    stopped.signal.removeEventListener('abort', stop);
    resolve(undefined);
  });
  lines.prompt();
  return promise;
}

async function stay(daemon: StartDaemon): Promise<void> {
  say('Now you. Try, at this prompt:');
  showNext();
  console.log('\nThey work in other terminals too, in this directory, after');
  console.log(`  export PORTHOLE_API=${daemon.environment['PORTHOLE_API']}`);
  console.log('Ctrl-C at the prompt ends the VM and the daemon, and removes what they made.\n');
  const history: string[] = [];
  for (;;) {
    const line = await ask(history);
    if (line === undefined || stopped.signal.aborted) return;
    if (line.trim() === 'exit') return;
    if (line.trim() === '') continue;
    isOthersTurn = true;
    await daemon.shOnTerminal(line);
    isOthersTurn = false;
  }
}

async function main(): Promise<void> {
  await using daemon = new StartDaemon();
  const told = async (): Promise<void> => {
    await begin(daemon);
    const startedMs = performance.now();
    await using shell = await GuestShell.open(daemon.client, 'web');
    show(
      `It has booted (${((performance.now() - startedMs) / 1000).toFixed(1)} s), with its metadata in /run/metadata.`,
    );
    await story(daemon, shell);
    await shell.leave();
  };
  const aborted = Promise.withResolvers<never>();
  stopped.signal.addEventListener('abort', () => aborted.reject(stopped.signal.reason), { once: true });
  aborted.promise.catch(() => {});
  const telling = told();
  telling.catch(() => {});
  await Promise.race([telling, aborted.promise]);
  if (isInteractive) {
    await stay(daemon);
    console.log('\nEnding the VM and the daemon ...');
  } else {
    say('On a terminal, the VM stays up here for you to try:');
    showNext();
  }
}

try {
  await main();
} catch (error) {
  if (!stopped.signal.aborted) console.error(`\nnpm start: ${error instanceof Error ? error.message : String(error)}`);
  // What was under way may still wait for an answer.
  process.exit(stopped.signal.aborted ? 130 : 1);
}
