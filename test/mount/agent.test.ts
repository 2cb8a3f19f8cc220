/** The agent as a process: who asks, what it keeps in memory, and what programs see while its server, or it, is gone. */
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { until } from '../until.ts';
import { Manager, porthole, Running, serving } from './agent-process.ts';

const directory = mkdtempSync(path.join(tmpdir(), 'porthole-agent-'));
const at = (name: string): string => path.join(directory, name);
const mountPath = at('mnt');

const spec = (hostname: string, others = ''): string => `porthole: 1
metadata:
  instance: { hostname: ${hostname}${others} }
  secrets:
    opened: a value that was opened
    unopened: f1b2c3d4-nobody-has-opened-this
    by-program: for cat alone
    by-unit: for a unit alone
policy:
  - { path: /secrets/by-program, mode: "0444", program: [/usr/bin/cat] }
  - { path: /secrets/by-unit, mode: "0444", unit: [some.service] }
`;

const agentArguments = ['--server', `unix:${at('server.sock')}`, '--mount', 'mnt'];
const startAgent = (): Running => new Running(directory, ['agent', ...agentArguments]);

/** A program of its own: this process would wait for itself if it hung. */
const run = (program: string, ...args: readonly string[]): { readonly out: string; readonly err: string } => {
  const { stdout, stderr, error } = spawnSync(program, args, { cwd: mountPath, encoding: 'utf8', timeout: 30_000 });
  assert.equal(error, undefined);
  return { out: stdout, err: stderr };
};

/** '' where it is gone meanwhile. */
const linkOf = (link: string): string => {
  try {
    return readlinkSync(link);
  } catch {
    return '';
  }
};

/** How many mounts lie over each other. */
const mountsThere = (): number =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line.split(' ')[4] === realpathSync(directory) + '/mnt').length;

let server: Running;
let agent: Running;

before(async () => {
  mkdirSync(mountPath);
  writeFileSync(at('vm.yaml'), spec('web-1'));
  server = await serving(directory);
  agent = startAgent();
  await agent.told('mounted');
});

after(async () => {
  await agent?.stop();
  await server?.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** Whether some memory of a process that can be read has `text`, in any of the encodings that it comes in. */
const memoryHas = (pid: number, text: string): boolean => {
  const wanted = [
    Buffer.from(text),
    Buffer.from(text, 'utf16le'),
    Buffer.from(Buffer.from(text).toString('base64').slice(0, 32)),
  ];
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  const part = Buffer.alloc(4 * 1024 * 1024);
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line);
      if (match === null) continue;
      const end = Number.parseInt(match[2]!, 16);
      // Parts overlap by as much as a value may be cut by their limit.
      for (let start = Number.parseInt(match[1]!, 16); start < end; start += part.length - 256) {
        let bytes = 0;
        try {
          bytes = readSync(memory, part, 0, Math.min(part.length, end - start), start);
        } catch {
          break;
        }
        if (wanted.some((one) => part.subarray(0, bytes).includes(one))) return true;
      }
    }
    return false;
  } finally {
    closeSync(memory);
  }
};

/** A chroot, or a kernel that is set so, has none. */
const hasUserNamespaces = spawnSync('unshare', ['--user', '--map-root-user', 'true']).status === 0;
const needsUserNamespaces = hasUserNamespaces ? false : 'no user namespace can be made here';

test('the agent proves the program', () => {
  assert.equal(run('cat', 'secrets/by-program').out, 'for cat alone');
  assert.match(run('head', 'secrets/by-program').err, /Permission denied/);
  assert.match(run('cat', 'secrets/by-unit').err, /Permission denied/);
});

test('a bind mount in a user namespace fakes no program', { skip: needsUserNamespaces }, () => {
  copyFileSync('/usr/bin/head', at('head'));
  // Whoever runs it sees it as /usr/bin/cat.
  const script = `mount --bind ${at('head')} /usr/bin/cat && /usr/bin/cat --version | /usr/bin/head -1 && exec /usr/bin/cat secrets/by-program`;
  const faked = run('unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', script);
  assert.match(faked.out, /^head/, `the bind mount worked: ${faked.err}`);
  assert.match(faked.err, /Permission denied/);
});

test('porthole agent who says what would be proved of a process', () => {
  const words = execFileSync(process.execPath, [porthole, 'agent', 'who', String(process.pid)], { encoding: 'utf8' });
  assert.match(words, new RegExp(`^uid +${process.getuid!()}$`, 'm'));
  assert.match(words, /^program +\S/m);
});

