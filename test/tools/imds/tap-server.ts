/**
 * `tap-server.ts DIRECTORY HOPS`: a metadata server on the device tap0 until its standard input ends. Each line of that is
 * another boot of the VM. Says each time that it listens.
 */
import { createInterface } from 'node:readline';
import { devicePaths } from '../../../src/host/device-paths.ts';
import { MetadataSockets } from '../../../src/host/metadata-sockets.ts';
import { Stage } from '../../imds/stage.ts';

const [directory = '', hops] = process.argv.slice(2);
await using stage = await Stage.start({ content: { instance: { id: 'i-1' } } });
await using sockets = await MetadataSockets.open({
  server: stage.server,
  paths: devicePaths(directory, directory, 'web'),
  owner: { uid: undefined, gid: undefined },
  wish: { ways: ['network'], ...(hops !== undefined && { hopLimit: Number(hops) }) },
  tap: 'tap0',
  onTrouble: (what) => process.stderr.write(`${what}\n`),
});
const boot = async (): Promise<void> => {
  await sockets.listenOnTap();
  process.stdout.write('listening\n');
};
await boot();
for await (const _ of createInterface({ input: process.stdin })) await boot();
