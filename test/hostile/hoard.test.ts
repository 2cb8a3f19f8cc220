/**
 * A guest that takes all it can get and gives nothing back: nodeids, handles, listings, streams, versions, quota, requests
 * in flight. The caps hold, what is beyond them is refused, the memory of the device process stays bounded, and another VM
 * of the same process is served throughout.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { abi } from '../../src/fuse/index.ts';
import { EBUSY, EMFILE, ENFILE, errnoName, O_CREAT, O_RDWR, O_TRUNC } from '../../src/wire/index.ts';
import { type FrontEnd, type FrontQueue, fuse } from '../front-end/index.ts';
import type { Client, Send } from '../fuse/client.ts';
import { Bystander, complete, connect, guessingClient, Served } from './device.ts';

const MIB = 2 ** 20;
/** The device process at rest has about 60 MiB here; this is what a guest can make of it. */
const LIMIT_MIB = 512;
const UIDS = [1001, 1002, 1003, 1004, 1005];

/** One request at a time, with room for big ones. */
class Hoarder {
  readonly front: FrontEnd;
  readonly queue: FrontQueue;
  readonly client: Client = guessingClient();
  sent = 0;

  constructor(socket: string, queueSize = 1024) {
    this.front = connect(socket, { queueSize, queues: 2, requestBytes: 8192, replyBytes: 8192 });
    this.queue = this.front.queues[1]!;
  }

  async send(name: string, options: Send = {}): Promise<DataView> {
    const frame = this.client.frame(name, options);
    this.queue.request(0).set(frame);
    this.queue.add(0, frame.length, options.capacity ?? 8192);
    this.queue.publish();
    assert.equal(await complete(this.queue), 0, `${name} is given back`);
    this.sent++;
    return fuse.viewOf(this.queue.reply(0));
  }

  async errno(name: string, options: Send = {}): Promise<number> {
    return 0 - abi.OutHeader.error.get(await this.send(name, options), 0);
  }

  async nodeid(parent: number, name: string): Promise<number> {
    const reply = await this.send('LOOKUP', { nodeid: parent, rest: [name] });
    assert.equal(abi.OutHeader.error.get(reply, 0), 0, name);
    return abi.EntryOut.nodeid.get(reply, 16);
  }

  /** Sends until it is refused; returns how many were not, and the errno of the first that was. */
  async untilRefused(most: number, ask: (i: number) => Promise<number>): Promise<{ taken: number; by: string }> {
    for (let taken = 0; taken < most; taken++) {
      const errno = await ask(taken);
      if (errno !== 0) return { taken, by: errnoName(errno) };
    }
    return { taken: most, by: 'nothing' };
  }
}

const own = (): number => process.memoryUsage().rss / MIB;

