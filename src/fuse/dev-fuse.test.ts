/** The transport alone: what stands in for the kernel's device keeps the limits between requests, as it does. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { close, POLLIN, pollOne, read, setNonBlocking, socketPair, write } from '../sys/index.ts';
import { EAGAIN, EBUSY } from '../wire/index.ts';
import * as abi from './abi.ts';
import { FUSE_NOTIFY_INVAL_ENTRY } from './constants.ts';
import { DevFuse } from './dev-fuse.ts';
import type { Exchange, HeldExchange, RequestHandler } from './exchange.ts';
import { operations } from './operations.ts';
import { RequestMemory } from './request-memory.ts';

const codeOf = (name: string): number => operations.find((operation) => operation.name === name)!.opcode;
const HEADER = abi.InHeader.sizeBytes;
const OUT = abi.OutHeader.sizeBytes;

/** Holds all that it is given. */
class Holding implements RequestHandler {
  readonly held: HeldExchange[] = [];

  handle(exchange: Exchange): void {
    this.held.push(exchange.hold());
  }

  reset(): void {}
  flushWaiters(): void {}
  tick(): void {}
  nextDeadlineMs(): number {
    return Number.POSITIVE_INFINITY;
  }
}

class Stage implements Disposable {
  readonly memory = RequestMemory.create();
  readonly handler = new Holding();
  readonly transport: DevFuse;
  readonly kernelFd: number;
  #unique = 0;

  constructor() {
    const pair = socketPair('packets');
    assert.ok(typeof pair !== 'number');
    const [fd, kernelFd] = pair;
    this.kernelFd = kernelFd;
    for (const end of pair) setNonBlocking(end, true);
    const journal = { begins: () => {}, ends: () => {}, gives: () => {}, shown: () => {} };
    this.transport = DevFuse.resume(fd, '/', { kept: { memory: this.memory, journal } }, false);
    this.transport.attach(this.handler);
  }

  /** The error of the answer; undefined where there is none. */
  ask(name: string, uid: number): number | undefined {
    const bytes = new Uint8Array(new ArrayBuffer(HEADER));
    const view = new DataView(bytes.buffer);
    abi.InHeader.len.set(view, 0, HEADER);
    abi.InHeader.opcode.set(view, 0, codeOf(name));
    abi.InHeader.uid.set(view, 0, uid);
    view.setUint32(abi.InHeader.unique.offset, (this.#unique += 2), true);
    assert.equal(write(this.kernelFd, bytes), HEADER);
    while (this.transport.process(64)) continue;
    return this.answered();
  }

  answered(): number | undefined {
    const bytes = new Uint8Array(new ArrayBuffer(64));
    const length = read(this.kernelFd, bytes);
    if (length === -EAGAIN) return undefined;
    assert.equal(length, OUT);
    return Math.abs(abi.OutHeader.error.get(new DataView(bytes.buffer), 0));
  }

  /** Answers the first that is held. */
  end(): void {
    const head = new Uint8Array(new ArrayBuffer(OUT));
    abi.OutHeader.len.set(new DataView(head.buffer), 0, OUT);
    this.handler.held.shift()!.reply(head, OUT);
    assert.equal(this.answered(), 0);
  }

  [Symbol.dispose](): void {
    this.transport.leave();
    close(this.kernelFd);
    this.memory[Symbol.dispose]();
  }
}

test('DevFuse refuses before it is handled what there is no room for, and lets no uid have more than a quarter', () => {
  using stage = new Stage();
  const { handler, memory } = stage;
  const share = memory.slots / 4;
  let handled = 0;
  for (const uid of [1000, 1001, 1002]) {
    for (let i = 0; i < share; i++) assert.equal(stage.ask('WRITE', uid), undefined);
    handled += share;
    assert.equal(stage.ask('WRITE', uid), EBUSY);
    assert.equal(handler.held.length, handled, 'what is refused is not handled');
  }
  stage.end();
  assert.equal(stage.ask('WRITE', 1000), undefined, 'one of its own has ended');
  for (let i = 0; i < share - 1; i++) assert.equal(stage.ask('OPEN', 1003), undefined);
  assert.equal(handler.held.length, memory.slots - 1);
  assert.equal(stage.ask('OPEN', 1003), EBUSY, 'the last one is for what ends others');
  assert.equal(stage.ask('OPEN', 0), EBUSY);
  assert.equal(handler.held.length, memory.slots - 1);
  assert.equal(stage.ask('RELEASE', 1003), EBUSY);
  assert.equal(handler.held.length, memory.slots, 'it takes effect, and nobody looks at its answer');
  stage.end();
  assert.equal(stage.ask('OPEN', 0), undefined);
});

/** Processes that this one has started and not yet waited for. */
const children = (): number[] =>
  readdirSync('/proc/self/task').flatMap((task) =>
    readFileSync(`/proc/self/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  );

test('DevFuse goes on to notify when the process that writes was killed', async () => {
  using stage = new Stage();
  const message = new Uint8Array(new ArrayBuffer(OUT + 8));
  abi.OutHeader.error.set(new DataView(message.buffer), 0, FUSE_NOTIFY_INVAL_ENTRY);
  for (let killed = 0; killed < 2; killed++) {
    stage.transport.notify(message);
    await until('a notification', () => pollOne(stage.kernelFd, POLLIN, 0) > 0);
    assert.equal(read(stage.kernelFd, new Uint8Array(new ArrayBuffer(64))), message.length);
    const [pid, ...others] = children();
    assert.deepEqual(others, []);
    process.kill(pid!, 'SIGKILL');
    await until('its end', () => children().length === 0);
  }
});
