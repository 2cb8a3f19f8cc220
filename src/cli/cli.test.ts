import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Command } from 'commander';
import { commitNow } from '../../test/tree/world.ts';
import { digestOf, parseSpec, SpecError, State } from '../host/index.ts';
import { Authority, ways } from '../tree/index.ts';
import { runCli } from './cli.ts';
import type { Shell } from './command.ts';
import { toExitCode } from './exit-code.ts';
import { buildProgram } from './program.ts';
import { asJson, inWords } from './serve-words.ts';
import { paintFor, type Terminal } from './terminal.ts';
import { UsageError } from './usage-error.ts';

const checkout = join(import.meta.dirname, '..', '..');
const example = join('examples', 'web.yaml');

const temporary = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-cli-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
};

const terminal = (out: string[], err: string[], more: Partial<Terminal> = {}): Terminal => ({
  out: (text) => {
    out.push(typeof text === 'string' ? text : new TextDecoder().decode(text));
    return true;
  },
  drained: async () => {},
  err: (text) => void err.push(text),
  outIsTerminal: false,
  errIsTerminal: false,
  columns: () => 80,
  input: { isTerminal: false, chunks: async function* () {}, setMode: () => {}, close: () => {} },
  environment: {},
  wallMs: Date.now,
  onReopen: () => {},
  onLeave: () => {},
  interrupted: new AbortController().signal,
  forced: new AbortController().signal,
  ...more,
});

const run = async (...args: readonly string[]) => {
  const out: string[] = [];
  const err: string[] = [];
  const code = await runCli(args, terminal(out, err));
  return { code, out: out.join(''), err: err.join('') };
};

/** The same as a person runs it. */
const porthole = (...args: readonly string[]) => {
  const { status, stdout, stderr } = spawnSync('./porthole', args, {
    cwd: checkout,
    encoding: 'utf8',
    env: { PATH: process.env['PATH'] },
  });
  return { code: status, out: stdout, err: stderr };
};

test('porthole prints its version and help', () => {
  assert.match(porthole('--version').out, /^\d+\.\d+\.\d+( \(commit [0-9a-f]{12}(\+changes)?\))?\n$/);
  const help = porthole('--help');
  assert.equal(help.code, 0);
  assert.match(
    help.out,
    /Usage: porthole [^]*vm [^]*policy[^]*serve \[options\] <file>[^]*export[^]*Exit codes:\n {2}0 {4}done\n/,
  );
});

/** Every command, by the words that run it. */
const commandLines = (): readonly (readonly string[])[] => {
  const nothing = terminal([], []);
  const below = (of: Command): readonly (readonly string[])[] =>
    of.commands.flatMap((one) => [[one.name()], ...below(one).map((words) => [one.name(), ...words])]);
  const shell: Shell = {
    terminal: nothing,
    setExitCode: () => {},
    api: () => assert.fail('nothing runs'),
    apis: () => [],
  };
  return below(buildProgram(shell));
};

test('porthole prints help with an example for each command', async () => {
  const lines = commandLines();
  assert.ok(lines.length > 35, `${lines.length}`);
  for (const args of lines) {
    const { code, out } = await run(...args, '--help');
    assert.equal(code, 0);
    const usage = `Usage: porthole ${args.join(' ')} `;
    assert.equal(out.slice(0, usage.length), usage);
    if (/\nCommands:\n/.test(out)) continue;
    assert.match(out, new RegExp(`Examples?:\n[^]*  (printf .* )?porthole ${args.join(' ')}`), args.join(' '));
  }
});

test('porthole prints help that fits into 80 columns', async () => {
  for (const args of [[], ...commandLines()]) {
    const { out } = await run(...args, '--help');
    const wide = out.split('\n').filter((line) => line.length > 80);
    assert.deepEqual(wide, []);
  }
});

