/**
 * A device and its host daemon in this thread, whose memory survives a death of the device at any of its stores: the journal's
 * arrays count them, and at the chosen one everything that the device would still do is left undone. A front end sees one device.
 */
import assert from 'node:assert/strict';
import { Journal, type JournalMemory } from '../../src/device/journal.ts';
import { readControl, TargetJournal } from '../../src/device/succession.ts';
import { FuseSession } from '../../src/fuse/index.ts';
import { DeviceFeed } from '../../src/host/device-feed.ts';
import { close, duplicate, POLLIN, pollOne, setNonBlocking, socketPair } from '../../src/sys/index.ts';
import { type Mutation, Replica, type Settle, TreeFileSystem, ways } from '../../src/tree/index.ts';
import { VirtioFsDevice } from '../../src/virtio/index.ts';
import { FrontEnd } from '../front-end/index.ts';
import { World, type WorldSpec } from '../tree/world.ts';
import { counted, FakeKeeper, Killed, Points } from './points.ts';

const JOURNAL_BYTES = 24 * 1024 * 1024;
const QUEUES = 2;

interface Life {
  readonly points: Points;
  readonly device: VirtioFsDevice;
  readonly fileSystem: TreeFileSystem;
  readonly watched: Map<number, () => void>;
}

interface Underway {
  readonly sequence: number;
  readonly mutation: Mutation;
  readonly settle: Settle;
  readonly points: Points;
}

export class Machine implements Disposable {
  readonly world: World;
  readonly front: FrontEnd;
  readonly #feed: DeviceFeed;
  readonly #memory: JournalMemory;
  readonly #keeper: FakeKeeper;
  readonly #controlFd: number;
  /** At which point of each life it ends; Infinity: never. */
  readonly #killsAt: number[];
  readonly #refuses: boolean;
  #underway: Underway[] = [];
  #sequence = 0;
  #life: Life;
  deaths = 0;
  readonly faults: string[] = [];

