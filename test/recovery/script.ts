/** What a guest asks for, one batch after the other, and what it is told: the same whether the device dies meanwhile or not. */
import assert from 'node:assert/strict';
import { abi } from '../../src/fuse/index.ts';
import { O_APPEND, O_CREAT, O_EXCL, O_RDWR, O_TRUNC, O_WRONLY } from '../../src/wire/index.ts';
import { Client, entriesIn, type Send } from '../fuse/client.ts';
import type { WorldSpec } from '../tree/world.ts';
import type { Machine } from './machine.ts';

const REPLY_BYTES = 8192;
const OUT = 16;
const PATIENCE = 400;

export const specAt = (version: number): WorldSpec => ({
  content: {
    app: { shared: `shared ${version} ${'s'.repeat(100 + version)}`, steady: 'never changes' },
    listed: Object.fromEntries([
      ...Array.from({ length: 9 }, (_, i) => [`stays-${i}`, 'x']),
      ...Array.from({ length: 6 }, (_, i) => [`${i < 3 ? 'a' : 't'}-${(i * 5 + version) % 17}`, 'x']),
    ]),
    once: { first: 'a secret', second: 'another' },
    guest: {},
  },
  rules: [
    { path: '/app/*', mode: 0o444 },
    { path: '/once/*', mode: 0o444, once: true },
  ],
});

interface Told {
  readonly name: string;
  readonly errno: number;
  readonly body: Uint8Array;
}

/** Numbers from a seed, the same every time. */
export function random(seed: number): (below: number) => number {
  let state = seed >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}

interface OpenFile {
  readonly fh: number;
  readonly nodeid: number;
  at: number;
}

