import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { promisify } from 'node:util';
import { DevFuse, FuseSession, RequestMemory } from '../../src/fuse/index.ts';
import { POLLIN, pollOne } from '../../src/sys/index.ts';
import { ways } from '../../src/tree/index.ts';
import { type Content, World } from '../tree/world.ts';
import { until } from '../until.ts';

const LIMIT_MS = 120_000;

/** Serves until `isOver`, or for too long. */
async function serveUntil(transport: DevFuse, isOver: () => boolean): Promise<void> {
  const started = performance.now();
  while (!isOver() && performance.now() - started < LIMIT_MS) {
    pollOne(transport.fd, POLLIN, 5);
    while (transport.process(64)) continue;
    await setImmediate();
  }
}

/** Mounts `content`, runs `script` in bash there and serves it; `said` is told of every line of its output. */
async function serve(content: Content, script: string, said: (line: string, world: World) => void = () => {}) {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-mount-'));
  const world = new World({ content });
  const transport = DevFuse.mount(directory);
  const session = new FuseSession(world.fileSystem(ways.mount), {
    transport: 'dev-fuse',
    notifier: transport,
    clock: world.clock,
  });
  transport.attach(session);
  const child = spawn('bash', ['-c', `exec 2>&1; cd "$0" || exit 9; ${script}`, directory], {
    env: { ...process.env, NODE: process.execPath },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  const run = { ended: false };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
    for (const line of text.split('\n').filter(Boolean)) said(line, world);
  });
  child.on('close', () => {
    run.ended = true;
  });
  await serveUntil(transport, () => run.ended);
  if (!run.ended) child.kill('SIGKILL');
  transport.close();
  rmdirSync(directory);
  assert.ok(run.ended, `the script did not end within ${LIMIT_MS} ms; it said:\n${output}`);
  assert.equal(session.bugs, 0);
  return { output, session };
}

test('a mount shows a change made outside to the next open', async () => {
  const { output, session } = await serve(
    { instance: { id: 'i-1' } },
    'cd instance; stat -c %s id; cat id; echo; for i in $(seq 500); do [ "$(cat id)" = i-22222 ] && break; done; cat id; stat -c " %s" id',
    (line, world) => {
      if (line === 'i-1') world.load({ content: { instance: { id: 'i-22222' } } });
    },
  );
  assert.equal(output, '3\ni-1\ni-22222 7\n');
  assert.ok(session.opensCached > 0);
});

test('a watcher of a file sees that it was removed outside', async () => {
  const watch = `require('fs').watch('instance/id', (event) => { console.log(event); process.exit() }); console.log('watching')`;
  const { output } = await serve({ instance: { id: 'i-1' } }, `"$NODE" -e "${watch}"`, (line, world) => {
    if (line === 'watching') world.load({ content: { instance: {} } });
  });
  assert.equal(output, 'watching\nrename\n');
});

test('notifications do not stop a mount whose directories are being written', async () => {
  let round = 0;
  const { output } = await serve(
    { guest: {}, instance: { a: '0', b: '0' } },
    'for w in 1 2 3 4; do (for i in $(seq 60); do echo $i > guest/$w; cat instance/a instance/b > /dev/null; cat instance/absent$i 2> /dev/null; rm guest/$w; [ $((i % 10)) = 0 ] && echo turn; done) & done; wait; echo done',
    (line, world) => {
      if (line !== 'turn') return;
      round++;
      const b = round % 2 === 0 ? { b: String(round) } : {};
      world.load({ content: { guest: {}, instance: { a: 'x'.repeat(round), ...b } } });
    },
  );
  assert.match(output, /done\n$/);
  assert.ok(round > 10, `only ${round} changes`);
});

test('a mount appends where fcntl(2) has set O_APPEND, and not where it has cleared it', async () => {
  const script =
    'use Fcntl; sysopen(F, "guest/log", O_RDWR|O_CREAT|O_APPEND) or die; syswrite F, "hello"; fcntl(F, F_SETFL, O_RDWR); ' +
    'sysseek(F, 0, 0); syswrite F, "J"; fcntl(F, F_SETFL, O_APPEND); sysseek(F, 0, 0); syswrite F, "!"';
  const { output } = await serve({ guest: {} }, `perl -e '${script}' && cat guest/log`);
  assert.equal(output, 'Jello!');
});

/** States of its threads, and of its children and theirs, by the letters of proc(5); of those that end meanwhile maybe none. */
const statesOf = (pid: number): string => {
  const children = (task: string) => readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ');
  const stateOf = (of: string) => /\) (.)/.exec(readFileSync(`${of}/stat`, 'utf8'))?.[1] ?? '';
  try {
    const tasks = readdirSync(`/proc/${pid}/task`);
    return [
      ...tasks.map((task) => stateOf(`/proc/${pid}/task/${task}`)),
      ...tasks
        .flatMap(children)
        .filter(Boolean)
        .map((child) => statesOf(Number(child))),
    ].join('');
  } catch {
    return '';
  }
};

test('a mount ends with its process, also where a notification waits for who waits for an answer', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-mount-'));
  const server = spawn(process.execPath, [path.join(import.meta.dirname, 'stops-serving.ts'), directory], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const said = (words: string) => until(words, () => output.includes(words));
  let output = '';
  server.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  try {
    await said('serves');
    await promisify(execFile)('stat', [path.join(directory, 'instance/id')]);
    server.stdin.write('\n');
    await said('stopped');
    // It has the directory's lock, and waits for an answer.
    const maker = spawn('mkdir', [path.join(directory, 'instance/new')], { stdio: ['ignore', 'ignore', 'pipe'] });
    const failed = text(maker.stderr);
    await until('the notification to wait', () => statesOf(server.pid!).includes('D'));
    server.kill('SIGKILL');
    await until('the server to be gone', () => server.signalCode === 'SIGKILL');
    await until('who waits to be told', () => maker.exitCode === 1);
    assert.match(await failed, /Software caused connection abort|not connected/);
  } finally {
    server.kill('SIGKILL');
    for (const how of ['-f', '-l']) spawnSync('umount', [how, directory]);
    rmdirSync(directory);
  }
});

test('a mount that ends lets whoever waits for an answer go, though a notification waits for its lock', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-mount-'));
  const world = new World({ content: { instance: { id: 'i-1', note: 'x' } } });
  const fileSystem = world.fileSystem(ways.mount);
  let asked = 0;
  // Never answered: for as long the kernel has the directory locked.
  fileSystem.mkdir = () => {
    asked++;
  };
  using memory = RequestMemory.create();
  const journal = { begins: () => {}, ends: () => {}, gives: () => {}, shown: () => {} };
  const transport = DevFuse.mount(directory, { kept: { memory, journal } });
  transport.attach(new FuseSession(fileSystem, { transport: 'dev-fuse', notifier: transport, clock: world.clock }));
  const child = spawn('sh', ['-c', 'cat "$0/instance/note"; exec mkdir "$0/instance/made" 2>&1', directory]);
  await serveUntil(transport, () => asked > 0);
  assert.equal(asked, 1);
  world.load({ content: { instance: { id: 'i-1' } } });
  await until('the notification to wait', () => statesOf(process.pid).includes('D'));
  transport.close();
  await until('the program to go on', () => child.exitCode !== null);
  assert.equal(child.exitCode, 1);
  rmdirSync(directory);
});
