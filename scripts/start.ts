/**
 * `npm start`: boots a small VM with examples/web.yaml and shows what Porthole is for. On a terminal it ends in a shell in a
 * guest, with the tree mounted and served from a file that can be edited meanwhile; elsewhere it ends by itself.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { Guest } from '../images/tiny/guest.ts';

const color = process.stdout.isTTY && process.env['NO_COLOR'] === undefined;
const paint = (code: number, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text);
const say = (text: string): void => console.log(`\n${paint(1, text)}`);
const show = (text: string): void => {
  const lines = text.trimEnd();
  if (lines !== '') console.log(lines.replaceAll(/^(?=.)/gm, '  '));
};

const users: Readonly<Record<number, string>> = { 0: 'root', 114: 'postgres', 1000: 'app', 1001: 'stranger' };

/** The server as a child process, and the events that it prints. */
class Serving {
  readonly #child: ChildProcess;
  readonly #events: { readonly event: string }[] = [];
  #wake = Promise.withResolvers<void>();
  #stopping = false;

  constructor(args: readonly string[]) {
    // It must not outlive a killed demonstration.
    const command = ['--pdeathsig', 'SIGTERM', './porthole', 'serve', ...args, '--json'];
    this.#child = spawn('setpriv', command, { stdio: ['ignore', 'pipe', 'inherit'] });
    createInterface({ input: this.#child.stdout! }).on('line', (line) => {
      this.#events.push(JSON.parse(line) as { event: string });
      this.#wake.resolve();
    });
    this.#child.once('exit', (code) => {
      if (!this.#stopping) this.#wake.reject(new Error(`porthole serve ended with exit code ${code}`));
    });
  }

  /** Waits for the next event of that name. */
  async event(name: string): Promise<void> {
    for (;;) {
      const index = this.#events.findIndex(({ event }) => event === name);
      if (index >= 0) return void this.#events.splice(0, index + 1);
      await this.#wake.promise;
      this.#wake = Promise.withResolvers();
    }
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#wake.promise.catch(() => {});
    if (this.#child.exitCode !== null) return;
    this.#child.kill('SIGTERM');
    await once(this.#child, 'exit');
  }
}

const dir = mkdtempSync(path.join(tmpdir(), 'porthole-start-'));
const file = path.join(dir, 'web.yaml');
const socket = path.join(dir, 'web.sock');
const state = path.join(dir, 'state');
const audit = path.join(dir, 'audit.jsonl');
cpSync('examples', dir, { recursive: true });

say('Serving examples/web.yaml to a VM:');
show(`$ ./porthole serve web.yaml --vhost-user ${path.basename(socket)} --state state --audit audit.jsonl`);
const serving = new Serving([file, '--vhost-user', socket, '--state', state, '--audit', audit]);

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, async () => {
    await serving.stop();
    rmSync(dir, { recursive: true, force: true });
    process.exit(130);
  });
}

/** Runs a command in the guest as a user, and shows both. */
async function inGuest(guest: Guest, uid: number, script: string): Promise<void> {
  const prompt = uid === 0 ? '#' : '$';
  console.log(`  ${paint(36, `${users[uid]}@guest${prompt}`)} ${script}`);
  const groups = uid === 1000 ? [115] : [];
  const { text, errorText } = await guest.run(script, { uid, gid: uid, groups });
  show(`${text}${errorText}`);
}

/** Shows the last audit record of a denial for a path, once there is one. */
async function showDenial(secret: string): Promise<void> {
  const deadlineMs = performance.now() + 5_000;
  while (performance.now() < deadlineMs) {
    const lines = readFileSync(audit, 'utf8').trimEnd().split('\n');
    const found = lines.findLast((line) => line.includes(`"${secret}"`) && line.includes('"denied"'));
    if (found !== undefined) {
      console.log(`  ${paint(36, 'audit.jsonl')}`);
      return show(found);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`no audit record of a denial of "${secret}" arrived in "${audit}" within 5 s`);
}

async function story(guest: Guest): Promise<void> {
  const at = '/run/metadata';
  say('The tree as the guest sees it:');
  await inGuest(guest, 0, `ls -lR ${at}`);

  say('What everybody may read, and what postgres alone may:');
  await inGuest(guest, 1001, `cat ${at}/instance/hostname; echo`);
  await inGuest(guest, 114, `cat ${at}/secrets/db-password; echo`);

  say("A stranger is refused by the guest's own kernel, by the mode that we showed it:");
  await inGuest(guest, 1001, `cat ${at}/secrets/db-password`);

  say("The guest's root is refused outside, by `root: deny`, and that is on record:");
  await inGuest(guest, 0, `cat ${at}/secrets/tls.key`);
  await showDenial('/secrets/tls.key');

  say('With `decide: host` every attempt is decided and recorded outside:');
  await inGuest(guest, 1001, `ls -l ${at}/secrets/api-token; cat ${at}/secrets/api-token`);
  await showDenial('/secrets/api-token');
  await inGuest(guest, 1000, `cat ${at}/secrets/api-token; echo`);

  say('Why? Ask the file:');
  await inGuest(
    guest,
    1001,
    `getfattr --absolute-names --only-values -n system.porthole.why ${at}/secrets/api-token; echo`,
  );

  say('What a program writes inside is visible outside before its write(2) returns:');
  await inGuest(guest, 1000, `echo 'ready since boot' > ${at}/guest/status; cat ${at}/guest/status`);
  console.log(`  ${paint(36, 'host$')} ./porthole export --state state`);
  const exported = spawn('./porthole', ['export', '--state', state], { stdio: ['ignore', 'pipe', 'inherit'] });
  let yaml = '';
  exported.stdout.setEncoding('utf8').on('data', (text: string) => {
    yaml += text;
  });
  await once(exported, 'close');
  const lines = yaml.split('\n');
  const after = lines.findIndex((line) => line.includes('ready since boot')) + 1;
  show([...lines.slice(0, after), '...'].join('\n'));

  say('What changes outside shows inside at once:');
  await inGuest(guest, 1001, `cat ${at}/instance/hostname; echo`);
  console.log(`  ${paint(36, 'host$')} sed -i 's/hostname: web-1/hostname: web-2/' web.yaml`);
  writeFileSync(file, readFileSync(file, 'utf8').replace('hostname: web-1', 'hostname: web-2'));
  await serving.event('reloaded');
  await inGuest(guest, 1001, `cat ${at}/instance/hostname; echo`);
}

try {
  await serving.event('ready');
  await using guest = await Guest.start({ virtiofs: [{ socket, tag: 'metadata' }] });
  console.log(`  a VM booted in ${(guest.bootMs / 1000).toFixed(1)} s and mounts it:`);
  await inGuest(guest, 0, 'mkdir -p /run/metadata && mount -t virtiofs -o nosuid,nodev metadata /run/metadata');
  await story(guest);
  if (process.stdin.isTTY && process.stdout.isTTY) {
    say('Now you: a shell in the guest, with its metadata in /run/metadata, served from');
    show(`${file}\nEdit that file on this machine and look again in the guest. Leave with "exit".`);
    await guest.shell();
  }
} finally {
  await serving.stop();
  rmSync(dir, { recursive: true, force: true });
}
