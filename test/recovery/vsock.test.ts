/** A vsock device that ends between any two of its stores: the guest learns of the end of each connection that it had. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Journal } from '../../src/device/journal.ts';
import { readControl, TargetJournal } from '../../src/device/succession.ts';
import { close, duplicate, POLLIN, pollOne, setNonBlocking, socketPair } from '../../src/sys/index.ts';
import { VsockDevice, type VsockService } from '../../src/virtio/index.ts';
import { FrontEnd } from '../front-end/index.ts';
import { GUEST_CID, op, VsockDriver, vsockFrontEnd } from '../front-end/vsock-driver.ts';
import { counted, FakeKeeper, Killed, Points } from './points.ts';

const JOURNAL_BYTES = 9 * 1024 * 1024;
const PORT = 7;
/** Gives back what it gets, and closes the connection after `!`. */
const service: VsockService = (stream) => ({
  receive: (bytes) => {
    stream.write(bytes);
    if (bytes.includes(33)) stream.close();
    return bytes.length;
  },
  drained: () => undefined,
  ended: () => undefined,
  closed: () => undefined,
});

interface Life {
  readonly points: Points;
  readonly device: VsockDevice;
  readonly watched: Map<number, () => void>;
}

class VsockMachine implements Disposable {
  readonly driver: VsockDriver;
  readonly front: FrontEnd;
  readonly #buffer = new ArrayBuffer(JOURNAL_BYTES);
  readonly #killsAt: number[];
  readonly #controlFd: number;
  readonly #keeper: FakeKeeper;
  #life: Life;
  deaths = 0;

  constructor(killsAt: readonly number[]) {
    this.#killsAt = [...killsAt];
    const pair = socketPair();
    assert.ok(typeof pair !== 'number');
    setNonBlocking(pair[1], true);
    this.#controlFd = pair[1];
    this.#keeper = new FakeKeeper(() => this.#controlFd);
    this.#life = this.#begin();
    this.front = new FrontEnd(pair[0], { ...vsockFrontEnd, requestBytes: 64, replyBytes: 128, pump: this.pump });
    this.front.handshake();
    this.front.start();
    this.driver = new VsockDriver(this.front);
  }

  get points(): number {
    return this.#life.points.reached;
  }

  /** It is killed no more. */
  spare(): void {
    this.#killsAt.length = 0;
    this.#life.points.spare();
  }

  #begin(): Life {
    for (;;) {
      const points = new Points(this.#killsAt.shift() ?? Number.POSITIVE_INFINITY);
      try {
        return this.#start(points);
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
        this.deaths++;
      }
    }
  }

