/**
 * All connections of one guest: its packets in, packets for it out, and streams of the host between (virtio 1.2 §5.10.6). It
 * knows no ring and no socket. The device gives it each packet (`receive`), and asks for packets while there is room for them
 * (`prepare`, `compose`).
 *
 * What a guest can make it keep is bounded: connections by their number, bytes for the host by the credit that each is given,
 * bytes for the guest by one buffer for all, resets by their list. While that list is full of answers that the guest does not
 * take, nothing more is taken from it (§5.10.6.1.1: room to answer comes before taking more).
 */
import { EAGAIN } from '../../wire/index.ts';
import * as abi from './abi.ts';
import * as c from './connection.ts';
import { Connection, type HostEnd } from './connection.ts';
import { ConnectionTable } from './connection-table.ts';
import { operationOf } from './operations.ts';
import { OutPacket } from './out-packet.ts';
import { ReadyList } from './ready-list.ts';
import { Resets } from './resets.ts';
import { MAX_CONNECTIONS, Slots } from './slots.ts';

const { Header, HEADER_BYTES } = abi;

/** What a connection's guest may send ahead of the host: a few connections get much, all others enough. */
const LARGE_BUFFER_BYTES = 256 * 1024;
const SMALL_BUFFER_BYTES = 32 * 1024;
const LARGE_BUFFERS = 64;
/** Resets of packets that belong to no connection, at most; each connection has a place of its own beyond. */
const STRAY_RESETS = 1024;
/** A guest that does not answer: Linux gives up a connection that it asked for after 2 s, and one that it closes after 8. */
const CONNECT_MS = 10_000;
const CLOSE_MS = 8_000;
/** Ports of ours for connections that the host asks for begin here, as those of the hypervisors with the same sockets do. */
const FIRST_HOST_PORT = 2 ** 30;
const LAST_HOST_PORT = 2 ** 31 - 1;

export interface MuxOptions {
  readonly guestCid: number;
  /** The end that answers a guest's connection to `port`, or undefined where nobody listens. It may call `connection` later. */
  readonly open: (port: number, guestPort: number, mux: VsockMux) => PendingEnd | undefined;
  readonly nowMs: () => number;
  /** Told of bugs of services. */
  readonly onFault?: (message: string) => void;
  /** What a guest believes to have, kept over the end of this process (slots.ts). */
  readonly slots?: Uint32Array | undefined;
}

/** An end that can be told which connection it is of. */
export interface PendingEnd extends HostEnd {
  attach(connection: Connection): void;
}

export class VsockMux {
  readonly counters = {
    connections: 0,
    packetsIn: 0,
    packetsOut: 0,
    bytesIn: 0,
    bytesOut: 0,
    resets: 0,
    /** Packets that broke the protocol. */
    badPackets: 0,
    /** Connections refused because there were too many. */
    refused: 0,
    /** Bugs of services. */
    serviceFaults: 0,
  };
  /** What `compose` made. */
  readonly packet: OutPacket;
  readonly #options: MuxOptions;
  readonly #table = new ConnectionTable();
  readonly #draining = new Set<Connection>();
  readonly #ready = new ReadyList();
  readonly #resets = new Resets(STRAY_RESETS + MAX_CONNECTIONS);
  readonly #slots: Slots;
  #largeBuffers = 0;
  #nextHostPort = FIRST_HOST_PORT;
  #nextDeadlineMs = Number.POSITIVE_INFINITY;
  /** Bytes of one connection that the guest has credit for, from `#stageStart` to `#stageEnd`. */
  readonly #stage = new Uint8Array(new ArrayBuffer(abi.MAX_DATA_BYTES));
  #stageStart = 0;
  #stageEnd = 0;
  #staged: Connection | undefined;
  /** Of the packet at hand. */
  #data: Uint8Array = new Uint8Array(0);
  #dataOf: Uint8Array = new Uint8Array(0);

