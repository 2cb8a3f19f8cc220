import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline/promises';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { close, connectUnix, listenUnix } from '../sys/index.ts';
import { EIO } from '../wire/index.ts';
import { type ServeEvent, type ServeOptions, serve } from './serve.ts';

/** What takes a moment may take long on a machine that is busy with other things. */
const patienceMs = 60_000;
const fake = [process.execPath, join(import.meta.dirname, '../../test/host/fake-device.ts')] as const;

const specText = (settings: string, more = ''): string => `porthole: 1
metadata:
  instance: { id: i-1, note: { file: note.txt }, latest: { symlink: id } }
  app: { settings: ${settings} }
  secrets: { token: t-1 }
users: { app: 1000 }
policy:
  - { path: /app/settings, owner: app, mode: "0644" }
  - { path: /secrets/token, owner: app, mode: "0400", once: true }
${more}`;

class Stage {
  readonly directory: string;
  readonly file: string;
  readonly socket: string;
  readonly events: ServeEvent[] = [];

  constructor(t: TestContext) {
    this.directory = mkdtempSync(join(tmpdir(), 'porthole-serve-'));
    t.after(() => rmSync(this.directory, { recursive: true, force: true }));
    this.file = join(this.directory, 'web.yaml');
    this.socket = join(this.directory, 'web.sock');
    this.write(specText('old'));
    writeFileSync(join(this.directory, 'note.txt'), 'one');
  }

  write(text: string): void {
    writeFileSync(`${this.file}.new`, text);
    renameSync(`${this.file}.new`, this.file);
  }

  async serve(t: TestContext, more: Partial<ServeOptions> = {}) {
    const server = await serve({
      file: this.file,
      vhostUser: [this.socket],
      mounts: [],
      writeStdout: () => true,
      onEvent: (event) => this.events.push(event),
      deviceCommand: fake,
      keeper: false,
      applyWithinMs: patienceMs,
      ...more,
    });
    t.after(() => server.stop());
    return server;
  }

  /** Asks the fake device process; undefined when nobody answers. */
  async ask(command: object): Promise<Record<string, unknown> | undefined> {
    const socket = connect(this.socket);
    try {
      await once(socket, 'connect');
      const lines = createInterface(socket);
      const line = once(lines, 'line');
      socket.write(`${JSON.stringify(command)}\n`);
      const [text] = (await Promise.race([line, once(socket, 'close').then(() => [undefined])])) as [
        string | undefined,
      ];
      return text === undefined ? undefined : (JSON.parse(text) as Record<string, unknown>);
    } catch {
      return undefined;
    } finally {
      socket.destroy();
    }
  }

  async get(path: string): Promise<unknown> {
    return (await this.ask({ get: path }))?.['value'];
  }

  async mutate(mutation: object): Promise<Record<string, unknown>> {
    const caller = { uid: 1000, gid: 1000, pid: 1 };
    const answer = await this.ask({ mutation: { caller, ...mutation } });
    assert(answer, 'no answer');
    return answer;
  }

  async ino(path: string): Promise<number> {
    return (await this.ask({ get: path }))?.['ino'] as number;
  }

  find<K extends ServeEvent['event']>(event: K): Extract<ServeEvent, { event: K }> | undefined {
    return this.events.find((found): found is Extract<ServeEvent, { event: K }> => found.event === event);
  }
}

const write = (ino: number, data: string) => ({
  op: 'write',
  ino,
  offset: 0,
  data,
  append: false,
  truncate: true,
  grantedAtOpen: true,
});

test('serve gives a device process the tree and commits what it sends', async (t) => {
  const stage = new Stage(t);
  const server = await stage.serve(t);
  assert.equal(await stage.get('/instance/id'), 'i-1');
  assert.equal(await stage.get('/instance/note'), 'one');
  assert.equal(await stage.get('/secrets/token'), null);
  const settings = await stage.ino('/app/settings');
  const outcome = await stage.mutate(write(settings, 'new'));
  assert.equal(outcome['errno'], 0);
  assert.equal(await stage.get('/app/settings'), 'new');
  const burned = await stage.mutate({ op: 'burn', ino: await stage.ino('/secrets/token') });
  assert.deepEqual([burned['errno'], burned['value']], [0, 't-1']);
  assert.deepEqual(await stage.ask({ do: 'environment' }), { environment: ['NODE_COMPILE_CACHE'], arguments: [] });
  await server.stop();
  assert.equal(existsSync(stage.socket), false);
  assert.deepEqual(
    stage.events.map(({ event }) => event),
    ['loaded', 'trouble', 'ready', 'stopped'],
  );
});