test("the guest's inside is told of, to root alone", async () => {
  const files = ['status.json', 'processes.json'];
  await until('both files', () => files.every((name) => run('cat', `guest/.agent/${name}`).out.endsWith('}')));
  const status = JSON.parse(run('cat', 'guest/.agent/status.json').out) as { readonly agent: { readonly pid: number } };
  assert.equal(status.agent.pid, agent.child.pid);
  const { processes } = JSON.parse(run('cat', 'guest/.agent/processes.json').out) as {
    readonly processes: readonly { readonly pid: number }[];
  };
  assert.ok(processes.some(({ pid }) => pid === agent.child.pid));
  assert.equal(run('stat', '-c', '%a %u', 'guest/.agent', 'guest/.agent/status.json').out, '700 0\n600 0\n');
});

test("the agent's memory has no secret that nobody has opened", () => {
  const { child } = agent;
  assert.equal(run('cat', 'secrets/opened').out, 'a value that was opened');
  assert.equal(memoryHas(child.pid!, 'web-1'), true, 'the search finds what there is');
  assert.equal(memoryHas(child.pid!, 'f1b2c3d4-nobody-has-opened-this'), false);
});

test('a change outside is seen at once, and another agent of the same boot is refused', async () => {
  writeFileSync(at('vm.yaml'), spec('web-2'));
  await server.told('reloaded');
  assert.equal(run('cat', 'instance/hostname').out, 'web-2');
  const second = startAgent();
  assert.match((await second.told('token-denied')).why!, /somebody else/);
  await until('its end', () => second.child.exitCode !== null);
  assert.equal(second.child.exitCode, 1);
  assert.equal((await server.told('token-refused')).event, 'token-refused');
  assert.equal(run('cat', 'secrets/opened').out, 'a value that was opened', 'the first one goes on');
});

/** Lines of what waits, each with the name of who said it. */
const watchers = `
  watch() { name=$1; shift; inotifywait -q -m --format '%e' "$@" | sed -u "s/^/$name /" & }
  watch changed instance/hostname; watch removed instance/gone; watch directory instance
  poller() { python3 -u -c 'import select, sys
f = open(sys.argv[1])
p = select.poll()
p.register(f, select.POLLPRI)
sys.stdout.write(f"poll-{sys.argv[1]} {p.poll(600000)[0][1] & select.POLLPRI}\\n")' "$1" & }
  poller instance/hostname; poller instance/gone
  cat .changes | sed -u 's/.*"path":"\\/instance\\/\\([a-z]*\\)".*/told \\1/' &
  wait`;

test('a change outside wakes who can be woken, and is seen by whoever looks', async (t) => {
  writeFileSync(at('vm.yaml'), spec('web-2', ', gone: x'));
  await server.told('reloaded', 2);
  const child = spawn('bash', ['-c', watchers], {
    cwd: mountPath,
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
  });
  t.after(() => process.kill(-child.pid!, 'SIGKILL'));
  const lines: string[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(line));
  const said = (who: string): string[] => lines.filter((line) => line.startsWith(`${who} `));
  const look = 'cat instance/hostname instance/gone > /dev/null';
  const all = ['changed OPEN', 'removed OPEN', 'directory OPEN'];
  await until('the watches', () => run('sh', '-c', look) && all.every((line) => lines.includes(line)));
  const isPolled = (name: string): boolean =>
    readdirSync('/proc').some((pid) => {
      if (!/^\d+$/.test(pid) || !linkOf(`/proc/${pid}/exe`).includes('python')) return false;
      const opens = [3, 4, 5].some((fd) => linkOf(`/proc/${pid}/fd/${fd}`) === at(`mnt/${name}`));
      return opens && readFileSync(`/proc/${pid}/wchan`, 'utf8').includes('poll');
    });
  await until('both to poll', () => isPolled('instance/hostname') && isPolled('instance/gone'));
  const before = {
    changed: said('changed').length,
    removed: said('removed').length,
    directory: said('directory').length,
  };

  writeFileSync(at('vm.yaml'), spec('web-2222', ', made: y'));
  await server.told('reloaded', 3);
  assert.equal(run('cat', 'instance/hostname').out, 'web-2222');
  await until('stat(2)', () => run('stat', '-c', '%s', 'instance/hostname').out === '8\n');
  await until('readdir(3)', () => run('ls', 'instance').out === 'hostname\nmade\n');
  for (const woken of ['poll-instance/hostname 2', 'poll-instance/gone 2', 'told'])
    await until(`"${woken}", of who waits`, () => lines.some((line) => line.startsWith(woken)));
  await until('inotify to tell of a file that is gone', () => said('removed').includes('removed DELETE_SELF'));
  const newly = (who: 'changed' | 'directory'): string[] => said(who).slice(before[who]);
  await until('inotify to tell of what was done here', () => newly('directory').includes('directory OPEN'));
  const outside = /CREATE|MODIFY|DELETE|MOVED|ATTRIB/;
  assert.deepEqual(
    newly('changed').filter((line) => outside.test(line)),
    [],
    'inotify tells of no change outside',
  );
  assert.deepEqual(
    newly('directory').filter((line) => outside.test(line)),
    [],
    'nor of names',
  );
});