test('porthole says what is wrong with a command line and ends with 2', async () => {
  const usage = async (...args: readonly string[]): Promise<string> => {
    const { code, out, err } = await run(...args);
    assert.deepEqual([code, out], [2, ''], args.join(' '));
    return err;
  };
  assert.equal(await usage('serv'), "porthole: unknown command 'serv'\n(Did you mean serve?)\n");
  assert.equal(await usage('serve'), "porthole: missing required argument 'file'\n");
  assert.equal(
    await usage('serve', 'x', '--vhostuser', 's'),
    "porthole: unknown option '--vhostuser'\n(Did you mean --vhost-user?)\n",
  );
  assert.equal(
    await usage('serve', 'x'),
    'porthole: serving needs a way in: add --vhost-user SOCKET, --9p SOCKET or --http ADDRESS for a VM, or --mount DIRECTORY for this machine\n',
  );
  assert.equal(
    await usage('serve', 'x', '--mount', 'm', '--socket-group', 'g'),
    'porthole: --socket-group is for sockets: add --vhost-user SOCKET or --9p SOCKET\n',
  );
  assert.match(
    await usage('serve', 'x', '--vsock', 'v', '--vsock-cid', '2'),
    /argument '2' is invalid\. Give a number from 3 to 4294967294\./,
  );
  assert.equal(
    await usage('serve', 'x', '--mount', 'm', '--vsock-cid', '5'),
    'porthole: --vsock-cid is for a vsock device: add --vsock PATH\n',
  );
  assert.equal(await usage('export'), 'porthole: exporting needs a tree: give a spec file, or --state DIRECTORY\n');
  assert.match(await usage('policy', 'explain', example, '/'), /required option '--uid <uid>' not specified/);
  assert.match(
    await usage('policy', 'explain', example, '/', '--uid', 'root'),
    /argument 'root' is invalid\. It must be a whole number from 0 to 4294967294\./,
  );
  assert.match(
    await usage('policy', 'explain', example, '/', '--uid', '0', '--way', 'x'),
    /Allowed choices are virtiofs, mount, direct/,
  );
  assert.equal(
    await usage('policy', 'explain', example, 'a', '--uid', '0'),
    'porthole: the path must be absolute: did you mean "/a"?\n',
  );
  assert.match((await run()).err, /^Usage: porthole/);
  assert.equal((await run()).code, 2);
});

test('porthole policy check finds nothing wrong in the example', () => {
  assert.deepEqual(porthole('policy', 'check', example), {
    code: 0,
    out: 'examples/web.yaml: 20 nodes, 7 rules, nothing wrong\n',
    err: '',
  });
});

test('porthole policy check prints all that is wrong and ends with 3', (t) => {
  const file = join(temporary(t), 'web.yaml');
  writeFileSync(
    file,
    'porthole: 1\nmetadata: { secrets: { db: hunter2 } }\npolicy:\n  - { path: /secrets/db, mode: 0400, ownr: root }\n',
  );
  const { code, out, err } = porthole('policy', 'check', file);
  assert.deepEqual([code, out], [3, '']);
  assert.equal(
    err.replaceAll(file, 'web.yaml'),
    `web.yaml:4:30: error: policy[0].mode: 0400 without quotes is a decimal number in YAML
  4 |   - { path: /secrets/db, mode: 0400, ownr: root }
    |                                ^
    = write it quoted: "0400"
web.yaml:4:36: error: policy[0].ownr: unknown key "ownr"
  4 |   - { path: /secrets/db, mode: 0400, ownr: root }
    |                                      ^
    = did you mean "owner"?
2 errors
`
      .replace(':30:', ':32:')
      .replace(':36:', ':38:'),
  );
});