  constructor(options: MuxOptions) {
    this.#options = options;
    this.packet = new OutPacket(options.guestCid);
    this.#slots = new Slots(options.slots);
    for (const { slot, guestPort, hostPort } of this.#slots.left()) this.#addReset(hostPort, guestPort, slot);
  }

  /** Connections that are there, waiting for an answer, or waiting for the host to read their last bytes. */
  get connectionCount(): number {
    return this.#table.size + this.#draining.size;
  }

  // --- from the guest ---

  /** Whether there is room for the answers of one more packet. */
  get mayReceive(): boolean {
    return this.#resets.count < STRAY_RESETS;
  }

  /** Takes a packet: the first `bytes` bytes of `packet`, which `view` is over. */
  receive(packet: Uint8Array, view: DataView, bytes: number): void {
    this.counters.packetsIn++;
    if (bytes < HEADER_BYTES || !this.#isOurs(view)) {
      this.counters.badPackets++;
      return;
    }
    const guestPort = Header.srcPort.get(view, 0);
    const hostPort = Header.dstPort.get(view, 0);
    const op = Header.op.get(view, 0);
    const dataBytes = bytes - HEADER_BYTES;
    const row = operationOf[op];
    const toHost = Header.dstCid.lo(view, 0) === abi.HOST_CID && Header.dstCid.hi(view, 0) === 0;
    if (!toHost || Header.type.get(view, 0) !== abi.TYPE_STREAM) return this.#refuse(view);
    const connection = this.#table.find(guestPort, hostPort);
    if (row === undefined || Header.len.get(view, 0) !== dataBytes || (dataBytes > 0 && !row.hasData)) {
      this.counters.badPackets++;
      if (connection === undefined || op === abi.OP_RST) return this.#refuse(view);
      return this.#abort(connection, 'the guest sent a packet that makes no sense');
    }
    if (connection === undefined) {
      if (op === abi.OP_REQUEST) return this.#request(view, guestPort, hostPort);
      return this.#refuse(view);
    }
    connection.peerBufAlloc = Header.bufAlloc.get(view, 0);
    connection.peerFwdCnt = Header.fwdCnt.get(view, 0);
    if (connection.credit > 0) {
      connection.hasAskedForCredit = false;
      if (connection.isReadable) this.#ready.add(connection);
    }
    switch (op) {
      case abi.OP_RST:
        return this.#over(connection, 'the guest reset the connection');
      case abi.OP_RESPONSE:
        return this.#response(connection);
      case abi.OP_SHUTDOWN:
        return this.#shutdown(connection, Header.flags.get(view, 0) & abi.SHUTDOWN_BOTH);
      case abi.OP_RW:
        return this.#readWrite(connection, packet, dataBytes);
      case abi.OP_CREDIT_REQUEST:
        return connection.state === c.CONNECTING
          ? this.#abort(connection, NOT_YET)
          : this.#send(connection, c.SEND_CREDIT_UPDATE);
      case abi.OP_CREDIT_UPDATE:
        return connection.state === c.CONNECTING ? this.#abort(connection, NOT_YET) : undefined;
      default:
        return this.#abort(connection, 'the guest asked for a connection that it has');
    }
  }

  #isOurs(view: DataView): boolean {
    return Header.srcCid.lo(view, 0) === this.#options.guestCid && Header.srcCid.hi(view, 0) === 0;
  }

