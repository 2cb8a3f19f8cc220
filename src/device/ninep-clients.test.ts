import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NinepClients, type PolledStream } from './ninep-clients.ts';

/** A stream that has so many reads' worth of bytes. */
class Stream implements PolledStream {
  waiting = 0;
  reads = 0;

  take(): boolean {
    this.reads++;
    return this.waiting > 0 && this.waiting-- > 0;
  }
}

test('NinepClients reads a stream that it is told of at once, again while the loop spins, and not when it sleeps', () => {
  const clients = new NinepClients(() => undefined);
  const stream = new Stream();
  const reads = (): number => {
    clients.process();
    return stream.reads;
  };
  assert.equal(reads(), 0, 'nobody told of it');
  stream.waiting = 2;
  clients.wake(stream);
  assert.equal(stream.reads, 1);
  assert.equal(clients.servedCount, 0);
  assert.equal(reads(), 1);
  assert.equal(clients.servedCount, 1, 'the loop sees that something was served');
  clients.suppressKicks(true);
  assert.deepEqual([reads(), reads(), reads()], [2, 3, 4], 'there was nothing more, but there may be');
  stream.waiting = 1;
  assert.equal(reads(), 5);
  assert.equal(clients.servedCount, 3);
  clients.suppressKicks(false);
  clients.suppressKicks(true);
  assert.equal(reads(), 5, 'an event tells of the next');
  clients.wake(stream);
  assert.deepEqual([stream.reads, reads()], [6, 6], 'told of in vain, it is read once');
  stream.waiting = 9;
  clients.wake(stream);
  clients.forget(stream);
  assert.equal(reads(), 7, 'it is closed');
});
