/** What programs see of an agent whose server is cut off or talks nonsense (slow: `remote.test.ts`); and while others ask it too much. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { until } from '../until.ts';
import { Running, serving } from './agent-process.ts';

const directory = mkdtempSync(path.join(tmpdir(), 'porthole-away-'));
const at = (name: string): string => path.join(directory, name);
const mountPath = at('mnt');
/** The agent's own network: a pair of devices, of which this is the end here. */
const network = `ph${process.pid}`;
const [here, there] = [`${network}a`, `${network}b`];
/** Of TEST-NET-2 (RFC 5737): nobody else's. */
const addresses = { here: '198.51.100.1', there: '198.51.100.2' };
const hasNetworks = spawnSync('ip', ['netns', 'add', network]).status === 0;
const skip = hasNetworks ? false : 'no network namespace can be made here';

const spec = `porthole: 1
metadata:
  instance: { hostname: web-1 }
  secrets: { key: a secret, of-user: a user's }
policy:
  - { path: /secrets/of-user, owner: 1000, mode: "0400" }
`;

/** What stands between agent and server, and what it does to requests that are no streams. */
type Manner = 'passes' | 'talks nonsense' | 'holds what uid 1000 asks';
let manner: Manner = 'passes';
const held: (() => void)[] = [];

const pass = (incoming: IncomingMessage, body: Buffer, outgoing: ServerResponse): void => {
  const { method, url, headers } = incoming;
  const on = request({ socketPath: at('server.sock'), method, path: url, headers }, (answer) => {
    outgoing.writeHead(answer.statusCode!, answer.headers);
    answer.pipe(outgoing);
    outgoing.once('close', () => answer.destroy());
  });
  on.on('error', () => outgoing.destroy());
  on.end(body);
};

const between = createServer(async (incoming, outgoing) => {
  const parts: Buffer[] = [];
  for await (const part of incoming) parts.push(part as Buffer);
  const body = Buffer.concat(parts);
  if (manner === 'holds what uid 1000 asks' && body.includes('"uid":1000'))
    held.push(() => pass(incoming, body, outgoing));
  else if (manner === 'talks nonsense') outgoing.end('<html>Gateway</html>');
  else pass(incoming, body, outgoing);
});

const letGo = (): void => {
  manner = 'passes';
  for (const go of held.splice(0)) go();
};

/** A program of its own: this process would wait for itself if it hung. */
const run = async (script: string): Promise<{ readonly out: string; readonly err: string }> => {
  const child = spawn('sh', ['-c', script], { cwd: mountPath });
  const said = { out: '', err: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said.out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said.err += text;
  });
  await until(`"${script}" to end`, () => child.exitCode !== null && child.stdout.readableEnded);
  return said;
};

let server: Running;
let agent: Running;
const children: ChildProcess[] = [];

before(async () => {
  if (!hasNetworks) return;
  const ip = (...args: readonly string[]): void => void execFileSync('ip', args);
  ip('link', 'add', here, 'type', 'veth', 'peer', 'name', there, 'netns', network);
  ip('address', 'add', `${addresses.here}/30`, 'dev', here);
  ip('link', 'set', here, 'up');
  ip('-n', network, 'address', 'add', `${addresses.there}/30`, 'dev', there);
  ip('-n', network, 'link', 'set', there, 'up');
  writeFileSync(at('vm.yaml'), spec);
  server = await serving(directory);
  await new Promise<void>((resolve) => {
    between.listen(0, addresses.here, resolve);
  });
  const { port } = between.address() as AddressInfo;
  const args = ['agent', '--server', `http://${addresses.here}:${port}`, '--mount', 'mnt'];
  agent = new Running(directory, args, {}, new Map(), ['nsenter', `--net=/run/netns/${network}`]);
  await agent.told('mounted');
});

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await agent?.stop();
  between.closeAllConnections();
  between.close();
  await server?.stop();
  if (hasNetworks) execFileSync('ip', ['netns', 'del', network]);
  rmSync(directory, { recursive: true, force: true });
});

const goesOn = async (): Promise<void> => {
  assert.equal((await run('cat secrets/key')).out, 'a secret');
  assert.equal((await run('echo on >guest/log && cat guest/log')).out, 'on\n');
};

/** Whether the kernel waits for who serves a mount of FUSE to answer this process. */
const waitsInMount = (pid: number): boolean => {
  const where = readFileSync(`/proc/${pid}/wchan`, 'utf8');
  return /request_wait_answer|fuse/.test(where);
};

test('a uid that asks too much shuts out nobody', { skip }, async () => {
  manner = 'holds what uid 1000 asks';
  for (let i = 0; i < 60; i++)
    children.push(
      spawn('setpriv', ['--reuid=1000', '--regid=1000', '--clear-groups', 'cat', 'secrets/of-user'], {
        cwd: mountPath,
        stdio: 'ignore',
      }),
    );
  await until('all of them to wait', () => children.every(({ pid }) => waitsInMount(pid!)));
  await until('its share to be with the server', () => held.length === 8);
  await goesOn();
  assert.equal(held.length, 8, 'questions with the server');
  letGo();
  await until('all of them to end', () => children.every(({ exitCode }) => exitCode === 0));
});

test('a server that is cut off: what everybody may read goes on, all else is EIO', {
  skip,
}, async () => {
  execFileSync('ip', ['link', 'set', here, 'down']);
  const [open, secret, written] = await Promise.all([
    run('cat instance/hostname'),
    run('cat secrets/key'),
    run('echo x >guest/log'),
  ]);
  assert.equal(open.out, 'web-1');
  assert.match(secret.err, /Input\/output error/);
  assert.match(written.err, /I\/O error|Input\/output error/);
  execFileSync('ip', ['link', 'set', here, 'up']);
  await until('the link', async () => (await run('cat secrets/key')).out === 'a secret');
  await goesOn();
});

test('a server that talks nonsense: what everybody may read goes on, all else is EIO', { skip }, async () => {
  manner = 'talks nonsense';
  between.closeAllConnections();
  await agent.told('cut-off');
  assert.equal((await run('cat instance/hostname')).out, 'web-1');
  assert.match((await run('cat secrets/key')).err, /Input\/output error/);
  assert.match((await run('echo x >guest/log')).err, /I\/O error|Input\/output error/);
  manner = 'passes';
  await until('it to make sense', async () => (await run('cat secrets/key')).out === 'a secret');
  await goesOn();
});