test('porthole policy explain says what a caller may do and which rule says so', () => {
  assert.deepEqual(porthole('policy', 'explain', example, '--uid', '0', '/secrets/tls.key'), {
    code: 0,
    err: '',
    out: `-r--r-----+ root ssl-cert 75 /secrets/tls.key

uid 0 (root), gid 0 (root), by virtiofs
  search allowed  /  (mode 0755, root may; rule: default)
  search allowed  /secrets  (mode 0711, root may; rule: default)
  read   denied   /secrets/tls.key  (root: deny)
  write  denied   /secrets/tls.key  (root: deny)

from the rules:
  owner: root  (/secrets/tls.key (web.yaml:40))
  group: ssl-cert  (/secrets/tls.key (web.yaml:40))
  mode: 0440  (/secrets/tls.key (web.yaml:40))
  acl: [{"tag":"user","id":114,"permissions":4}]  (/secrets/tls.key (web.yaml:40))
  root: deny  (/secrets/tls.key (web.yaml:40))
`,
  });
});

test('porthole policy explain tells the callers of the example apart', async () => {
  const verdict = async (path: string, ...caller: readonly string[]): Promise<string> => {
    const { code, out } = await run('policy', 'explain', example, path, ...caller);
    assert.equal(code, 0);
    return /^ {2}read +(\w+)/m.exec(out)![1]!;
  };
  assert.equal(await verdict('/instance/id', '--uid', '1001'), 'allowed');
  assert.equal(await verdict('/secrets/db-password', '--uid', '114'), 'allowed');
  assert.equal(await verdict('/secrets/db-password', '--uid', '1000'), 'denied');
  assert.equal(await verdict('/secrets/tls.key', '--uid', '114'), 'allowed');
  assert.equal(await verdict('/secrets/tls.key', '--uid', '1000'), 'allowed');
  assert.equal(await verdict('/secrets/tls.key', '--uid', '1001', '--groups', '27,115'), 'denied');
  assert.equal(await verdict('/secrets/api-token', '--uid', '1001'), 'denied');
  assert.equal(await verdict('/secrets/api-token', '--uid', '1000', '--way', 'mount'), 'allowed');
  const { out } = await run('policy', 'explain', example, '/secrets/api-token', '--uid', '1001');
  assert.match(out, /^-rw-rw-rw- app root 8 \/secrets\/api-token\n/);
});

test('porthole policy explain ends with 1 when there is nothing at the path', async () => {
  const { code, out, err } = await run('policy', 'explain', example, '--uid', '0', '/secrets/tls.kye');
  assert.deepEqual([code, out], [1, '']);
  assert.equal(
    err,
    'porthole: there is no "/secrets/tls.kye" in examples/web.yaml; did you mean "/secrets/tls.key"?\n',
  );
});

test('porthole export prints a spec that loads back to the same tree', async () => {
  const { code, out, err } = await run('export', example);
  assert.deepEqual([code, err], [0, '']);
  const { spec, problems } = parseSpec(out, 'web.yaml');
  assert(spec, JSON.stringify(problems));
  const texts = Object.fromEntries(
    spec.entries.map((entry) => [
      entry.path,
      entry.kind === 'file' ? new TextDecoder().decode(entry.bytes) : entry.kind,
    ]),
  );
  assert.equal(texts['/instance/version'], '1.10');
  assert.equal(texts['/instance/tags/1'], 'blue');
  assert.equal(texts['/instance/latest'], 'symlink');
  assert.equal(texts['/secrets/tls.der'], '0\u0003\u0002\u0001\0');
  assert.equal(spec.policy.rules.length, 7);
  assert.doesNotMatch(out, /\.changes/);
});

