import assert from 'node:assert/strict';
import { execFile, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { promisify } from 'node:util';
import { DevFuse, FuseSession } from '../../src/fuse/index.ts';
import { POLLIN, pollOne } from '../../src/sys/index.ts';
import { ways } from '../../src/tree/index.ts';
import { type Content, World } from '../tree/world.ts';
import { until } from '../until.ts';

const LIMIT_MS = 120_000;

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
  const started = performance.now();
  while (!run.ended && performance.now() - started < LIMIT_MS) {
    pollOne(transport.fd, POLLIN, 5);
    while (transport.process(64)) continue;
    await setImmediate();
  }
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

/** States of its threads, and of its children and theirs, by the letters of proc(5). */
const statesOf = (pid: number): string => {
  const tasks = readdirSync(`/proc/${pid}/task`);
  const children = (task: string) => readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ');
  const stateOf = (of: string) => /\) (.)/.exec(readFileSync(`${of}/stat`, 'utf8'))?.[1] ?? '';
  return [
    ...tasks.map((task) => stateOf(`/proc/${pid}/task/${task}`)),
    ...tasks
      .flatMap(children)
      .filter(Boolean)
      .map((child) => statesOf(Number(child))),
  ].join('');
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
