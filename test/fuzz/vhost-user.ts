/**
 * Fuzzes the control connection: arbitrary bytes become messages with descriptors. What must hold whatever they are:
 * nothing throws, nothing is left open, and the next connection is served.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { send, sendWithFds } from '../../src/sys/index.ts';
import { MessageHeader } from '../../src/virtio/messages.ts';
import { wildVm } from './ring.ts';

const openFds = (): number => readdirSync('/proc/self/fd').length;
const FLAG_HANDSHAKE = 1;
const FLAG_START = 2;

/**
 * Byte 0: how far the front end gets before (bits above). Then messages: request, flags, descriptors (their number in the
 * low 4 bits; memory where bit 4 is set, else eventfds), payload length, payload. Where the request's top bit is set, the
 * following bytes are sent as they are.
 */
export function fuzzVhostUser(bytes: Uint8Array): void {
  const before = openFds();
  const vm = wildVm();
  const how = bytes[0] ?? 0;
  if ((how & FLAG_START) === 0) vm.front.stop();
  if ((how & FLAG_HANDSHAKE) !== 0) vm.front.settle();
  const message = new Uint8Array(new ArrayBuffer(300));
  const view = new DataView(message.buffer);
  for (let at = 1; at + 4 <= bytes.length && vm.closedBy() === undefined; ) {
    const [request = 0, flags = 0, fdSpec = 0, length = 0] = bytes.subarray(at, at + 4);
    at += 4;
    const payload = bytes.subarray(at, at + length);
    at += length;
    const fd = (fdSpec & 16) === 0 ? vm.front.queues[0]!.kickFd : vm.front.memory.fd;
    const fds = Array.from({ length: fdSpec & 15 }, () => fd);
    if ((request & 0x80) !== 0) {
      if (payload.length > 0) sendWithFds(vm.front.fd, payload.slice(), payload.length, fds);
    } else {
      MessageHeader.request.set(view, 0, request);
      MessageHeader.flags.set(view, 0, flags);
      MessageHeader.size.set(view, 0, payload.length);
      message.set(payload, MessageHeader.sizeBytes);
      const total = MessageHeader.sizeBytes + payload.length;
      if (fds.length === 0) send(vm.front.fd, message, total);
      else sendWithFds(vm.front.fd, message, total, fds);
    }
    vm.pump();
    vm.handler.answerAll();
  }
  vm.close();
  assert.equal(openFds(), before, 'a descriptor is left open');
}
