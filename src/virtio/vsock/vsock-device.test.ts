import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GUEST_CID, HOST_CID, op } from '../../../test/front-end/vsock-driver.ts';
import { VsockStage } from '../../../test/front-end/vsock-in-process.ts';
import { read, send, shutdown } from '../../sys/index.ts';
import { EAGAIN } from '../../wire/index.ts';
import { GET_CONFIG, VERSION } from '../messages.ts';
import type { VsockService, VsockStream } from './service.ts';
import { vsockPeer } from './unix-end.ts';

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const bytes = (words: string): Uint8Array => new TextEncoder().encode(words);
const into = new Uint8Array(300_000);
/** What stands in a socket now; undefined when nothing does, '' at its end. */
const readNow = (fd: number): string | undefined => {
  const got = read(fd, into);
  assert.ok(got >= 0 || got === -EAGAIN, `errno ${-got}`);
  return got < 0 ? undefined : text(into.subarray(0, got));
};

test('VsockDevice carries a stream of the guest to the unix socket of its port, which is told the guest and its port', () => {
  using stage = new VsockStage();
  const service = stage.listen(5000);
  stage.driver.send({ op: op.request, srcPort: 1023, dstPort: 5000 });
  const [response, ...others] = stage.packets();
  assert.deepEqual(others, []);
  const { fields } = response!;
  assert.deepEqual(
    [fields.op, fields.srcCid, fields.dstCid, fields.srcPort, fields.dstPort, fields.type, fields.len, fields.bufAlloc],
    [op.response, HOST_CID, GUEST_CID, 5000, 1023, 1, 0, 262_144],
  );
  const fd = service.accept();
  assert.deepEqual(vsockPeer(fd), { guestCid: GUEST_CID, sourcePort: 1023 });
  stage.driver.send({ op: op.rw, srcPort: 1023, dstPort: 5000 }, bytes('ping'));
  assert.deepEqual(stage.packets(), []);
  assert.equal(readNow(fd), 'ping');
  send(fd, bytes('pong'));
  const [pong] = stage.packets();
  assert.deepEqual([pong!.fields.op, pong!.fields.len, pong!.fields.fwdCnt, text(pong!.data)], [op.rw, 4, 4, 'pong']);
  shutdown(fd, 'write');
  const [half] = stage.packets();
  assert.deepEqual([half!.fields.op, half!.fields.flags], [op.shutdown, 2]);
  stage.driver.send({ op: op.rw, srcPort: 1023, dstPort: 5000 }, bytes('more'));
  stage.driver.send({ op: op.shutdown, srcPort: 1023, dstPort: 5000, flags: 3 });
  const [reset] = stage.packets();
  assert.equal(reset!.fields.op, op.rst);
  assert.deepEqual([readNow(fd), readNow(fd)], ['more', '']);
  assert.equal(stage.device.mux.connectionCount, 0);
});

test('VsockDevice resets a connection to a port where nobody listens', () => {
  using stage = new VsockStage();
  stage.driver.send({ op: op.request, dstPort: 5001 });
  const [reset] = stage.packets();
  assert.deepEqual([reset!.fields.op, reset!.fields.srcPort, reset!.fields.dstPort], [op.rst, 5001, 1000]);
});

test('VsockDevice connects a program of the host with the port of the guest that it names', () => {
  using stage = new VsockStage();
  const fd = stage.connect();
  send(fd, bytes('CONNECT 52\nearly'));
  const [request] = stage.packets();
  assert.deepEqual([request!.fields.op, request!.fields.dstPort], [op.request, 52]);
  const port = request!.fields.srcPort;
  assert.equal(readNow(fd), undefined);
  stage.driver.send({ op: op.response, srcPort: 52, dstPort: port });
  const [early] = stage.packets();
  assert.equal(readNow(fd), `OK ${port}\n`);
  assert.deepEqual([early!.fields.op, text(early!.data)], [op.rw, 'early']);
  stage.hangUp(fd);
  const [end] = stage.packets();
  assert.deepEqual([end!.fields.op, end!.fields.flags], [op.shutdown, 3]);
  stage.driver.send({ op: op.rst, srcPort: 52, dstPort: port });
  assert.deepEqual(stage.packets(), []);
  assert.equal(stage.device.mux.connectionCount, 0);
});

