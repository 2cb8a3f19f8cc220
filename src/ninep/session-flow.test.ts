import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Client, frame, frameOf } from '../../test/ninep/client.ts';
import { APP, bytesOf, content, held, made, scene, text } from '../../test/ninep/scene.ts';
import { World } from '../../test/tree/world.ts';
import { ways } from '../tree/index.ts';
import { EINTR, EINVAL, EIO, O_NONBLOCK, O_RDONLY, O_WRONLY } from '../wire/index.ts';
import * as abi from './abi.ts';

test('a read that waits is answered later, out of order, and Tclunk of its fid ends it with EINTR', () => {
  const { client, world } = scene();
  const root = client.attach(APP);
  const fid = client.open(root, '.changes');
  const first = client.call('Tread', { fid, count: 4096 });
  const other = client.ok('Tgetattr', { fid: root });
  world.load({ content: { ...content, instance: { id: 'i-2' } } });
  assert.deepEqual(client.order.slice(-2), [other.tag, first.tag]);
  assert.match(text(first.data), /"path":"\/instance\/id"/);
  assert.equal(client.call('Tread', { fid, offset: 50, count: 4046 }).errno, EINTR, 'that ends the first read(2)');
  const second = client.call('Tread', { fid, count: 4096 });
  assert.equal(client.clunk(fid).errno, 0);
  assert.equal(second.errno, EINTR);
  const impatient = client.open(root, '.changes', O_RDONLY | O_NONBLOCK);
  assert.equal(client.call('Tread', { fid: impatient, count: 10 }).errno, 11);
});

test('Tread of /.changes gets a heartbeat when its time comes', () => {
  const { client, world } = scene();
  const fid = client.open(client.attach(APP), '.changes');
  const reading = client.call('Tread', { fid, count: 4096 });
  const due = client.session.nextDeadlineMs();
  assert.equal(due, world.clock.nowMs + ways.ninep.heartbeatMs);
  client.session.tick(due);
  assert.match(text(reading.data), /"heartbeat":true/);
  assert.equal(client.call('Tread', { fid, count: 4096 }).errno, EINTR);
  const another = client.call('Tread', { fid, count: 4096 });
  client.session.flushWaiters();
  assert.match(text(another.data), /"heartbeat":true/);
});

test('Tread of /.changes that asks on after a part ends with EINTR once, and then waits', () => {
  const { client, world } = scene();
  const fid = client.open(client.attach(APP), '.changes');
  const change = (id: string) => world.load({ content: { ...content, instance: { id } } });
  change('i-2');
  const parts: string[] = [];
  for (let reply = client.ok('Tread', { fid, count: 20 }); reply.errno === 0; ) {
    parts.push(text(reply.data));
    reply = client.call('Tread', { fid, count: 20 });
    assert.notEqual(reply.body, undefined, 'what follows a part is answered');
  }
  assert.match(parts.join(''), /^\{.*"path":"\/instance\/id".*\}\n$/);
  const waiting = client.call('Tread', { fid, count: 4096 });
  assert.equal(waiting.body, undefined);
  change('i-3');
  assert.match(text(waiting.data), /"path":"\/instance\/id"/);
  // A file is read to its end, which is no error.
  const file = client.open(client.attach(APP), 'instance/id');
  assert.equal(text(client.ok('Tread', { fid: file, count: 4096 }).data), 'i-3');
  assert.equal(client.ok('Tread', { fid: file, offset: 3, count: 4093 }).data.length, 0);
});

test('Tflush gives up a read that waits, of which nothing is said after Rflush', () => {
  const { client, world } = scene();
  const fid = client.open(client.attach(APP), '.changes');
  const reading = client.call('Tread', { fid, count: 4096 });
  const flush = client.call('Tflush', { oldtag: reading.tag });
  assert.equal(flush.errno, 0);
  assert.equal(reading.body, undefined);
  assert.deepEqual(client.session.held, { fids: 2, requests: 0 });
  world.load({ content: { ...content, instance: { id: 'i-2' } } });
  assert.equal(reading.body, undefined);
  assert.match(text(client.ok('Tread', { fid, count: 4096 }).data), /instance/);
  assert.equal(client.call('Tflush', { oldtag: 4711 }).errno, 0, 'nothing to flush');
});

test('Tflush of a change is answered after the change is, and a Tflush of that Tflush after both', () => {
  const { wrap, calls } = held('write');
  const { client } = scene({}, wrap);
  const fid = made(client, client.attach(APP), 'f');
  const write = client.call('Twrite', { fid, data: bytesOf('x') });
  const first = client.call('Tflush', { oldtag: write.tag });
  const second = client.call('Tflush', { oldtag: first.tag });
  const third = client.call('Tflush', { oldtag: write.tag });
  assert.deepEqual(
    [write, first, second, third].map(({ body }) => body),
    Array.from({ length: 4 }, () => undefined),
  );
  assert.equal(client.session.held.requests, 4);
  calls.shift()!();
  assert.deepEqual(
    client.order.slice(-4),
    [write, first, second, third].map(({ tag }) => tag),
  );
  assert.equal(client.session.held.requests, 0);
});

test('a fid that is clunked while it is being created gives the file back', () => {
  const { wrap, calls } = held('create');
  const { client, world } = scene({}, wrap);
  const fid = client.walk(client.attach(APP), 'guest');
  const creating = client.call('Tlcreate', { fid, name: 'f', flags: O_WRONLY, mode: 0o644 });
  assert.equal(client.call('Tlcreate', { fid, name: 'g', flags: O_WRONLY, mode: 0o644 }).errno, EINVAL);
  assert.equal(client.call('Tlopen', { fid }).errno, EINVAL);
  assert.equal(client.clunk(fid).errno, 0);
  calls.shift()!();
  assert.equal(creating.errno, EIO);
  assert.ok(world.authority.snapshot.resolve('/guest/f') !== undefined);
  assert.equal(client.session.bugs, 0);
});