test('serve refuses a mutation when the guest has been told already that it failed', async (t) => {
  const stage = new Stage(t);
  await stage.serve(t);
  const mutation = { caller: { uid: 1000, gid: 1000, pid: 1 }, ...write(await stage.ino('/app/settings'), 'late') };
  const outcome = await stage.ask({ mutation, expired: true });
  assert.equal(outcome?.['errno'], EIO);
  assert.notEqual(await stage.get('/app/settings'), 'late');
});

test('serve loads the file again when it changes, and keeps the old tree when it is wrong', async (t) => {
  const stage = new Stage(t);
  await stage.serve(t);
  stage.write(specText('other'));
  await until('the new value', async () => (await stage.get('/app/settings')) === 'other');
  writeFileSync(join(stage.directory, 'note.txt'), 'two');
  await until('the new note', async () => (await stage.get('/instance/note')) === 'two');
  const reloads = () => stage.events.filter((found) => found.event === 'reloaded');
  // The device process serves a tree before it says so.
  await until('word of both', () => reloads().length >= 2);
  assert.deepEqual(
    reloads().map(({ applied, changes }) => ({ applied, changes })),
    [
      { applied: true, changes: 1 },
      { applied: true, changes: 1 },
    ],
  );
  stage.write(specText('wrong', 'polcy: []\n'));
  const rejected = await until('the refusal', () => stage.find('rejected'));
  assert.match(rejected.error.message, /unknown key "polcy"\n[^]*did you mean "policy"\?/);
  assert.equal(await stage.get('/app/settings'), 'other');
  stage.write(specText('right'));
  await until('the mended value', async () => (await stage.get('/app/settings')) === 'right');
});

test('serve tells when a spec that was wrong is right again, though nothing changed', async (t) => {
  const stage = new Stage(t);
  await stage.serve(t);
  stage.write(specText('old', 'polcy: []\n'));
  await until('the refusal', () => stage.find('rejected'));
  stage.write(specText('old'));
  const { revision } = await until('the reload', () => stage.find('mended'));
  assert.deepEqual([revision, stage.find('reloaded')], [1, undefined]);
});