export class Guest {
  readonly #machine: Machine;
  readonly #client: Client;
  /** What the guest was told, without numbers that may differ: nodeids, handles. */
  readonly story: string[] = [];
  readonly #files: OpenFile[] = [];
  /** How often each nodeid was given. */
  readonly #lookups = new Map<number, number>();
  #unique = 100;
  #names = 0;
  #version = 0;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.#client = new Client({
      handle: () => undefined,
      reset: () => undefined,
      flushWaiters: () => undefined,
      tick: () => undefined,
      nextDeadlineMs: () => Number.POSITIVE_INFINITY,
    });
  }

  start(): void {
    this.#machine.front.handshake();
    this.#machine.front.start();
    this.init();
  }

  init(): void {
    const fields = { major: 7, minor: 38, maxReadahead: 131072, flags: 0x7fffffff, flags2: 0 };
    const [told] = this.ask([['INIT', { nodeid: 0, in: fields }]]);
    assert.equal(told!.errno, 0);
  }

  /** Sends all of them at once; answers in the order in which they were sent. Each is answered exactly once. */
  ask(requests: readonly (readonly [name: string, options: Send])[]): Told[] {
    const { front } = this.#machine;
    const byQueue = requests.map(([name]) => front.queues[name.endsWith('FORGET') ? 0 : 1]!);
    const left = new Set<number>();
    for (const [slot, [name, options]] of requests.entries()) {
      const queue = byQueue[slot]!;
      const frame = this.#client.frame(name, { ...options, unique: (this.#unique += 2) });
      queue.request(slot).set(frame);
      queue.reply(slot).fill(0xee);
      queue.add(slot, frame.length, name.endsWith('FORGET') ? 0 : REPLY_BYTES);
      left.add(slot);
    }
    for (const queue of new Set(byQueue)) queue.publish();
    for (let turns = 0; left.size > 0; turns++) {
      assert.ok(turns < PATIENCE, `no answer to ${[...left].map((slot) => requests[slot]![0]).join(', ')}`);
      this.#machine.pump();
      for (const queue of new Set(byQueue))
        for (let slot = queue.next(); slot >= 0; slot = queue.next()) {
          assert.ok(left.delete(slot), `${requests[slot]?.[0]} is answered twice`);
        }
    }
    return requests.map(([name], slot) => {
      if (name.endsWith('FORGET')) return { name, errno: 0, body: new Uint8Array() };
      const reply = byQueue[slot]!.reply(slot).slice(0, REPLY_BYTES);
      const view = new DataView(reply.buffer);
      return { name, errno: 0 - view.getInt32(4, true), body: reply.subarray(OUT, view.getUint32(0, true)) };
    });
  }

  #one(name: string, options: Send): Told {
    return this.ask([[name, options]])[0]!;
  }

  #say(what: string): void {
    this.story.push(what);
  }

  #entry({ errno, body }: Told): number {
    if (errno !== 0) return 0;
    const nodeid = abi.EntryOut.nodeid.get(new DataView(body.buffer, body.byteOffset), 0);
    this.#lookups.set(nodeid, (this.#lookups.get(nodeid) ?? 0) + 1);
    return nodeid;
  }

  /** Nodeid of a path, or 0. */
  walk(...names: readonly string[]): number {
    let nodeid = 1;
    for (const name of names) {
      const told = this.#one('LOOKUP', { nodeid, rest: [name] });
      this.#say(`lookup ${name}: ${told.errno}`);
      nodeid = this.#entry(told);
      if (nodeid === 0) return 0;
    }
    return nodeid;
  }

  // --- what is killed at every point ---

  /** A nodeid is known until the guest has given back every lookup. */
  forgetting(): void {
    const [nodeid] = [0, 1, 2].map(() => this.walk('app', 'steady'));
    for (let given = 0; given < 2; given++) {
      this.ask([['FORGET', { nodeid: nodeid!, in: { nlookup: 1 } }]]);
      this.#say(`getattr: ${this.#one('GETATTR', { nodeid: nodeid! }).errno}`);
    }
  }

  /** Made once, written once, and cut once. */
  exclusive(): void {
    const guest = this.walk('guest');
    const make = {
      nodeid: guest,
      in: { flags: O_CREAT | O_EXCL | O_WRONLY | O_APPEND, mode: 0o100644 },
      rest: ['new'],
    };
    const made = this.#one('CREATE', make);
    this.#say(`create: ${made.errno}`);
    const nodeid = this.#entry(made);
    const fh = this.#fh(made, abi.EntryOut.sizeBytes);
    for (const text of ['one ', 'two ']) this.#say(`write: ${this.#writeAt(nodeid, fh, text)}`);
    this.#say(`release: ${this.#one('RELEASE', { nodeid, in: { fh } }).errno}`);
    const cut = this.#one('OPEN', { nodeid, in: { flags: O_WRONLY | O_TRUNC } });
    this.#say(`write: ${this.#writeAt(nodeid, this.#fh(cut), 'cut')}`);
    this.#say(`release: ${this.#one('RELEASE', { nodeid, in: { fh: this.#fh(cut) } }).errno}`);
    this.#say(`open: ${this.#one('OPEN', { nodeid, in: { flags: O_WRONLY | O_TRUNC } }).errno}`);
  }

  #writeAt(nodeid: number, fh: number, text: string): number {
    const data = new TextEncoder().encode(text);
    return this.#one('WRITE', { nodeid, in: { fh, offset: 0, size: data.length }, rest: [data] }).errno;
  }

  /** The value that burns is read to its end by whoever read its beginning, and the version that is open stays. */
  reading(): void {
    for (const [directory, name] of [
      ['once', 'first'],
      ['app', 'shared'],
    ] as const) {
      this.#open(this.walk(directory, name), 0, name);
      const { fh, nodeid } = this.#files.at(-1)!;
      for (let offset = 0; offset < 9; offset += 3) {
        const told = this.#one('READ', { nodeid, in: { fh, offset, size: 3 } });
        this.#say(`read: ${told.errno} ${new TextDecoder().decode(told.body)}`);
        if (offset === 3) this.#outside();
      }
    }
  }

  /** Names that are made, moved and removed, one after the other and several at once. */
  naming(): void {
    this.#names3();
    this.#together();
  }

  listing(): void {
    this.#list();
  }

  /** One step that the seed chooses. */
  step(next: (below: number) => number): void {
    const steps = [
      () => this.#openOld(next),
      () => this.#readSome(next),
      () => this.#readSome(next),
      () => this.#create(next),
      () => this.#write(next),
      () => this.#write(next),
      () => this.#release(next),
      () => this.#names3(),
      () => this.#list(),
      () => this.#burn(next),
      () => this.#forget(next),
      () => this.#outside(),
      () => this.#stat(next),
      () => this.#resize(next),
      () => this.#together(),
    ];
    steps[next(steps.length)]!();
  }

  #openOld(next: (below: number) => number): void {
    const name = next(3) === 0 ? 'steady' : 'shared';
    this.#open(this.walk('app', name), 0, name);
  }

  #open(nodeid: number, flags: number, name: string): void {
    if (nodeid === 0) return;
    const told = this.#one('OPEN', { nodeid, in: { flags } });
    this.#say(`open ${name}: ${told.errno}`);
    if (told.errno === 0) this.#files.push({ fh: this.#fh(told), nodeid, at: 0 });
  }

  #fh({ body }: Told, at = 0): number {
    return abi.OpenOut.fh.get(new DataView(body.buffer, body.byteOffset), at);
  }

  #readSome(next: (below: number) => number): void {
    const file = this.#files[next(this.#files.length || 1)];
    if (file === undefined) return;
    const size = 7 + next(60);
    const told = this.#one('READ', { nodeid: file.nodeid, in: { fh: file.fh, offset: file.at, size } });
    this.#say(`read: ${told.errno} ${new TextDecoder().decode(told.body)}`);
    if (told.errno === 0) file.at += told.body.length;
  }

  #create(next: (below: number) => number): void {
    const guest = this.walk('guest');
    const name = `f${next(3) === 0 ? next(4) : 10 + this.#names++}`;
    const flags = O_CREAT | O_RDWR | (next(2) === 0 ? O_EXCL : O_TRUNC) | (next(3) === 0 ? O_APPEND : 0);
    const told = this.#one('CREATE', { nodeid: guest, in: { flags, mode: 0o100644 }, rest: [name] });
    this.#say(`create ${name}: ${told.errno}`);
    const nodeid = this.#entry(told);
    if (nodeid !== 0) this.#files.push({ fh: this.#fh(told, abi.EntryOut.sizeBytes), nodeid, at: 0 });
    else if (next(2) === 0) this.#open(this.walk('guest', name), O_WRONLY | O_TRUNC, name);
  }

  #write(next: (below: number) => number): void {
    const file = this.#files[next(this.#files.length || 1)];
    if (file === undefined) return;
    const data = new TextEncoder().encode(`<${this.#names++}>`);
    const fields = { fh: file.fh, offset: next(20), size: data.length };
    const told = this.#one('WRITE', { nodeid: file.nodeid, in: fields, rest: [data] });
    this.#say(
      `write: ${told.errno} ${told.errno === 0 ? new DataView(told.body.buffer, told.body.byteOffset).getUint32(0, true) : ''}`,
    );
  }

  #release(next: (below: number) => number): void {
    const [file] = this.#files.splice(next(this.#files.length || 1), 1);
    if (file === undefined) return;
    this.#say(`release: ${this.#one('RELEASE', { nodeid: file.nodeid, in: { fh: file.fh } }).errno}`);
  }

  /** What answers differently when it is done twice. */
  #names3(): void {
    const guest = this.walk('guest');
    const [a, b] = [`n${this.#names++}`, `n${this.#names++}`];
    const made = this.#one('MKDIR', { nodeid: guest, in: { mode: 0o755 }, rest: [a] });
    this.#say(`mkdir: ${made.errno}`);
    this.#entry(made);
    this.#say(`rename: ${this.#one('RENAME', { nodeid: guest, in: { newdir: guest }, rest: [a, b] }).errno}`);
    this.#say(`rmdir: ${this.#one('RMDIR', { nodeid: guest, rest: [b] }).errno}`);
    const link = this.#one('SYMLINK', { nodeid: guest, rest: [a, 'to'] });
    this.#say(`symlink: ${link.errno}`);
    this.#entry(link);
    this.#say(`unlink: ${this.#one('UNLINK', { nodeid: guest, rest: [a] }).errno}`);
    // Its handle, if somebody has it open, keeps it.
    this.#say(`unlink: ${this.#one('UNLINK', { nodeid: guest, rest: ['f1'] }).errno}`);
  }

  /** Names come and go while the listing is under way; what stays all the time is told once. */
  #list(): void {
    const opened = this.#one('OPENDIR', { nodeid: this.walk('listed') });
    this.#say(`opendir: ${opened.errno}`);
    const fh = this.#fh(opened);
    const names: string[] = [];
    let at = 0;
    for (let replies = 0; ; replies++) {
      const { errno, body } = this.#one('READDIR', { in: { fh, offset: at, size: 130 } });
      assert.equal(errno, 0);
      const entries = entriesIn(body);
      if (entries.length === 0) break;
      names.push(...entries.map(({ name }) => name));
      at = entries.at(-1)!.off;
      if (replies === 1) this.#outside();
    }
    this.#say(`listed: ${names.filter((name) => name.startsWith('stays')).join()}`);
    this.#say(`releasedir: ${this.#one('RELEASEDIR', { in: { fh } }).errno}`);
  }

  #burn(next: (below: number) => number): void {
    const name = next(2) === 0 ? 'first' : 'second';
    this.#open(this.walk('once', name), 0, name);
  }

  /** Gives some lookups of a nodeid back; what is left must go on to be known. */
  #forget(next: (below: number) => number): void {
    const all = [...this.#lookups].filter(([nodeid]) => !this.#files.some((file) => file.nodeid === nodeid));
    const found = all[next(all.length || 1)];
    if (found === undefined) return;
    const [nodeid, count] = found;
    const nlookup = 1 + next(count);
    this.ask([['FORGET', { nodeid, in: { nlookup } }]]);
    if (nlookup === count) this.#lookups.delete(nodeid);
    else this.#lookups.set(nodeid, count - nlookup);
  }

  /** The outside changes what is open, and listed. */
  #outside(): void {
    this.#machine.world.load(specAt(++this.#version));
  }

  #stat(next: (below: number) => number): void {
    const nodeid = [...this.#lookups.keys()][next(this.#lookups.size || 1)];
    if (nodeid === undefined) return;
    const { errno, body } = this.#one('GETATTR', { nodeid });
    const view = new DataView(body.buffer, body.byteOffset);
    const at = abi.AttrOut.attr.offset;
    this.#say(
      `getattr: ${errno} ${errno === 0 ? `${abi.Attr.ino.get(view, at)} ${abi.Attr.size.get(view, at)} ${abi.Attr.mode.get(view, at)} ${abi.Attr.nlink.get(view, at)}` : ''}`,
    );
  }

  #resize(next: (below: number) => number): void {
    const nodeid = this.walk('guest', `f${next(4)}`);
    if (nodeid === 0) return;
    const told = this.#one('SETATTR', { nodeid, in: { valid: 8 | 1, size: next(30), mode: 0o600 } });
    this.#say(`setattr: ${told.errno}`);
  }

  /** Several in flight at once. */
  #together(): void {
    const guest = this.walk('guest');
    const names = [0, 1, 2, 3].map(() => `t${this.#names++}`);
    const told = this.ask([
      ...names.map((name) => ['MKDIR', { nodeid: guest, in: { mode: 0o755 }, rest: [name] }] as const),
      ['GETATTR', { nodeid: 1 }],
      ['LOOKUP', { nodeid: guest, rest: ['f0'] }],
      ['STATFS', { nodeid: 1 }],
    ]);
    this.#say(`together: ${told.map(({ errno }) => errno).join()}`);
    for (const answer of told.slice(0, names.length)) this.#entry(answer);
    this.#entry(told[names.length + 1]!);
  }

  /** Ends every handle. */
  finish(): void {
    for (const file of this.#files.splice(0))
      this.#say(`release: ${this.#one('RELEASE', { nodeid: file.nodeid, in: { fh: file.fh } }).errno}`);
  }
}

/** The tree in words, without times. */
export const treeOf = ({ world }: Machine): string[] =>
  [...world.authority.snapshot.nodes.values()]
    .map((node) => {
      const { ino, parentIno, name, mode, burned, bytes } = node;
      return `${ino} ${parentIno} ${name} ${mode} ${burned} ${bytes === undefined ? '' : new TextDecoder().decode(bytes)}`;
    })
    .toSorted();
