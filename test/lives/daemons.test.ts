/** One host daemon after another at the link of one device process: reads go on, writes wait and happen once. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { appendFile, readFile, writeFile } from 'node:fs/promises';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { encodeMessage, monotonicMs, readerOnHost, type ToDevice, type ToHost } from '../../src/device/index.ts';
import { openStores } from '../../src/store/index.ts';
import { type Authority, ways } from '../../src/tree/index.ts';
import { serve } from '../host/served-store.ts';
import { temporaryStore } from '../store/temporary.ts';
import { World } from '../tree/world.ts';
import { until } from '../until.ts';

const main = path.join(import.meta.dirname, '../../src/device/main.ts');

class Device {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'porthole-daemons-'));
  readonly mountPoint = path.join(this.directory, 'mnt');
  readonly link = path.join(this.directory, 'link.sock');
  readonly child: ChildProcess;

  constructor(t: TestContext) {
    mkdirSync(this.mountPoint);
    this.child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', main, '--link', this.link], {
      stdio: ['ignore', 'inherit', 'inherit'],
      cwd: '/',
    });
    t.after(async () => {
      if (this.child.exitCode === null && this.child.signalCode === null) {
        this.child.kill('SIGTERM');
        await once(this.child, 'exit');
      }
      rmSync(this.directory, { recursive: true, force: true });
    });
  }
}

/** Undefined while nobody listens. */
async function connection(file: string): Promise<Socket | undefined> {
  const socket = createConnection(file);
  try {
    await once(socket, 'connect');
    return socket;
  } catch {
    return undefined;
  }
}

/** The link's end of a host daemon; its tree is the test's, as a store would keep it from one daemon to the next. */
class Daemon {
  readonly messages: ToHost[] = [];
  /** False: it dies after it has committed and before it answers. */
  answers = true;
  readonly #socket: Socket;
  readonly #stop: () => void;

  static async connect(device: Device, { authority }: { readonly authority: Authority }): Promise<Daemon> {
    const socket = await until('the device process to listen', () => connection(device.link));
    return new Daemon(socket, device, authority);
  }

  private constructor(socket: Socket, device: Device, authority: Authority) {
    this.#socket = socket;
    const reader = readerOnHost();
    socket.on('error', () => {});
    socket.on('data', (chunk: Uint8Array) => {
      for (const message of reader.feed(chunk)) {
        this.messages.push(message);
        if (message.type !== 'mutation') continue;
        const { sequence } = message;
        if (monotonicMs() > message.expiresMs) {
          this.send({ type: 'outcome', sequence, outcome: { errno: 5, revision: 0, ino: 0 } });
          continue;
        }
        authority.commit(message.mutation, ways[message.way], 'device', sequence, (outcome) => {
          if (this.answers) this.send({ type: 'outcome', sequence, outcome });
        });
      }
    });
    this.send({
      type: 'config',
      vm: 'test',
      vhostUser: [],
      mounts: [{ path: device.mountPoint }],
      options: { spinMicros: 0, allowUnsealedMemory: false },
    });
    this.#stop = authority.subscribe('device', (delta) => this.send({ type: 'delta', delta }));
  }

  send(message: ToDevice): void {
    this.#socket.write(encodeMessage(message));
  }

  of<T extends ToHost['type']>(type: T): Extract<ToHost, { type: T }>[] {
    return this.messages.filter((message): message is Extract<ToHost, { type: T }> => message.type === type);
  }

  async ready(): Promise<void> {
    await until('the mount to be ready', () => this.of('ready').length === 1);
  }

  die(): void {
    this.#stop();
    this.#socket.destroy();
  }
}

const content = { instance: { id: 'i-1' }, secrets: { key: 's' }, guest: {} };

test('a device process meets one host daemon after another: reads go on, what waits is sent again', async (t) => {
  const device = new Device(t);
  const world = new World({ content });
  const at = (name: string): string => path.join(device.mountPoint, name);
  const first = await Daemon.connect(device, world);
  await first.ready();
  assert.equal(readFileSync(at('instance/id'), 'utf8'), 'i-1');
  first.answers = false;
  const written = writeFile(at('guest/a'), 'one');
  await until('the write to be sent', () => first.of('mutation').length === 1);
  first.die();
  assert.equal(readFileSync(at('instance/id'), 'utf8'), 'i-1', 'reads need no daemon');
  const alsoWritten = writeFile(at('guest/b'), 'two');
  world.load({ content: { ...content, instance: { id: 'i-2' } } });
  const second = await Daemon.connect(device, world);
  await Promise.all([written, alsoWritten]);
  await second.ready();
  assert.equal(second.of('hello')[0]?.holder, first.of('hello')[0]?.holder);
  assert.deepEqual(
    second.of('mutation').map(({ sequence }) => sequence),
    second.of('mutation').map((_, index) => index + 1),
    'the first is sent again by its number, then what came after it',
  );
  assert.equal(await readFile(at('instance/id'), 'utf8'), 'i-2', 'what changed meanwhile is there');
  assert.equal(await readFile(at('guest/a'), 'utf8'), 'one');
  assert.equal(await readFile(at('guest/b'), 'utf8'), 'two');
  second.die();
});

test('what a daemon kept in the store and did not answer happens once, and the next one answers it from there', async (t) => {
  const device = new Device(t);
  await using stores = await openStores(temporaryStore(t));
  const at = path.join(device.mountPoint, 'guest/log');
  let written = '';
  for (let life = 0; life < 5; life++) {
    const { authority } = await serve(stores.region);
    const daemon = await Daemon.connect(device, { authority });
    await daemon.ready();
    if (life === 0) await writeFile(at, '');
    assert.equal(await readFile(at, 'utf8'), written);
    daemon.answers = false;
    written += `line ${life}\n`;
    const appended = appendFile(at, `line ${life}\n`);
    await until('the line to be kept', () => authority.snapshot.resolve('/guest/log')?.sizeBytes === written.length);
    daemon.die();
    const next = await serve(stores.region);
    const successor = await Daemon.connect(device, next);
    await successor.ready();
    await appended;
    assert.equal(next.authority.snapshot.resolve('/guest/log')?.sizeBytes, written.length, 'appended once');
    assert.equal(await readFile(at, 'utf8'), written);
    successor.die();
  }
});

test('a daemon that connects takes the link over from the one before it', async (t) => {
  const device = new Device(t);
  const world = new World({ content });
  const first = await Daemon.connect(device, world);
  await first.ready();
  const second = await Daemon.connect(device, world);
  await second.ready();
  await writeFile(path.join(device.mountPoint, 'guest/a'), 'one');
  assert.equal(first.of('mutation').length, 0);
  assert.ok(second.of('mutation').length > 0);
  second.die();
  first.die();
});

test('a write fails with EIO when no host daemon comes for 5 s', async (t) => {
  const device = new Device(t);
  const world = new World({ content });
  const daemon = await Daemon.connect(device, world);
  await daemon.ready();
  daemon.die();
  await assert.rejects(writeFile(path.join(device.mountPoint, 'guest/a'), 'one'), { code: 'EIO' });
  const next = await Daemon.connect(device, world);
  await next.ready();
  assert.deepEqual(next.of('mutation'), [], 'it does not come back later');
  next.die();
});
