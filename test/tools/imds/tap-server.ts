/** `tap-server.ts DIRECTORY HOPS`: a metadata server on the device tap0 until its standard input ends. Says when it listens. */
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
// Twice, as at each boot.
for (let boots = 0; boots < 2; boots++) await sockets.listenOnTap();
process.stdout.write('listening\n');
for await (const _ of process.stdin);
