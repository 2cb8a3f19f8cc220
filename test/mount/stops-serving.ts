/** Mounts on the directory it is given and serves, until a line comes: then it lets the next request lie, and takes a name away. */
import { once } from 'node:events';
import { setImmediate } from 'node:timers/promises';
import { DevFuse, FuseSession } from '../../src/fuse/index.ts';
import { POLLIN, pollOne } from '../../src/sys/index.ts';
import { ways } from '../../src/tree/index.ts';
import { World } from '../tree/world.ts';

const world = new World({ content: { guest: {}, instance: { id: 'i-1' } } });
const transport = DevFuse.mount(process.argv[2]!);
transport.attach(
  new FuseSession(world.fileSystem(ways.mount), {
    transport: 'dev-fuse',
    notifier: transport,
    clock: world.clock,
  }),
);
const stop = new AbortController();
process.stdin.once('data', () => stop.abort());
console.log('serves');
while (!stop.signal.aborted) {
  pollOne(transport.fd, POLLIN, 5);
  while (transport.process(64)) continue;
  await setImmediate();
}
console.log('stopped');
while (pollOne(transport.fd, POLLIN, 5) === 0) await setImmediate();
world.load({ content: { guest: {}, instance: {} } });
await once(process.stdin, 'end');
