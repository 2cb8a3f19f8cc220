/**
 * Plays a device process for serve.test.ts: takes the link at descriptor 3, keeps a replica, and answers JSON lines on
 * each vhost-user socket: { mutation } with the outcome, { get: path } with the value, { do: 'exit' | 'lie' | 'scribble' }.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { createServer, Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { encodeMessage, monotonicMs, ringWords, type ToHost } from '../../src/device/index.ts';
import { readerOnDevice } from '../../src/device/link.ts';
import { type Mutation, Replica } from '../../src/tree/index.ts';

interface Command {
  readonly mutation?: Mutation;
  /** The mutation comes when its time is over. */
  readonly expired?: boolean;
  readonly get?: string;
  readonly do?: 'exit' | 'lie' | 'scribble' | 'environment';
}

const link = new Socket({ fd: 3 });
const send = (message: ToHost): void => void link.write(encodeMessage(message));
const reader = readerOnDevice();
const replica = new Replica();
const waiting = new Map<number, (outcome: object) => void>();
const sockets: string[] = [];
let auditRing = '';
let sequence = 0;

const run = (command: Command, answer: (value: object) => void): void => {
  if (command.do === 'exit') {
    console.error('the fake gives up');
    process.exit(7);
  }
  if (command.do === 'lie') link.write(Uint8Array.of(9, 0, 0, 0, 200));
  if (command.do === 'scribble') {
    const ring = openSync(auditRing, 'r+');
    writeSync(ring, Uint32Array.of(64, ~64), 0, 8, ringWords.head * 4);
    closeSync(ring);
    send({ type: 'auditWaiting' });
  }
  if (command.do === 'environment') answer({ environment: Object.keys(process.env), arguments: process.argv.slice(2) });
  if (command.get !== undefined) {
    const node = replica.snapshot.resolve(command.get);
    const value = node?.bytes === undefined ? null : new TextDecoder().decode(node.bytes);
    answer({ value, ino: node?.ino ?? 0, revision: replica.snapshot.revision });
  }
  if (command.mutation === undefined) return;
  const { mutation } = command;
  const text = 'data' in mutation ? { data: new TextEncoder().encode(String(mutation.data)) } : {};
  waiting.set(++sequence, answer);
  const expiresMs = monotonicMs() + (command.expired === true ? -1 : 60_000);
  send({ type: 'mutation', sequence, way: 'virtiofs', mutation: { ...mutation, ...text } as Mutation, expiresMs });
};

send({ type: 'hello', protocol: 1, holder: randomUUID(), pid: process.pid });
link.on('data', (chunk: Uint8Array) => {
  for (const message of reader.feed(chunk)) {
    if (message.type === 'delta') {
      replica.apply(message.delta);
      send({ type: 'applied', revision: message.delta.revision });
    }
    if (message.type === 'askStatistics') send({ type: 'statistics', id: message.id, counters: { asked: message.id } });
    if (message.type === 'shutdown') {
      for (const path of sockets) rmSync(path, { force: true });
      process.exit(0);
    }
    if (message.type === 'outcome') {
      const { bytes, ...outcome } = message.outcome;
      waiting.get(message.sequence)?.({ ...outcome, ...(bytes && { value: new TextDecoder().decode(bytes) }) });
      waiting.delete(message.sequence);
    }
    if (message.type !== 'config') continue;
    auditRing = message.auditRing ?? '';
    for (const { path } of message.mounts) {
      send({ type: 'failed', target: { kind: 'mount', path }, reason: 'the fake mounts nothing' });
    }
    for (const { path } of message.vhostUser) {
      const server = createServer((socket) => {
        const answer = (value: object): void => void socket.write(`${JSON.stringify(value)}\n`);
        socket.on('error', () => {});
        createInterface(socket).on('line', (line) => run(JSON.parse(line) as Command, answer));
      });
      server.listen(path, () => {
        sockets.push(path);
        send({ type: 'ready', target: { kind: 'vhost-user', path } });
      });
    }
  }
});
link.on('close', () => process.exit(0));