test('porthole export --state prints what was made and written in the guest', async (t) => {
  const directory = temporary(t);
  const file = join(directory, 'web.yaml');
  writeFileSync(
    file,
    'porthole: 1\nmetadata: { app: { settings: old }, instance: { id: i-1 } }\npolicy: [{ path: /app/settings, mode: "0666" }, { path: /app, mode: "0755" }]\n',
  );
  const { spec } = parseSpec(
    'porthole: 1\nmetadata: { app: { settings: old }, instance: { id: i-1 } }\npolicy: [{ path: /app/settings, mode: "0666" }, { path: /app, mode: "0755" }]\n',
    file,
  );
  const stateDirectory = join(directory, 'state');
  {
    using state = new State(stateDirectory);
    const authority = new Authority({
      vm: 'web',
      wallMs: Date.now,
      digest: digestOf,
      audit: () => true,
      persist: state.persist,
    });
    authority.load(spec!);
    state.rememberSpecFile(file);
    const caller = { uid: 1000, gid: 1000, pid: 1 };
    const { snapshot } = authority;
    const ino = (path: string) => authority.snapshot.resolve(path)!.ino;
    const write = {
      op: 'write',
      caller,
      offset: 0,
      data: new TextEncoder().encode('new'),
      append: false,
      truncate: true,
      grantedAtOpen: true,
    } as const;
    assert.equal(commitNow(authority, { ...write, ino: ino('/app/settings') }, ways.virtiofs, 'test').errno, 0);
    const made = commitNow(
      authority,
      { op: 'create', caller, parentIno: ino('/guest'), name: 'mine', mode: 0o640, umask: 0 },
      ways.virtiofs,
      'test',
    );
    assert.equal(made.errno, 0);
    assert.equal(commitNow(authority, { ...write, ino: made.ino }, ways.virtiofs, 'test').errno, 0);
    assert.ok(authority.snapshot.revision > snapshot.revision);
    // Another process may look while this one has the state open.
    const { code, out } = porthole('export', '--state', stateDirectory);
    assert.equal(code, 0);
    assert.match(
      out,
      /settings: new\n[^]*guest:\n[^]* # made in the guest by 1000:1000, mode 0640\n +mine: new\n[^]*id: i-1\n/,
    );
  }
  const missing = await run('export', '--state', join(directory, 'nowhere'));
  assert.equal(missing.code, 1);
  assert.match(missing.err, /^porthole: there is no state in ".*nowhere\/porthole\.db"; is the directory right\?\n$/);
});

test('porthole serve prints the errors of a bad spec and leaves nothing behind', (t) => {
  const directory = temporary(t);
  const file = join(directory, 'web.yaml');
  writeFileSync(file, 'porthole: 1\nmetadata: {}\nextra: 1\n');
  const { code, out, err } = porthole(
    'serve',
    file,
    '--vhost-user',
    join(directory, 's'),
    '--state',
    join(directory, 'state'),
  );
  assert.deepEqual([code, out], [3, '']);
  assert.match(err, /web\.yaml:3:1: error: extra: unknown key "extra"\n/);
  assert.equal(existsSync(join(directory, 's')), false);
  assert.equal(existsSync(join(directory, 'state')), false);
});

test('inWords gives the exact QEMU flags and mount line when a socket listens', () => {
  const event = { event: 'ready', target: { kind: 'vhost-user', path: "/run/a,b's.sock" } } as const;
  assert.equal(
    inWords(event, paintFor(terminal([], []))).text,
    `listening on /run/a,b's.sock
  QEMU (the guest's memory after size= and -m, the same in both):
    -object memory-backend-memfd,id=mem,size=1G,share=on \\
    -machine q35,memory-backend=mem \\
    -m 1G \\
    -chardev 'socket,id=metadata,path=/run/a,,b'\\''s.sock' \\
    -device vhost-user-fs-pci,chardev=metadata,tag=metadata,queue-size=1024
  in the guest:
    mkdir -p /run/metadata
    mount -t virtiofs -o nosuid,nodev metadata /run/metadata`,
  );
  const json = JSON.parse(asJson(event)) as { qemu: string[]; guest: string };
  assert.equal(json.qemu.length, 10);
  assert.equal(json.guest, 'mount -t virtiofs -o nosuid,nodev metadata /run/metadata');
});