test('a device process stays bounded and serves another VM when its guest hoards', async (t) => {
  await using served = await Served.start(2);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  const guest = new Hoarder(hostile);
  t.after(() => guest.front.close());
  await guest.send('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } });
  const began = served.anonymousMib();
  let most = began;
  let since = performance.now();
  const tell = (what: string): void => {
    bystander.ask();
    const now = served.anonymousMib();
    most = Math.max(most, now);
    served.assertAlive();
    const seconds = ((performance.now() - since) / 1000).toFixed(1);
    since = performance.now();
    t.diagnostic(`${what} in ${seconds} s; device process ${now.toFixed(0)} MiB, host daemon ${own().toFixed(0)} MiB`);
  };
  tell('at rest');

  const directory = await guest.nodeid(1, 'guest');
  const create = (name: string, uid: number) =>
    guest.errno('CREATE', { nodeid: directory, uid, in: { flags: O_RDWR | O_CREAT, mode: 0o644 }, rest: [name] });

  // Names as long as they can be, and never a FORGET or a RELEASE.
  let made = 0;
  for (const uid of UIDS) {
    const { taken, by } = await guest.untilRefused(4000, async (i) => {
      const errno = await create(`${uid}-${i}-`.padEnd(255, 'n'), uid);
      if (i % 100 === 0) bystander.ask();
      return errno;
    });
    made += taken;
    assert.notEqual(by, 'nothing', `uid ${uid} meets a limit`);
  }
  tell(`${made} files made and held open`);

  // Directories, each with a listing of its own of all these names.
  await guest.send('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } });
  const listed = await guest.nodeid(1, 'guest');
  let listings = 0;
  for (const uid of UIDS) {
    const { taken } = await guest.untilRefused(4000, async (i) => {
      const opened = await guest.send('OPENDIR', { nodeid: listed, uid });
      const errno = 0 - abi.OutHeader.error.get(opened, 0);
      if (errno !== 0) return errno;
      const fh = abi.OpenOut.fh.get(opened, 16);
      for (const offset of [0, 2]) await guest.send('READDIR', { uid, in: { fh, offset, size: 512 } });
      if (i % 100 === 0) bystander.ask();
      return 0;
    });
    listings += taken;
  }
  tell(`${listings} directories listed and held open`);

  // Streams of changes, each read by a byte so that the rest is kept for it.
  await guest.send('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } });
  const again = await guest.nodeid(1, 'guest');
  const changes = await guest.nodeid(1, '.changes');
  const streams: number[] = [];
  const refusals = new Set<string>();
  for (const uid of UIDS) {
    const { by } = await guest.untilRefused(4000, async () => {
      const opened = await guest.send('OPEN', { nodeid: changes, uid });
      const errno = 0 - abi.OutHeader.error.get(opened, 0);
      if (errno === 0) streams.push(abi.OpenOut.fh.get(opened, 16));
      return errno;
    });
    refusals.add(by);
  }
  for (let i = 0; i < 600; i++)
    await guest.errno('MKDIR', { nodeid: again, in: { mode: 0o755 }, rest: [`${i}-`.padEnd(255, 'd')] });
  for (const fh of streams) await guest.send('READ', { in: { fh, size: 1 } });
  tell(`${streams.length} streams of changes held open (then ${[...refusals].join(', ')})`);

  // Old versions: one is opened for every change from outside.
  const instance = await guest.nodeid(1, 'instance');
  for (let i = 0; i < 20; i++) {
    const reloaded = once(served.occurs, 'reloaded');
    served.rewriteNote(String(i).padEnd(900_000, 'v'));
    await reloaded;
    const note = await guest.nodeid(instance, 'note');
    for (let n = 0; n < 10; n++) await guest.send('OPEN', { nodeid: note });
    bystander.ask();
  }
  tell('20 versions of 900,000 bytes looked up and held open');

  // Truncations that never come, and the whole quota.
  await guest.send('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } });
  const place = await guest.nodeid(1, 'guest');
  const block = new Uint8Array(4096).fill(0x77);
  const files: number[] = [];
  for (const uid of UIDS) {
    const made = await guest.send('CREATE', {
      nodeid: place,
      uid,
      in: { flags: O_RDWR | O_CREAT, mode: 0o644 },
      rest: [`big-${uid}`],
    });
    if (abi.OutHeader.error.get(made, 0) !== 0) continue;
    const fh = abi.OpenOut.fh.get(made, 16 + abi.EntryOut.sizeBytes);
    files.push(abi.EntryOut.nodeid.get(made, 16));
    await guest.untilRefused(300, (i) =>
      guest.errno('WRITE', { in: { fh, offset: i * 4096, size: 4096 }, rest: [block] }),
    );
  }
  let truncations = 0;
  for (const [i, nodeid] of files.entries())
    for (;;) {
      const errno = await guest.errno('OPEN', { nodeid, uid: UIDS[i]!, in: { flags: O_RDWR | O_TRUNC } });
      if (errno !== 0) {
        assert.ok([EMFILE, ENFILE].includes(errno), errnoName(errno));
        break;
      }
      truncations++;
    }
  tell(`${files.length} files filled, ${truncations} truncations pending`);

  assert.ok(most < LIMIT_MIB, `the device process took ${most.toFixed(0)} MiB`);
  t.diagnostic(`${guest.sent} requests of the hoarder`);
  t.diagnostic(bystander.report('second VM of the device process'));
});

test('a device process and its host daemon stay bounded when a guest queues all the writes that its ring holds', async (t) => {
  await using served = await Served.start(2);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  const guest = new Hoarder(hostile, 512);
  t.after(() => guest.front.close());
  await guest.send('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } });
  const directory = await guest.nodeid(1, 'guest');
  const made = await guest.send('CREATE', { nodeid: directory, in: { flags: O_RDWR, mode: 0o644 }, rest: ['full'] });
  const fh = abi.OpenOut.fh.get(made, 16 + abi.EntryOut.sizeBytes);
  // A file as large as can be: each write of a byte makes a commit that carries all of it.
  const block = new Uint8Array(1).fill(0x77);
  assert.equal(await guest.errno('WRITE', { in: { fh, offset: MIB - 1, size: 1 }, rest: [block] }), 0);
  const { queue } = guest;
  let most = served.anonymousMib();
  let mostOwn = own();
  for (let slot = 0; slot < queue.slots; slot++) {
    const frame = guest.client.frame('WRITE', { in: { fh, offset: slot, size: 1 }, rest: [block] });
    queue.request(slot).set(frame);
    queue.add(slot, frame.length, 24);
  }
  queue.publish();
  const deadline = performance.now() + 60_000;
  for (let left = queue.slots; left > 0; ) {
    const before = left;
    while (queue.next() >= 0) left--;
    assert.ok(performance.now() < deadline, `${left} writes are not answered`);
    if (left !== before) bystander.ask();
    most = Math.max(most, served.anonymousMib());
    mostOwn = Math.max(mostOwn, own());
    await turn();
  }
  served.assertAlive();
  t.diagnostic(
    `${queue.slots} writes; device process at most ${most.toFixed(0)} MiB, host daemon ${mostOwn.toFixed(0)} MiB`,
  );
  t.diagnostic(bystander.report('second VM of the device process'));
  assert.ok(most < LIMIT_MIB, `the device process took ${most.toFixed(0)} MiB`);
});

test('a device process lets 16 readers of changes wait, refuses more, and stops at once for all that', async (t) => {
  await using served = await Served.start(2);
  const [hostile = '', innocent = ''] = served.sockets;
  using bystander = await Bystander.connect(innocent);
  const guest = new Hoarder(hostile);
  t.after(() => guest.front.close());
  await guest.send('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } });
  const changes = await guest.nodeid(1, '.changes');
  const { queue, front } = guest;
  const readers: { uid: number; fh: number }[] = [];
  for (const uid of UIDS)
    for (let i = 0; i < 8; i++)
      readers.push({ uid, fh: abi.OpenOut.fh.get(await guest.send('OPEN', { nodeid: changes, uid }), 16) });
  for (const [i, { uid, fh }] of readers.entries()) {
    const frame = guest.client.frame('READ', { nodeid: changes, uid, in: { fh, size: 4096 } });
    queue.request(1 + i).set(frame);
    queue.add(1 + i, frame.length, 8192);
  }
  queue.publish();
  const errnoOf = (slot: number): number => 0 - abi.OutHeader.error.get(fuse.viewOf(queue.reply(slot)), 0);
  const WAITERS = 16;
  for (let refused = 0; refused < readers.length - WAITERS; refused++) {
    const slot = await complete(queue);
    assert.ok(slot > 0, `${refused} readers were refused`);
    assert.equal(errnoOf(slot), EBUSY);
  }
  assert.equal(queue.next(), -1, 'the others wait');
  bystander.ask();
  const before = performance.now();
  front.stop();
  const tookMs = performance.now() - before;
  for (let waited = 0; waited < WAITERS; waited++) {
    const slot = queue.next();
    assert.ok(slot > 0, 'every reader has its heartbeat before the ring stops');
    assert.equal(errnoOf(slot), 0);
  }
  // By itself the next heartbeat comes when 2 s are over.
  assert.ok(tookMs < 1800, `stopping took ${tookMs.toFixed(0)} ms`);
  served.assertAlive();
});