test('a client with too much under way waits, and goes on when its requests are answered', () => {
  const { wrap, calls } = held('write');
  const { client } = scene({ maxRequests: 2 }, wrap);
  const root = client.attach(APP);
  const fid = made(client, root, 'f');
  const writes = [1, 2].map(() => client.call('Twrite', { fid, data: bytesOf('x') }));
  const behind = client.expect('Tgetattr', 500);
  client.session.receive(frame('Tgetattr', 500, { fid: root }));
  assert.equal(behind.body, undefined);
  // The buffer is full at some point: the rest stays with the transport.
  const more = new Uint8Array(client.msize * 2);
  const taken = client.session.receive(more);
  assert.ok(taken < more.length && taken <= client.msize);
  assert.equal(client.resumed, 0);
  calls.shift()!();
  assert.equal(writes[0]!.errno, 0);
  assert.equal(behind.errno, 0);
  assert.equal(client.closedBy, 'a frame is shorter than its header', 'the zeros that came next');
});

test('the transport is told when to give the rest', () => {
  const { wrap, calls } = held('write');
  const { client } = scene({ maxRequestBytes: 20_000 }, wrap);
  const root = client.attach(APP);
  const fid = made(client, root, 'f');
  const write = client.call('Twrite', { fid, data: new Uint8Array(20_000) });
  const tags = Array.from({ length: 6000 }, () => client.newTag());
  const replies = tags.map((tag) => client.expect('Tgetattr', tag));
  const stream = Buffer.concat(tags.map((tag) => frame('Tgetattr', tag, { fid: root })));
  const taken = client.session.receive(stream);
  assert.ok(taken < stream.length);
  assert.equal(client.session.receive(stream.subarray(taken)), 0, 'no room yet');
  calls.shift()!();
  assert.equal(write.errno, 0);
  assert.equal(client.resumed, 1);
  assert.equal(client.session.receive(stream.subarray(taken)), stream.length - taken);
  assert.ok(replies.every(({ errno }) => errno === 0));
});

test('a client that does not read is not listened to until it does', () => {
  const { client } = scene();
  const root = client.attach(APP);
  client.reads = false;
  const first = client.call('Tgetattr', { fid: root });
  assert.equal(first.errno, 0);
  const second = client.call('Tgetattr', { fid: root });
  assert.equal(second.body, undefined);
  client.reads = true;
  client.session.drained();
  assert.equal(second.errno, 0);
});

test('a stream is the same in whatever pieces it comes', () => {
  for (const piece of [1, 3, 7, 64, 5000]) {
    const { client } = scene();
    const root = client.attach(APP);
    const stat = client.expect('Tgetattr', 1);
    const walk = client.expect('Twalk', 2);
    const open = client.expect('Tlopen', 3);
    const read = client.expect('Tread', 4);
    const stream = Buffer.concat([
      frame('Tgetattr', 1, { fid: root }),
      frame('Twalk', 2, { fid: root, newfid: 50, names: ['instance', 'id'] }),
      frame('Tlopen', 3, { fid: 50 }),
      frame('Tread', 4, { fid: 50, count: 100 }),
    ]);
    for (let at = 0; at < stream.length; at += piece) client.session.receive(stream.subarray(at, at + piece));
    assert.deepEqual(
      [stat, walk, open].map(({ errno }) => errno),
      [0, 0, 0],
    );
    assert.equal(text(read.data), 'i-1');
  }
});

test('a malformed frame ends its session alone, with a reason that is counted', () => {
  const world = new World({ content });
  const bystander = new Client(world.fileSystem(ways.ninep));
  bystander.version();
  const root = bystander.attach(APP);
  const reasons: [reason: string, counter: string, bytes: (client: Client) => Uint8Array][] = [
    ['a frame is shorter than its header', 'short', () => Uint8Array.of(6, 0, 0, 0, 100, 0, 0)],
    ['a frame is longer than msize', 'long', () => Uint8Array.of(255, 255, 255, 255, 24, 1, 0)],
    ['the parts of a message do not fill its frame', 'body', () => frameOf(24, 1, [1, 0, 0])],
    ['a request other than Tversion has no tag', 'notag', () => frame('Tgetattr', abi.NOTAG, { fid: 1 })],
    [
      'a tag is used again before its request is answered',
      'tag',
      (client) => {
        const reading = client.call('Tread', { fid: client.open(client.attach(APP), '.changes'), count: 10 });
        return frame('Tgetattr', reading.tag, { fid: 1 });
      },
    ],
  ];
  for (const [reason, counter, bytes] of reasons) {
    const client = new Client(world.fileSystem(ways.ninep));
    client.version();
    const sent = bytes(client);
    assert.equal(client.session.receive(sent), sent.length);
    assert.equal(client.closedBy, reason);
    assert.equal(client.session.malformation, reason);
    assert.equal(new Map(client.session.counters()).get(`9p.malformed.${counter}`), 1);
    assert.deepEqual(client.session.held, { fids: 0, requests: 0 });
    assert.equal(client.session.receive(frame('Tversion', 1)), frame('Tversion', 1).length, 'dropped');
    bystander.ok('Tgetattr', { fid: root });
  }
  const early = new Client(world.fileSystem(ways.ninep));
  early.session.receive(frame('Tattach', 1, { fid: 1, afid: abi.NOFID }));
  assert.equal(early.closedBy, 'a request came before Tversion');
});
