/** diod's own clients, which nobody here wrote, before `porthole serve --9p`. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ServedNinep } from '../ninep/served.ts';

/** `zero` and `null` are what diodload reads and writes, the others what dtop shows, as diod itself has them. */
const spec = `porthole: 1
metadata:
  instance: { id: i-1, hostname: web-1 }
  secrets: { db-password: hunter2 }
  zero: "${'0'.repeat(65_536)}"
  "null": ""
  tpools: "default 1 3 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 \\n"
  meminfo: "MemTotal: 24684084 kB\\nMemFree: 22707116 kB\\n"
  net.rpc.nfs: ""
  connections: ""
users: { postgres: 114, app: 1000 }
policy:
  - { path: /secrets/db-password, owner: postgres, mode: "0400" }
  - { path: "/null", mode: "0666" }
  - { path: "/*", mode: "0444" }
  - { path: /secrets, mode: "0711" }
  - { path: /instance, mode: "0755" }
`;

const topNames = '.changes connections guest instance meminfo net.rpc.nfs null secrets tpools zero'.split(' ');

const TIMEOUT_MS = 60_000;

interface Said {
  readonly exitCode: number | null;
  readonly text: string;
  readonly errorText: string;
}

const run = (command: string, args: readonly string[], uid = 0): Promise<Said> =>
  runIn(['setpriv', '--reuid', `${uid}`, '--regid', `${uid}`, '--clear-groups'], command, args);

async function runIn(place: readonly string[], command: string, args: readonly string[]): Promise<Said> {
  const child = spawn(place[0]!, [...place.slice(1), command, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: TIMEOUT_MS,
    cwd: '/',
  });
  let [text, errorText] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    errorText += chunk;
  });
  const [exitCode] = (await once(child, 'close')) as [number | null];
  return { exitCode, text, errorText };
}

const names = (text: string): string[] => text.trim().split('\n').toSorted();

describe('diod’s clients', () => {
  let served: ServedNinep;
  /** The same, for clients that can't ask for a privileged port. */
  let privilegedServed: ServedNinep;
  /** Where the server is, for its three ways to be reached. */
  let unix: string[];
  let privileged: string[];
  let unprivileged: string[];

  before(async () => {
    served = await ServedNinep.start(spec);
    // The socket's own mode is what keeps others away.
    chmodSync(path.dirname(served.socket), 0o755);
    unix = ['-s', served.socket];
    unprivileged = ['-s', `127.0.0.1:${served.port}`];
    privileged = ['-p', ...unprivileged];
    privilegedServed = await ServedNinep.start(spec, { ownNetwork: true });
  });
  after(async () => {
    await served[Symbol.asyncDispose]();
    await privilegedServed[Symbol.asyncDispose]();
  });

  test('diodls lists the tree by unix socket and by TCP', async () => {
    for (const where of [unix, privileged]) {
      const { exitCode, text, errorText } = await run('diodls', [...where, '-a', '/', '/']);
      assert.deepEqual([exitCode, errorText], [0, '']);
      assert.deepEqual(names(text), topNames);
      const long = await run('diodls', [...where, '-l', '-a', '/', 'instance']);
      assert.match(long.text, /^-r--r--r--\S* +1 root +root +5 .* hostname$/m);
    }
  });

  test('diodcat reads a secret for its owner and root, and for nobody else', async () => {
    for (const where of [unix, privileged])
      for (const [uid, isTheirs] of [
        [0, true],
        [114, true],
        [1000, false],
        [2000, false],
      ] as const) {
        const said = await run('diodcat', [...where, '-u', `${uid}`, '-a', '/', 'secrets/db-password']);
        const expected = isTheirs ? [0, 'hunter2'] : [1, ''];
        assert.deepEqual([said.exitCode, said.text], expected, `uid ${uid}: ${said.errorText}`);
        if (!isTheirs) assert.match(said.errorText, /open secrets\/db-password: Permission denied/);
        const open = await run('diodcat', [...where, '-u', `${uid}`, '-a', '/', 'instance/hostname']);
        assert.equal(open.text, 'web-1');
      }
  });

  test('uid 1000 that connects by itself and attaches as root gets nothing', async () => {
    const asRoot = ['-u', '0', '-a', '/', 'secrets/db-password'];
    const byTcp = await run('diodcat', [...unprivileged, ...asRoot], 1000);
    assert.deepEqual([byTcp.exitCode, byTcp.text], [1, '']);
    assert.match(byTcp.errorText, /attaching to aname='\/': Permission denied/);
    // A port below 1024 is what it can't have.
    assert.notEqual((await run('diodcat', [...privileged, ...asRoot], 1000)).exitCode, 0);
    const byUnix = await run('diodcat', [...unix, ...asRoot], 1000);
    assert.deepEqual([byUnix.exitCode, byUnix.text], [1, '']);
    assert.match(byUnix.errorText, /connect .*: Permission denied/);
    // Root's own programs are believed by their port, and by nothing else.
    assert.match((await run('diodcat', [...unprivileged, ...asRoot])).errorText, /attaching to .* Permission denied/);
  });

  test('diodload reads, writes and asks for attributes without an error, by unix socket and by TCP', async (t) => {
    const { inside, port } = privilegedServed;
    for (const [name, where] of [
      ['unix', unix],
      ['TCP', ['-s', `127.0.0.1:${port}`]],
    ] as const)
      for (const args of [[], ['-g']]) {
        const load = [...where, '-n', '8', '-r', '1', ...args];
        const { exitCode, text, errorText } = await runIn(name === 'TCP' ? inside : ['env'], 'diodload', load);
        const said = /diodload: (\d+) ops\/s/.exec(text + errorText);
        assert.ok(exitCode === 0 && said !== null && Number(said[1]) > 0, `${exitCode}: ${text}${errorText}`);
        assert.equal((text + errorText).trim().split('\n').length, 1, 'it says nothing but the figure');
        t.diagnostic(`${name}: ${(text + errorText).trim()}`);
      }
  });

  /** Whether it shows a server as living, whose address stands in its arguments. */
  async function assertLives(place: readonly string[], where: string): Promise<void> {
    const dtop = spawn(place[0]!, [...place.slice(1), 'script', '-qec', `dtop ${where} -P 0.1`, '/dev/null'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: { ...process.env, TERM: 'xterm' },
      timeout: 20_000,
    });
    // Where only the digit changes, curses sends no more than that.
    const lives = (text: string): boolean => text.includes('Live servers: 1/1') || text.includes('\u001B[9;72H1');
    let shown = '';
    for await (const chunk of dtop.stdout!.setEncoding('utf8')) {
      shown += chunk as string;
      if (lives(shown)) break;
    }
    const closed = once(dtop, 'close');
    dtop.stdin!.end('q');
    dtop.kill();
    await closed;
    assert.ok(lives(shown), shown.slice(-4000));
  }

  test('dtop counts it as a server that lives, by unix socket and by TCP', async () => {
    await assertLives(['env'], `-h ${served.socket}`);
    await assertLives(privilegedServed.inside, `-h 127.0.0.1 -p ${privilegedServed.port}`);
  });
});