test('serve loads the file again when a value’s file that was missing comes', async (t) => {
  const stage = new Stage(t);
  await stage.serve(t);
  stage.write(specText('old').replace('note.txt', 'later.txt'));
  const rejected = await until('the refusal', () => stage.find('rejected'));
  assert.match(rejected.error.message, /later\.txt" failed: there is no such file/);
  writeFileSync(join(stage.directory, 'later.txt'), 'late');
  await until('the value', async () => (await stage.get('/instance/note')) === 'late');
});

test('Server.applied and Server.statistics answer for the device process that there is', async (t) => {
  const stage = new Stage(t);
  const server = await stage.serve(t);
  const { revision } = server.tree.authority.snapshot;
  assert.equal(await server.applied(revision, patienceMs), true);
  assert.equal(await server.applied(revision + 1, 50), false);
  assert.deepEqual(await server.statistics(patienceMs), { asked: 1 });
  assert.deepEqual(await server.statistics(patienceMs), { asked: 2 });
  const next = server.applied(revision + 1, patienceMs);
  stage.write(specText('other'));
  assert.equal(await next, true);
  await server.stop();
  assert.equal(await server.statistics(), undefined);
});

test('serve keeps what guests wrote, inode numbers and burned values when it starts again', async (t) => {
  const stage = new Stage(t);
  const stateDirectory = join(stage.directory, 'state');
  const first = await stage.serve(t, { stateDirectory });
  const settings = await stage.ino('/app/settings');
  const guest = await stage.ino('/guest');
  await stage.mutate(write(settings, 'by guest'));
  const made = await stage.mutate({ op: 'create', parentIno: guest, name: 'mine', mode: 0o600, umask: 0 });
  await stage.mutate(write(made['ino'] as number, 'content'));
  await stage.mutate({ op: 'burn', ino: await stage.ino('/secrets/token') });
  const before = await stage.ask({ get: '/guest/mine' });
  await first.stop();

  const second = await stage.serve(t, { stateDirectory });
  const after = await stage.ask({ get: '/guest/mine' });
  assert.deepEqual([after?.['value'], after?.['ino']], ['content', made['ino']]);
  assert.ok(Number(after?.['revision']) >= Number(before?.['revision']));
  assert.equal(await stage.get('/instance/latest'), 'id');
  assert.deepEqual([await stage.get('/app/settings'), await stage.ino('/app/settings')], ['by guest', settings]);
  const again = await stage.mutate({ op: 'burn', ino: await stage.ino('/secrets/token') });
  assert.notEqual(again['errno'], 0);
  await second.stop();

  stage.write(specText('changed outside'));
  await stage.serve(t, { stateDirectory });
  assert.deepEqual([await stage.get('/app/settings'), await stage.ino('/app/settings')], ['changed outside', settings]);
  assert.equal(await stage.get('/guest/mine'), 'content');
});

test('serve says why a device process ended and starts another', async (t) => {
  const stage = new Stage(t);
  const server = await stage.serve(t);
  const pid = server.devicePid;
  await stage.ask({ do: 'exit' });
  const ended = await until('the end', () => stage.find('device-ended'));
  assert.equal(ended.reason, 'it ended with exit code 7; its last words:\n  the fake gives up');
  await until('the next device process', async () => (await stage.get('/instance/id')) === 'i-1');
  assert.notEqual(server.devicePid, pid);
  stage.events.length = 0;
  await stage.ask({ do: 'lie' });
  const lied = await until('the end', () => stage.find('device-ended'));
  assert.equal(
    lied.reason,
    'it said what no device process may (message code 200 is not known); a guest may have taken it over',
  );
});

test('serve ends a device process that writes nonsense into its audit ring, and gives the next one another', async (t) => {
  const stage = new Stage(t);
  const audit = join(stage.directory, 'audit.jsonl');
  const server = await stage.serve(t, { audit, stateDirectory: join(stage.directory, 'state') });
  const pid = server.devicePid;
  await stage.ask({ do: 'scribble' });
  const lied = await until('the end', () => stage.find('device-ended'));
  assert.equal(
    lied.reason,
    'it said what no device process may (its audit ring: a record is of kind 0); a guest may have taken it over',
  );
  await until('the next device process', async () => (await stage.get('/instance/id')) === 'i-1');
  assert.notEqual(server.devicePid, pid);
  const burned = await stage.mutate({ op: 'burn', ino: await stage.ino('/secrets/token') });
  assert.equal(burned['errno'], 0);
  assert.equal(readFileSync(audit, 'utf8').split('\n').length, 2);
});

test('serve keeps its old log when the new one cannot be opened', async (t) => {
  const stage = new Stage(t);
  const logs = join(stage.directory, 'logs');
  mkdirSync(logs);
  const audit = join(logs, 'audit.jsonl');
  const server = await stage.serve(t, { audit });
  renameSync(logs, `${logs}.old`);
  server.reopenAudit();
  const trouble = stage.events.flatMap((event) => (event.event === 'trouble' ? [event.what] : [])).at(-1)!;
  assert.match(
    trouble,
    /^opening the audit log ".*" failed: there is no directory .*; records go where they went before$/,
  );
  await stage.mutate({ op: 'burn', ino: await stage.ino('/secrets/token') });
  assert.equal(readFileSync(join(`${logs}.old`, 'audit.jsonl'), 'utf8').split('\n').length, 2);
});

test('serve refuses and leaves nothing behind when a target cannot be served', async (t) => {
  const stage = new Stage(t);
  const refusal = async (more: Partial<ServeOptions>): Promise<string> => {
    try {
      await stage.serve(t, more);
    } catch (error) {
      return (error as Error).message.replaceAll(stage.directory, 'DIR');
    }
    throw new assert.AssertionError({ message: 'it was served' });
  };
  const mount = join(stage.directory, 'mnt');
  assert.equal(await refusal({ mounts: [mount] }), 'there is no directory "DIR/mnt" to mount on; make it first');
  mkdirSync(mount);
  assert.equal(await refusal({ mounts: [mount] }), 'serving on "DIR/mnt" failed: the fake mounts nothing');
  assert.equal(existsSync(stage.socket), false);
  assert.equal(
    await refusal({ vhostUser: [stage.file] }),
    '"DIR/web.yaml" is there already and no socket; give another path, or remove it',
  );
  assert.equal(
    await refusal({ vhostUser: [join(stage.directory, 'x', 's')] }),
    'there is no directory "DIR/x" for the socket; make it first',
  );
  assert.match(
    await refusal({ vhostUser: [join(stage.directory, 'x'.repeat(100))] }),
    /more than 107 bytes; give a shorter one$/,
  );
  for (const where of ['tcp:0.0.0.0:5640', 'tcp:192.0.2.1', 'tcp:[::]:5640'])
    assert.match(
      await refusal({ ninep: [where] }),
      /could be reached from other machines, in clear; say who may connect by --9p-allow ADDRESS, or listen on/,
    );
  for (const where of ['tcp:', 'tcp:localhost', 'tcp:::1', 'tcp:[127.0.0.1]', 'tcp:127.0.0.1:x', 'tcp:[::1%lo]'])
    assert.match(await refusal({ ninep: [where] }), /^"tcp:.*" is no TCP address; write tcp:127\.0\.0\.1,/, where);
  for (const port of [0, 65_536])
    assert.equal(
      await refusal({ ninep: [`tcp:127.0.0.1:${port}`] }),
      `the port in "tcp:127.0.0.1:${port}" must be 1 to 65535`,
    );
  for (const [allowed, words] of [
    ['192.0.2.0/33', 'the prefix length in "192.0.2.0/33" must be 0 to 32'],
    ['example.org', '"example.org" is no address or prefix; write 192.0.2.7 or 192.0.2.0/24'],
    ['::1/1/1', '"::1/1/1" is no address or prefix; write 192.0.2.7 or 192.0.2.0/24'],
  ] as const)
    assert.equal(await refusal({ ninep: ['tcp:127.0.0.1'], ninepAllow: [allowed] }), words);
  assert.equal(await refusal({ ninep: ['vsock:no'] }), '"vsock:no" is no vsock port; write vsock:564');
  assert.equal(
    await refusal({ vhostUser: [stage.socket, stage.socket] }),
    '"DIR/web.sock" is given twice; give it once',
  );
  assert.match(await refusal({ socketGroup: 'no-such-group' }), /^there is no group "no-such-group" on this machine/);
  assert.match(
    await refusal({ deviceCommand: [join(stage.directory, 'none')] }),
    /^the device process could not start: starting it failed: spawn .* ENOENT$/,
  );
  assert.equal(
    await refusal({ audit: join(stage.directory, 'x', 'log') }),
    'opening the audit log "DIR/x/log" failed: there is no directory "DIR/x"; make it first',
  );
  assert.equal(
    await refusal({ audit: mount }),
    'opening the audit log "DIR/mnt" failed: EISDIR; give a file that you may write',
  );

  const other = createServer();
  other.listen(stage.socket);
  await once(other, 'listening');
  t.after(() => other.close());
  assert.equal(await refusal({}), 'another process listens on "DIR/web.sock"; stop it, or give another path');
});

test('serve appends audit records as JSON lines to a private file', async (t) => {
  const stage = new Stage(t);
  const audit = join(stage.directory, 'audit.jsonl');
  await stage.serve(t, { audit });
  const ino = await stage.ino('/secrets/token');
  const refused = await stage.mutate({ op: 'burn', ino, caller: { uid: 1001, gid: 1001, pid: 7 } });
  assert.notEqual(refused['errno'], 0);
  await stage.mutate({ op: 'burn', ino });
  const records = readFileSync(audit, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.deepEqual(
    records.map(({ vm, way, operation, path, uid, verdict, errno }) => ({
      vm,
      way,
      operation,
      path,
      uid,
      verdict,
      errno,
    })),
    [
      {
        vm: 'web',
        way: 'virtiofs',
        operation: 'burn',
        path: '/secrets/token',
        uid: 1001,
        verdict: 'denied',
        errno: 'EACCES',
      },
      {
        vm: 'web',
        way: 'virtiofs',
        operation: 'burn',
        path: '/secrets/token',
        uid: 1000,
        verdict: 'allowed',
        errno: undefined,
      },
    ],
  );
});

test('serve tells that a restart forgets which values were read once, where nothing is kept', async (t) => {
  const told = (stage: Stage) =>
    stage.events.flatMap((event) => (event.event === 'trouble' && event.what.includes('once') ? [event.what] : []));
  const forgetful = new Stage(t);
  await forgetful.serve(t);
  assert.equal(told(forgetful).length, 1);
  const keeping = new Stage(t);
  await keeping.serve(t, { stateDirectory: join(keeping.directory, 'state') });
  assert.deepEqual(told(keeping), []);
});

test('serve leaves the socket of another process alone that listens there first', async (t) => {
  const stage = new Stage(t);
  let other = -1;
  t.after(() => close(other));
  const serving = stage.serve(t, {
    // Between the check of the path and the start of the device process.
    onEvent: ({ event }) => {
      if (event === 'loaded') other = listenUnix(stage.socket);
    },
    deviceCommand: [process.execPath, join(import.meta.dirname, '../device/main.ts')],
  });
  await assert.rejects(serving, { code: 'CANNOT_SERVE', message: /another process listens on/ });
  const connected = connectUnix(stage.socket);
  assert.ok(connected >= 0, 'the socket is gone');
  close(connected);
});