test("VsockDevice gives a stream to the service of its port, with the guest's port, and back pressure both ways", () => {
  const heard: string[] = [];
  let takes = 0;
  let stream: VsockStream | undefined;
  const service: VsockService = (given) => {
    stream = given;
    return {
      receive: (got) => {
        const taken = Math.min(takes, got.length);
        takes -= taken;
        if (taken > 0) heard.push(text(got.subarray(0, taken)));
        return taken;
      },
      drained: () => heard.push('drained'),
      ended: () => heard.push('ended'),
      closed: (reason) => heard.push(reason),
    };
  };
  using stage = new VsockStage({ services: new Map([[564, service]]) });
  stage.driver.send({ op: op.request, srcPort: 700, dstPort: 564, bufAlloc: 300_000 });
  assert.equal(stage.packets()[0]!.fields.op, op.response);
  assert.deepEqual([stream!.sourcePort, stream!.guestCid, stream!.port], [700, GUEST_CID, 564]);
  takes = 2;
  stage.driver.send({ op: op.rw, srcPort: 700, dstPort: 564, bufAlloc: 300_000 }, bytes('abcdef'));
  assert.deepEqual(stage.packets(), []);
  assert.deepEqual(heard.splice(0), ['ab']);
  takes = 100;
  stream!.resume();
  assert.deepEqual(heard.splice(0), ['cdef']);
  assert.equal(stream!.write(new Uint8Array(200_000).fill(1)), true);
  assert.equal(stream!.write(new Uint8Array(200_000).fill(2)), false);
  const sent = stage.packets();
  assert.deepEqual(
    sent.map(({ data }) => data.length).reduce((a, b) => a + b),
    300_000,
  );
  assert.equal(sent.at(-1)!.fields.op, op.creditRequest);
  assert.deepEqual(heard.splice(0), ['drained']);
  stream!.close();
  stage.driver.send({ op: op.creditUpdate, srcPort: 700, dstPort: 564, bufAlloc: 300_000, fwdCnt: 300_000 });
  const rest = stage.packets();
  assert.equal(
    rest.map(({ data }) => data.length).reduce((a, b) => a + b),
    100_000,
  );
  assert.deepEqual([rest.at(-1)!.fields.op, rest.at(-1)!.fields.flags], [op.shutdown, 3]);
  stage.driver.send({ op: op.rst, srcPort: 700, dstPort: 564 });
  assert.deepEqual([stage.packets(), heard], [[], []]);
});

test('VsockDevice answers GET_CONFIG with the CID, and with nothing for what is no part of it', () => {
  using stage = new VsockStage({ guestCid: 0x1234_5678 });
  const { front } = stage.driver;
  const ask = (offset: number, size: number, bytes = size): Uint8Array => {
    const payload = new Uint8Array(12 + bytes);
    payload.set(new Uint8Array(Uint32Array.of(offset, size, 0).buffer));
    front.sendRaw(GET_CONFIG, VERSION, payload.length, payload);
    const answer = front.receive();
    return new Uint8Array(answer.buffer, answer.byteOffset, answer.byteLength).slice();
  };
  assert.deepEqual([...ask(0, 8).subarray(12)], [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
  assert.deepEqual([...ask(2, 2)], [2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x34, 0x12]);
  for (const [offset, size, bytes] of [
    [0, 9, 9],
    [8, 1, 1],
    [2 ** 32 - 1, 2, 2],
    [0, 2 ** 32 - 1, 8],
    [0, 8, 7],
  ] as const)
    assert.equal(ask(offset, size, bytes).length, 0);
  assert.equal(stage.closedBy, undefined);
});