test('an agent that is refused ends the machine where it is told to', { skip: needsUserNamespaces }, () => {
  // In a pid namespace of a user namespace reboot(2) ends that, and can end nothing else: the kernel says how by SIGINT.
  const spaces = ['--user', '--map-root-user', '--pid', '--fork', '--kill-child'];
  const agentArguments = ['agent', '--server', `unix:${at('server.sock')}`, '--mount', 'mnt'];
  const { status, signal, stderr } = spawnSync(
    'unshare',
    [...spaces, process.execPath, porthole, ...agentArguments, '--on-token-denied', 'poweroff'],
    { cwd: directory, encoding: 'utf8', timeout: 60_000 },
  );
  assert.ok(signal === 'SIGINT' || status === 130, `it ended with ${signal ?? status}: ${stderr}`);
  assert.match(stderr, /somebody else.*It ends now \(poweroff\)/);
  assert.doesNotMatch(stderr, /ending the machine failed/);
});

test('a server that is away leaves what everybody may read, and comes back under another boot', async () => {
  run('sh', '-c', 'echo before > guest/log');
  await server.stop('SIGKILL');
  await agent.told('cut-off');
  assert.equal(run('cat', 'instance/hostname').out, 'web-2222');
  assert.match(run('cat', 'secrets/opened').err, /Input\/output error/);
  assert.match(run('sh', '-c', 'echo lost > guest/log').err, /I\/O error|Input\/output error/);
  assert.match(run('getfattr', '--only-values', '-n', 'system.porthole.age', 'instance/hostname').out, /^\d+$/);
  rmSync(at('server.sock'), { force: true });
  server = await serving(directory);
  await agent.told('connected', 2);
  assert.equal(run('cat', 'secrets/opened').out, 'a value that was opened');
  assert.equal(run('sh', '-c', 'echo after >> guest/log; cat guest/log').out, 'before\nafter\n');
});

test('an agent that is stopped hands its token back; its successor mounts again', async () => {
  run('sh', '-c', 'echo kept > guest/note');
  await agent.stop();
  assert.equal((await agent.told('stopped')).tokenReturned, true);
  agent = startAgent();
  await agent.told('mounted');
  assert.equal(run('cat', 'guest/note').out, 'kept\n');
});

test('an agent that nobody keeps anything for is killed: whoever waits is woken, and no other agent gets a token', async () => {
  const reader = spawn('cat', ['.changes'], { cwd: mountPath, stdio: ['ignore', 'ignore', 'pipe'] });
  await until('the reader to wait', () => {
    const opens = readdirSync(`/proc/${reader.pid}/fd`).some(
      (fd) => linkOf(`/proc/${reader.pid}/fd/${fd}`) === at('mnt/.changes'),
    );
    return opens && / [SD] /.test(readFileSync(`/proc/${reader.pid}/stat`, 'utf8'));
  });
  const ended = once(reader, 'exit');
  await agent.stop('SIGKILL');
  const [code] = (await ended) as [number | null];
  assert.equal(code, 1, 'its read(2) fails');
  agent = startAgent();
  assert.match((await agent.told('token-denied')).why!, /somebody else/);
});

test('an agent whose manager kept not all of it mounts anew, and hands the token back', async () => {
  await server.stop();
  server = await serving(directory);
  using manager = new Manager(directory);
  agent = manager.start(agentArguments);
  await agent.told('mounted');
  // The kernel answers it by itself from now on, though nobody serves the mount.
  run('stat', '.');
  await agent.stop('SIGKILL');
  manager.take();
  for (const [name, fd] of [...manager.kept]) {
    if (name === 'porthole-token') continue;
    closeSync(fd);
    manager.kept.delete(name);
  }
  agent = manager.start(agentArguments);
  assert.equal((await agent.told('mounted')).resumed, false);
  assert.equal(mountsThere(), 1, 'what the one before left is taken away');
  await agent.stop('SIGKILL');
  manager.take();
  closeSync(manager.kept.get('porthole-journal')!);
  manager.kept.set('porthole-journal', openSync('/dev/null', 'r'));
  agent = manager.start(agentArguments);
  assert.equal((await agent.told('mounted')).resumed, false);
  assert.equal(mountsThere(), 1, 'also where its journal can’t be read');
  assert.equal(run('cat', 'secrets/opened').out, 'a value that was opened');
  assert.equal(server.events.filter(({ event }) => event === 'token-refused' || event === 'compromised').length, 0);
  await agent.stop();
  assert.equal((await agent.told('stopped')).tokenReturned, true, 'it was the token of this boot');
  manager.take();
  assert.deepEqual([...manager.kept.keys()], ['porthole-token']);
});