test('inWords gives what Firecracker and Cloud Hypervisor need where a socket is for their guests', () => {
  const event = { event: 'ready', target: { kind: '9p', path: '/run/web.vsock_564' } } as const;
  const guest = 'mount -t porthole vsock:564 /run/metadata -o token-file=/run/porthole.token';
  assert.equal(
    inWords(event, paintFor(terminal([], []))).text,
    `listening for 9P clients on /run/web.vsock_564
  Cloud Hypervisor:
    --vsock cid=3,socket=/run/web.vsock
  Firecracker, PUT /vsock:
    {"guest_cid":3,"uds_path":"/run/web.vsock"}
  in the guest, with this boot's token (docs/9p.md):
    ${guest}`,
  );
  assert.deepEqual(JSON.parse(asJson(event)), {
    ...event,
    cloudHypervisor: ['--vsock', 'cid=3,socket=/run/web.vsock'],
    firecracker: { guest_cid: 3, uds_path: '/run/web.vsock' },
    guest,
  });
});

test('inWords gives the exact QEMU flags of a vsock device, and how either side is reached', () => {
  const event = { event: 'ready', target: { kind: 'vsock', path: '/run/web.vsock.vhost-user' } } as const;
  assert.equal(
    inWords(event, paintFor(terminal([], []))).text,
    `listening on /run/web.vsock.vhost-user
  QEMU (beside the guest's shared memory, as for --vhost-user):
    -chardev socket,id=vsock,path=/run/web.vsock.vhost-user \\
    -device vhost-user-vsock-pci,chardev=vsock
  to a port of the guest: connect to /run/web.vsock and send "CONNECT <port>\\n"
  from the guest to port P of the host (CID 2): listen on /run/web.vsock_P`,
  );
  assert.deepEqual((JSON.parse(asJson(event)) as { qemu: string[] }).qemu, [
    '-chardev',
    'socket,id=vsock,path=/run/web.vsock.vhost-user',
    '-device',
    'vhost-user-vsock-pci,chardev=vsock',
  ]);
});

test('inWords tells no more than 20 problems of a spec, and how many there are', () => {
  const { problems } = parseSpec(
    `porthole: 1\n${Array.from({ length: 25 }, (_, i) => `k${i}:`).join('\n')}`,
    'web.yaml',
  );
  const { to, text } = inWords({ event: 'rejected', error: new SpecError(problems) }, paintFor(terminal([], [])));
  assert.equal(to, 'err');
  assert.match(text, /unknown key "k19"[^]*\nand 5 more\n25 errors\nthe tree stays as it was$/);
});

test('inWords says what a reload changed, and that a spec is right again', () => {
  const event = { event: 'reloaded', revision: 4, applied: true } as const;
  const words = (changes: number): string => inWords({ ...event, changes }, paintFor(terminal([], []))).text;
  assert.equal(words(0), 'reloaded: the rules changed, revision 4');
  const mended = inWords({ event: 'mended', revision: 4 }, paintFor(terminal([], [])));
  assert.deepEqual(mended, { to: 'out', text: 'nothing wrong any more; the tree is as it was, revision 4' });
  assert.equal(words(1), 'reloaded: 1 path changed, revision 4');
});

test('paintFor colours a terminal only, and never with NO_COLOR', () => {
  const error = (more: Partial<Terminal>): string => paintFor(terminal([], [], more)).error('x');
  assert.notEqual(error({ errIsTerminal: true }), 'x');
  assert.equal(error({}), 'x');
  assert.equal(error({ errIsTerminal: true, environment: { NO_COLOR: '1' } }), 'x');
  assert.equal(error({ errIsTerminal: true, environment: { TERM: 'dumb' } }), 'x');
});

test('toExitCode has a code for every error', () => {
  assert.equal(toExitCode(new UsageError('x')), 2);
  assert.equal(toExitCode(new SpecError([])), 3);
  assert.equal(toExitCode(new Error('x')), 1);
  assert.equal(toExitCode('x'), 1);
});

test('porthole export ends quietly when its reader is gone', async () => {
  const child = execFile('sh', ['-c', './porthole export examples/web.yaml | head -n 1'], { cwd: checkout });
  let err = '';
  child.stderr!.on('data', (text: string) => {
    err += text;
  });
  await once(child, 'close');
  assert.equal(err, '');
});