  /** `refuses`: successors refuse what was in flight. */
  constructor(spec: WorldSpec, killsAt: readonly number[] = [], refuses = false) {
    this.#killsAt = [...killsAt];
    this.#refuses = refuses;
    this.world = new World(spec);
    this.#feed = new DeviceFeed(this.world.authority, 'device');
    const buffer = new ArrayBuffer(JOURNAL_BYTES);
    this.#memory = {
      u8: new Uint8Array(buffer),
      u16: new Uint16Array(buffer),
      u32: new Uint32Array(buffer),
      f64: new Float64Array(buffer),
    };
    const pair = socketPair();
    assert.ok(typeof pair !== 'number');
    setNonBlocking(pair[1], true);
    this.#controlFd = pair[1];
    this.#keeper = new FakeKeeper(() => this.#controlFd);
    this.#life = this.#begin();
    this.front = new FrontEnd(pair[0], { pump: this.pump, queues: QUEUES, queueSize: 64 });
  }

  /** Points of the life that lasts. */
  get points(): number {
    return this.#life.points.reached;
  }

  // --- lives ---

  /** Starts lives until one has got through its start. */
  #begin(): Life {
    for (;;) {
      const points = new Points(this.#killsAt.shift() ?? Number.POSITIVE_INFINITY);
      const watched = new Map<number, () => void>();
      try {
        return this.#start(points, watched);
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
        this.deaths++;
        this.#feed.detach();
      }
    }
  }

  #start(points: Points, watched: Map<number, () => void>): Life {
    const memory: JournalMemory = {
      u8: counted(this.#memory.u8, points),
      u16: counted(this.#memory.u16, points),
      u32: counted(this.#memory.u32, points),
      f64: counted(this.#memory.f64, points),
    };
    const keeping = this.#keeper.seenBy(points);
    const journal = new Journal(memory, JOURNAL_BYTES);
    const text = journal.control();
    const saved = text === '' ? undefined : readControl(text);
    assert.equal(saved === undefined, text === '', 'the journal can be read');
    const prefix = 'vm ';
    const names = [...this.#keeper.fds.keys()].map((name) => Number(name.slice(prefix.length)));
    const file = { journal, [Symbol.dispose]: () => undefined };
    const target = new TargetJournal(keeping, 'vm', file, names, (reason) => assert.fail(reason));
    if (saved !== undefined) keeping.finish('', saved.number, Buffer.from(saved.reply, 'base64'), saved.takenBytes);
    const replica = new Replica();
    const revision = this.#feed.revision;
    let life: Life | undefined;
    this.#feed.attach((delta) => {
      if (points.isDead) return;
      try {
        replica.apply(delta);
        life ??= this.#takeUp(target, replica, saved, points, watched);
        this.#feed.applied(delta.revision);
        points.pass();
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
      }
    });
    if (points.isDead) throw new Killed();
    assert.equal(replica.snapshot.revision, revision);
    life!.fileSystem.dropUnlinked();
    life!.device.interrupt();
    return life!;
  }

  /** As the server does: once the replica has its first tree. */
  #takeUp(
    target: TargetJournal,
    replica: Replica,
    saved: ReturnType<typeof readControl>,
    points: Points,
    watched: Map<number, () => void>,
  ): Life {
    const { connection } = target;
    const fileSystem = new TreeFileSystem({
      replica,
      way: ways.virtiofs,
      upstream: connection.log.upstream({
        submit: (mutation, settle, sequence = 0, sending = () => undefined) => {
          points.pass();
          const number = sequence === 0 ? ++this.#sequence : sequence;
          sending(number);
          points.pass();
          this.#underway.push({ sequence: number, mutation: copyOf(mutation), settle, points });
          points.pass();
        },
      }),
      audit: () => true,
      vm: 'test',
      clock: this.world.clock,
      journal: connection,
    });
    const log = (message: string): void => {
      if (!points.isDead) this.faults.push(message);
    };
    const session = new FuseSession(fileSystem, {
      transport: 'virtiofs',
      clock: this.world.clock,
      log,
      journal: connection,
    });
    const watcher = {
      watch: (fd: number, onReadable: () => void) => void watched.set(fd, onReadable),
      unwatch: (fd: number) => void watched.delete(fd),
    };
    const fd = (name: number): number => this.#keeper.fds.get(`vm ${name}`) ?? -1;
    const device = new VirtioFsDevice(duplicate(this.#controlFd), session, watcher, {
      queues: QUEUES,
      onFault: log,
      journal: target,
      refusesRedone: this.#refuses && this.deaths > 0,
      ...(saved && { recovered: { saved: saved.saved, fd } }),
    });
    connection.device = device;
    session.restore(connection.recover(fileSystem, replica));
    return { points, device, fileSystem, watched };
  }

  /** Does what the kernel does when a process is gone: its descriptors and mappings go, and nothing else happens. */
  #bury({ device, fileSystem }: Life): void {
    for (const end of [() => device.close('killed'), () => fileSystem.close()])
      for (let isOver = false; !isOver; ) {
        try {
          end();
          isOver = true;
        } catch (error) {
          if (!(error instanceof Killed)) throw error;
          isOver = true;
        }
      }
  }

  /** Runs the device and the daemon once. */
  readonly pump = (): void => {
    const life = this.#life;
    try {
      for (const [fd, onReadable] of [...life.watched])
        if (life.watched.has(fd) && pollOne(fd, POLLIN, 0) > 0) onReadable();
      life.device.process(64);
      if (life.points.isDead) throw new Killed();
      this.#answer();
      if (life.points.isDead) throw new Killed();
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      this.deaths++;
      this.#feed.detach();
      this.#bury(life);
      this.#life = this.#begin();
    }
  };

  /** The daemon comes to what it was sent, from this life or one before. */
  #answer(): void {
    for (const { sequence, mutation, settle, points } of this.#underway.splice(0)) {
      this.world.authority.commit(mutation, ways.virtiofs, 'device', sequence, (outcome) => {
        if (!points.isDead) settle(outcome);
      });
    }
  }

  /** What a successor would find of the session. */
  get arena(): Uint8Array {
    return this.#memory.u8.slice(8 * 1024 * 1024, this.#memory.f64[2]);
  }

  /** Ends the device now. */
  kill(): void {
    this.#life.points.isDead = true;
    this.pump();
  }

  [Symbol.dispose](): void {
    this.#bury(this.#life);
    this.#feed.close();
    this.front.close();
    close(this.#controlFd);
    this.#keeper.close();
  }
}

const copyOf = (mutation: Mutation): Mutation => structuredClone(mutation);