  /** Answers a packet that belongs to nothing. A reset is never answered. */
  #refuse(view: DataView): void {
    if (Header.op.get(view, 0) === abi.OP_RST) return;
    this.#resets.add(
      Header.dstCid.lo(view, 0),
      Header.dstCid.hi(view, 0),
      Header.dstPort.get(view, 0),
      Header.srcPort.get(view, 0),
      Header.type.get(view, 0),
      -1,
    );
  }

  #request(view: DataView, guestPort: number, hostPort: number): void {
    const slot = this.#takeSlot(guestPort, hostPort);
    const end = slot < 0 ? undefined : this.#options.open(hostPort, guestPort, this);
    if (end === undefined) {
      this.#freeUnused(slot);
      return this.#refuse(view);
    }
    const connection = this.#begin(guestPort, hostPort, slot, c.OPEN);
    connection.end = end;
    connection.peerBufAlloc = Header.bufAlloc.get(view, 0);
    connection.peerFwdCnt = Header.fwdCnt.get(view, 0);
    this.#send(connection, c.SEND_RESPONSE);
    end.attach(connection);
  }

  #response(connection: Connection): void {
    if (connection.state !== c.CONNECTING) return this.#abort(connection, 'the guest answered what nobody asked');
    connection.state = c.OPEN;
    connection.deadlineMs = Number.POSITIVE_INFINITY;
    connection.end!.opened(connection.hostPort);
    if (connection.isReadable) this.#ready.add(connection);
  }

  #shutdown(connection: Connection, flags: number): void {
    if (connection.state === c.CONNECTING) return this.#abort(connection, NOT_YET);
    const before = connection.guestShut;
    connection.guestShut |= flags;
    const now = connection.guestShut & ~before;
    if ((now & abi.SHUTDOWN_RECEIVE) !== 0) {
      if (this.#staged === connection) this.#unstage();
      connection.end?.guestIsDeaf();
    }
    if ((now & abi.SHUTDOWN_SEND) !== 0 && connection.waitingBytes === 0) connection.end?.endOfGuest();
    if (connection.guestShut !== abi.SHUTDOWN_BOTH || isOver(connection)) return undefined;
    this.#remove(connection);
    this.#addReset(connection.hostPort, connection.guestPort, connection.slot);
    connection.slot = -1;
    if (connection.waitingBytes === 0 || connection.end === undefined) return this.#finish(connection, CLOSED);
    connection.state = c.DRAINING;
    this.#draining.add(connection);
    return undefined;
  }

  #readWrite(connection: Connection, packet: Uint8Array, bytes: number): void {
    if (connection.state === c.CONNECTING) return this.#abort(connection, NOT_YET);
    if ((connection.guestShut & abi.SHUTDOWN_SEND) !== 0)
      return this.#abort(connection, 'the guest sent data after it had said that it would not');
    if (!connection.hasRoomFor(bytes)) return this.#abort(connection, 'the guest sent more than it has credit for');
    this.counters.bytesIn += bytes;
    connection.received(bytes);
    const { end } = connection;
    let taken = bytes;
    if (end !== undefined && (connection.hostShut & abi.SHUTDOWN_RECEIVE) === 0) {
      if (packet !== this.#dataOf) {
        this.#dataOf = packet;
        this.#data = packet.subarray(HEADER_BYTES);
      }
      taken = connection.waitingBytes > 0 || bytes === 0 ? 0 : end.take(this.#data, bytes);
      if (isOver(connection)) return undefined;
      if (taken < 0) {
        this.#hostIsDeaf(connection);
        taken = bytes;
      } else if (taken < bytes) connection.keep(this.#data, taken, bytes);
    }
    if (connection.forwarded(taken)) this.#send(connection, c.SEND_CREDIT_UPDATE);
    return undefined;
  }

  // --- from the host ---

  /**
   * Asks the guest's program that listens at `guestPort` for a connection. Undefined, with `end` not used, when there are too
   * many. `HostEnd.opened` or `over` follows.
   */
  connect(guestPort: number, end: PendingEnd): Connection | undefined {
    let hostPort = this.#nextHostPort;
    while (this.#table.find(guestPort, hostPort) !== undefined) hostPort = nextPort(hostPort);
    const slot = this.mayReceive ? this.#takeSlot(guestPort, hostPort) : -1;
    if (slot < 0) return undefined;
    this.#nextHostPort = nextPort(hostPort);
    const connection = this.#begin(guestPort, hostPort, slot, c.CONNECTING);
    connection.end = end;
    this.#expire(connection, CONNECT_MS);
    this.#send(connection, c.SEND_REQUEST);
    end.attach(connection);
    return connection;
  }

  /** The host's end may have bytes for the guest, or has ended. */
  readable(connection: Connection): void {
    if (connection.state === c.OVER) return;
    connection.isReadable = true;
    if (this.#mayRead(connection)) return this.#ready.add(connection);
    // Nothing is read of it now or ever, but whether it is still there is worth knowing.
    const isUnread =
      connection.state === c.CONNECTING ||
      ((connection.guestShut & abi.SHUTDOWN_RECEIVE) | (connection.hostShut & abi.SHUTDOWN_SEND)) !== 0;
    if (isUnread && connection.end?.isGone() === true) this.#hostIsGone(connection);
    return undefined;
  }

  /** The host's end can take bytes again. */
  writable(connection: Connection): void {
    if (connection.state === c.OVER || connection.waitingBytes === 0) return;
    const taken = connection.flush();
    if (isOver(connection)) return undefined;
    if (taken < 0) return connection.state === c.DRAINING ? this.#hostIsGone(connection) : this.#hostIsDeaf(connection);
    if (connection.forwarded(taken) && connection.state === c.OPEN) this.#send(connection, c.SEND_CREDIT_UPDATE);
    if (connection.waitingBytes > 0) return;
    if (connection.state === c.DRAINING) this.#finish(connection, CLOSED);
    else if ((connection.guestShut & abi.SHUTDOWN_SEND) !== 0) connection.end?.endOfGuest();
    return undefined;
  }

  /** The host's end broke the stream off. */
  broken(connection: Connection): void {
    if (connection.state !== c.OVER) this.#abort(connection, 'the host reset the connection');
  }

  /** Nobody on the host will read any more; what they wrote is still for the guest. */
  #hostIsDeaf(connection: Connection): void {
    if ((connection.hostShut & abi.SHUTDOWN_SEND) !== 0) return this.#hostIsGone(connection);
    this.#dropWaiting(connection);
    return this.#tellShutdown(connection, abi.SHUTDOWN_RECEIVE);
  }

  /** Nobody on the host will read or write any more. */
  #hostIsGone(connection: Connection): void {
    if (connection.state === c.DRAINING) return this.#finish(connection, HUNG_UP);
    if (connection.state === c.CONNECTING) return this.#abort(connection, HUNG_UP);
    connection.end?.over(HUNG_UP);
    connection.end = undefined;
    this.#dropWaiting(connection);
    connection.isReadable = false;
    connection.state = c.CLOSING;
    this.#expire(connection, CLOSE_MS);
    return this.#tellShutdown(connection, abi.SHUTDOWN_BOTH);
  }

  /** What the host did not take is of no use to anybody, and must not hold the guest up. */
  #dropWaiting(connection: Connection): void {
    connection.forwarded(connection.waitingBytes);
    connection.forgetWaiting();
  }

  /** The host's stream has come to its end. */
  #endOfHost(connection: Connection): void {
    connection.isReadable = false;
    const isGone = (connection.hostShut & abi.SHUTDOWN_RECEIVE) !== 0 || connection.end?.isGone() === true;
    if (isGone) this.#hostIsGone(connection);
    else this.#tellShutdown(connection, abi.SHUTDOWN_SEND);
  }

  #tellShutdown(connection: Connection, flags: number): void {
    connection.hostShut |= flags;
    this.#send(connection, c.SEND_SHUTDOWN);
  }

  // --- for the guest ---

  /** Whether a packet is there to compose; looks for data on the host where nothing else is to be sent. */
  prepare(): boolean {
    if (this.#resets.count > 0) return true;
    if (this.#staged !== undefined) {
      if (this.#staged.credit > 0) return true;
      this.#park(this.#staged);
    }
    for (;;) {
      const connection = this.#ready.first;
      // Reading may have broken a connection off.
      if (connection === undefined) return this.#resets.count > 0;
      if (connection.todo !== 0) return true;
      if (this.#read(connection)) return true;
    }
  }

  #mayRead(connection: Connection): boolean {
    return (
      connection.state === c.OPEN &&
      connection.isReadable &&
      (connection.todo & c.SEND_RESPONSE) === 0 &&
      ((connection.guestShut & abi.SHUTDOWN_RECEIVE) | (connection.hostShut & abi.SHUTDOWN_SEND)) === 0
    );
  }

  /** Reads what the first one that is ready has for the guest. It is ready no more, or has had its turn. */
  #read(connection: Connection): boolean {
    this.#ready.shift();
    const { end, credit } = connection;
    if (end === undefined || !this.#mayRead(connection)) return false;
    if (credit === 0) {
      if (connection.hasAskedForCredit) return false;
      connection.hasAskedForCredit = true;
      this.#send(connection, c.SEND_CREDIT_REQUEST);
      return false;
    }
    const got = this.#unpark(connection) || end.give(this.#stage, Math.min(credit, abi.MAX_DATA_BYTES));
    // A service may have ended it in between.
    if (connection.end !== end) return false;
    if (got > 0) {
      this.#staged = connection;
      this.#stageStart = 0;
      this.#stageEnd = got;
      this.#ready.add(connection);
      return true;
    }
    connection.isReadable = false;
    if (got === 0) this.#endOfHost(connection);
    else if (got !== -EAGAIN) this.#abort(connection, 'the host broke the connection off');
    return false;
  }

  /** The guest took back the room for what was read for it: nobody else waits for that. */
  #park(connection: Connection): void {
    connection.parked = this.#stage.slice(this.#stageStart, this.#stageEnd);
    connection.isReadable = true;
    this.#ready.add(connection);
    this.#unstage();
  }

  #unpark(connection: Connection): number {
    const { parked } = connection;
    if (parked === undefined) return 0;
    this.#stage.set(parked);
    connection.parked = undefined;
    return parked.length;
  }

  /**
   * Makes the next packet, after `prepare` said that there is one, for a buffer of `capacity` bytes, more than a header. Returns
   * its bytes.
   */
  compose(capacity: number): number {
    this.counters.packetsOut++;
    if (this.#resets.count > 0) return this.#composeReset();
    const first = this.#ready.first;
    if (first !== undefined && first.todo !== 0) return this.#composeTodo(first);
    return this.#composeData(this.#staged!, capacity - HEADER_BYTES);
  }

  #headerOf(connection: Connection, op: number): DataView {
    const view = this.packet.begin(connection.hostPort, connection.guestPort, op);
    Header.bufAlloc.set(view, 0, connection.bufAlloc);
    Header.fwdCnt.set(view, 0, connection.fwdCnt);
    connection.toldFwdCnt = connection.fwdCnt;
    return view;
  }

  #composeReset(): number {
    const resets = this.#resets;
    const view = this.packet.begin(resets.hostPort, resets.guestPort, abi.OP_RST);
    view.setUint32(Header.srcCid.offset, resets.cidLo, true);
    view.setUint32(Header.srcCid.offset + 4, resets.cidHi, true);
    Header.type.set(view, 0, resets.type);
    this.counters.resets++;
    this.#slots.ends(resets.slot);
    resets.shift();
    return HEADER_BYTES;
  }

  #composeTodo(connection: Connection): number {
    const bit = connection.todo & -connection.todo;
    connection.todo &= ~bit;
    const view = this.#headerOf(connection, opOfTodo[bit]!);
    // Any packet tells it.
    connection.todo &= ~c.SEND_CREDIT_UPDATE;
    if (bit === c.SEND_SHUTDOWN) Header.flags.set(view, 0, connection.hostShut);
    if (connection.todo === 0 && !this.#mayRead(connection)) this.#ready.shift();
    return HEADER_BYTES;
  }

  #composeData(connection: Connection, room: number): number {
    const bytes = Math.min(room, connection.credit, this.#stageEnd - this.#stageStart);
    this.#headerOf(connection, abi.OP_RW);
    this.packet.carry(this.#stage, this.#stageStart, bytes);
    connection.todo &= ~c.SEND_CREDIT_UPDATE;
    connection.sent(bytes);
    this.counters.bytesOut += bytes;
    this.#stageStart += bytes;
    if (this.#stageStart === this.#stageEnd) this.#unstage();
    return HEADER_BYTES + bytes;
  }

  #unstage(): void {
    this.#staged = undefined;
    this.#stageStart = this.#stageEnd = 0;
  }

  /** The guest has been shown every packet that was composed. */
  shown(): void {
    this.#slots.shown();
  }

  // --- lives ---

  #takeSlot(guestPort: number, hostPort: number): number {
    if (this.connectionCount >= MAX_CONNECTIONS) {
      // What only waits for a host that does not read gives way.
      const [oldest] = this.#draining;
      if (oldest !== undefined) this.#finish(oldest, 'the guest has too many connections');
    }
    const slot = this.connectionCount < MAX_CONNECTIONS ? this.#slots.take(guestPort, hostPort) : -1;
    if (slot < 0) this.counters.refused++;
    return slot;
  }

  #freeUnused(slot: number): void {
    this.#slots.ends(slot);
  }

  #begin(guestPort: number, hostPort: number, slot: number, state: number): Connection {
    const isLarge = this.#largeBuffers < LARGE_BUFFERS;
    if (isLarge) this.#largeBuffers++;
    const bufAlloc = isLarge ? LARGE_BUFFER_BYTES : SMALL_BUFFER_BYTES;
    const connection = new Connection(guestPort, hostPort, bufAlloc, slot, state);
    this.#table.add(connection);
    this.counters.connections++;
    return connection;
  }

  #send(connection: Connection, todo: number): void {
    connection.todo |= todo;
    this.#ready.add(connection);
  }

  #addReset(hostPort: number, guestPort: number, slot: number): void {
    // Each connection has its place here: there is always room.
    this.#resets.add(abi.HOST_CID, 0, hostPort, guestPort, abi.TYPE_STREAM, slot);
  }

  /** Ends it, and tells the guest. */
  #abort(connection: Connection, reason: string): void {
    if (connection.slot >= 0) this.#addReset(connection.hostPort, connection.guestPort, connection.slot);
    connection.slot = -1;
    this.#over(connection, reason);
  }

  /** Ends it; the guest knows. */
  #over(connection: Connection, reason: string): void {
    this.#slots.ends(connection.slot);
    connection.slot = -1;
    if (connection.state !== c.DRAINING) this.#remove(connection);
    this.#finish(connection, reason);
  }

  #remove(connection: Connection): void {
    this.#table.remove(connection);
    this.#ready.remove(connection);
    connection.todo = 0;
    if (this.#staged === connection) this.#unstage();
  }

  #finish(connection: Connection, reason: string): void {
    this.#draining.delete(connection);
    connection.state = c.OVER;
    connection.isReadable = false;
    if (connection.bufAlloc === LARGE_BUFFER_BYTES) this.#largeBuffers--;
    connection.forgetWaiting();
    connection.parked = undefined;
    const { end } = connection;
    connection.end = undefined;
    end?.over(reason);
  }

  /** The guest's driver began anew, or is gone: it knows of no connection, and is told of none. */
  reset(reason: string): void {
    for (const connection of [...this.#table.list(), ...this.#draining]) {
      connection.slot = -1;
      if (connection.state !== c.DRAINING) this.#remove(connection);
      this.#finish(connection, reason);
    }
    this.#resets.clear();
    this.#slots.clear();
    this.#nextDeadlineMs = Number.POSITIVE_INFINITY;
  }

  /** A service threw. */
  fault(port: number, error: unknown): void {
    this.counters.serviceFaults++;
    this.#options.onFault?.(
      `the service at vsock port ${port} threw: ${error instanceof Error ? error.stack : String(error)}`,
    );
  }

  // --- time ---

  #expire(connection: Connection, withinMs: number): void {
    connection.deadlineMs = this.#options.nowMs() + withinMs;
    this.#nextDeadlineMs = Math.min(this.#nextDeadlineMs, connection.deadlineMs);
  }

  nextDeadlineMs(): number {
    return this.#nextDeadlineMs;
  }

  tick(nowMs: number): void {
    if (nowMs < this.#nextDeadlineMs) return;
    let next = Number.POSITIVE_INFINITY;
    for (const connection of this.#table.list())
      if (connection.deadlineMs <= nowMs) this.#abort(connection, 'the guest did not answer in time');
      else next = Math.min(next, connection.deadlineMs);
    this.#nextDeadlineMs = next;
  }
}

const NOT_YET = 'the guest had not answered yet';
const HUNG_UP = 'the host hung up';
const CLOSED = 'the guest closed the connection';

/** A service may end its connection whenever it is called. */
const isOver = (connection: Connection): boolean => connection.state === c.OVER;

const nextPort = (port: number): number => (port >= LAST_HOST_PORT ? FIRST_HOST_PORT : port + 1);

const opOfTodo: Readonly<Record<number, number>> = {
  [c.SEND_REQUEST]: abi.OP_REQUEST,
  [c.SEND_RESPONSE]: abi.OP_RESPONSE,
  [c.SEND_CREDIT_UPDATE]: abi.OP_CREDIT_UPDATE,
  [c.SEND_CREDIT_REQUEST]: abi.OP_CREDIT_REQUEST,
  [c.SEND_SHUTDOWN]: abi.OP_SHUTDOWN,
};