  #start(points: Points): Life {
    const memory = {
      u8: counted(new Uint8Array(this.#buffer), points),
      u16: counted(new Uint16Array(this.#buffer), points),
      u32: counted(new Uint32Array(this.#buffer), points),
      f64: counted(new Float64Array(this.#buffer), points),
    };
    const keeping = this.#keeper.seenBy(points);
    const journal = new Journal(memory, JOURNAL_BYTES);
    const text = journal.control();
    const saved = text === '' ? undefined : readControl(text);
    assert.equal(saved === undefined, text === '', 'the journal can be read');
    const names = [...this.#keeper.fds.keys()].map((name) => Number(name.slice('vm '.length)));
    const file = { journal, [Symbol.dispose]: () => undefined };
    const target = new TargetJournal(keeping, 'vm', file, names, (reason) => assert.fail(reason));
    if (saved !== undefined) keeping.finish('', saved.number, Buffer.from(saved.reply, 'base64'), saved.takenBytes);
    const watched = new Map<number, () => void>();
    const watcher = {
      watch: (fd: number, onReady: () => void) => void watched.set(fd, onReady),
      unwatch: (fd: number) => void watched.delete(fd),
    };
    const device = new VsockDevice(duplicate(this.#controlFd), watcher, {
      guestCid: GUEST_CID,
      services: new Map([[PORT, service]]),
      journal: target,
      onFault: (message) => assert.ok(points.isDead, message),
      recovered: saved && { saved: saved.saved, fd: (name) => this.#keeper.fds.get(`vm ${name}`) ?? -1 },
    });
    device.interrupt();
    return { points, device, watched };
  }

  #bury({ device }: Life): void {
    try {
      device.close('killed');
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
    }
  }

  readonly pump = (): void => {
    const life = this.#life;
    try {
      for (const [fd, onReady] of [...life.watched]) if (life.watched.has(fd) && pollOne(fd, POLLIN, 0) > 0) onReady();
      life.device.process(64);
      if (life.points.isDead) throw new Killed();
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      this.deaths++;
      this.#bury(life);
      this.#life = this.#begin();
    }
  };

  [Symbol.dispose](): void {
    this.#bury(this.#life);
    this.front.close();
    close(this.#controlFd);
    this.#keeper.close();
  }
}

/** What the guest believes of its connections, by port. */
class Guest {
  readonly #machine: VsockMachine;
  readonly states = new Map<number, 'asked' | 'open' | 'over'>();
  /** Data that came, by port. */
  readonly got = new Map<number, string>();

  constructor(machine: VsockMachine) {
    this.#machine = machine;
  }

  settle(): void {
    for (let quiet = 0; quiet < 4; quiet++) {
      this.#machine.pump();
      for (let packet = this.#machine.driver.receive(); packet !== undefined; packet = this.#machine.driver.receive()) {
        quiet = 0;
        const { op: code, dstPort } = packet.fields;
        if (code === op.response && this.states.get(dstPort) === 'asked') this.states.set(dstPort, 'open');
        else if (code === op.rst) this.states.set(dstPort, 'over');
        else if (code === op.rw)
          this.got.set(dstPort, (this.got.get(dstPort) ?? '') + String.fromCharCode(...packet.data));
        else if (code === op.shutdown && packet.fields.flags === 3) {
          this.states.set(dstPort, 'over');
          this.#send(dstPort, op.rst);
        } else if (code === op.response) this.#send(dstPort, op.rst);
      }
    }
  }

  #send(srcPort: number, code: number, text = '', flags = 0): void {
    const data = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    assert.ok(this.#machine.driver.send({ srcPort, dstPort: PORT, op: code, flags }, data));
  }

  open(port: number): void {
    this.states.set(port, 'asked');
    this.#send(port, op.request);
    this.settle();
    assert.notEqual(this.states.get(port), 'asked', 'it is answered');
  }

  /** Where it believes to have the connection. */
  say(port: number, text: string): void {
    if (this.states.get(port) === 'open') this.#send(port, op.rw, text);
    this.settle();
  }

  close(port: number): void {
    if (this.states.get(port) !== 'open') return;
    this.#send(port, op.shutdown, '', 3);
    this.settle();
    assert.equal(this.states.get(port), 'over');
  }
}

function play(killsAt: readonly number[]): { readonly points: number; readonly deaths: number } {
  using machine = new VsockMachine(killsAt);
  const guest = new Guest(machine);
  for (const port of [1, 2, 3, 4]) guest.open(port);
  for (const port of [1, 2, 3]) guest.say(port, `hello ${port}`);
  guest.close(2);
  guest.say(3, '!');
  guest.open(2);
  guest.settle();
  const { points } = machine;
  machine.spare();
  // Whatever it believes is true: who only reads has been told that nothing will come.
  for (const [port, state] of guest.states) {
    if (state !== 'open') continue;
    guest.got.delete(port);
    guest.say(port, 'still');
    assert.equal(guest.states.get(port), 'open', `port ${port} was not told`);
    assert.equal(guest.got.get(port), 'still');
  }
  guest.open(9);
  guest.say(9, 'again');
  assert.equal(guest.got.get(9), 'again');
  return { points, deaths: machine.deaths };
}

/** 1: every third point; 3: every one, and more pairs. */
const times = Number(process.env['PORTHOLE_KILLS'] ?? 1);

test('a guest knows of the end of each of its connections when the device is killed at any point', (t) => {
  const { points } = play([]);
  let kills = 0;
  for (let at = 1; at <= points; at += Math.max(1, Math.round(3 / times)), kills++)
    assert.equal(play([at]).deaths, 1, `killed at ${at}`);
  t.diagnostic(`${kills} kills at ${points} points`);
});

test('a guest knows of the end of each of its connections when the device and its successor are killed', () => {
  const { points } = play([]);
  for (let i = 0; i < 40 * times; i++) play([1 + ((i * 37) % points), 1 + ((i * 101) % 60)]);
});
