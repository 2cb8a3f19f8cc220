/**
 * Boots the tiny guest and opens a shell on its console, or runs one script: `node images/tiny/run.ts [--script S]
 * [--uid N] [--memory 256M] [--virtiofs SOCK]…`. The mount tag of the first socket is `metadata`, then `metadata1`, ….
 */
import { parseArgs } from 'node:util';
import { Guest } from './guest.ts';

const { values } = parseArgs({
  options: {
    script: { type: 'string' },
    uid: { type: 'string', default: '0' },
    memory: { type: 'string', default: '256M' },
    virtiofs: { type: 'string', multiple: true, default: [] },
  },
});

await using guest = await Guest.start({
  memory: values.memory,
  virtiofs: values.virtiofs.map((socket, index) => ({ socket, tag: `metadata${index || ''}` })),
});
if (values.script === undefined) {
  process.exitCode = await guest.shell();
} else {
  const { stdout, stderr, exitCode } = await guest.run(values.script, { uid: Number(values.uid) });
  process.stdout.write(stdout);
  process.stderr.write(stderr);
  process.exitCode = exitCode;
}
