/**
 * `tap-server.ts DIRECTORY HOPS`: a metadata server on the device tap0 until its standard input ends, by HTTPS too. Each line of
 * that is another boot of the VM. Says each time that it listens. What it is to be believed by is in DIRECTORY/cert.pem.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { devicePaths } from '../../../src/host/device-paths.ts';
import { MetadataSockets } from '../../../src/host/metadata-sockets.ts';
import { Stage } from '../../imds/stage.ts';

const [directory = '', hops] = process.argv.slice(2);
const [cert, key] = ['cert.pem', 'key.pem'].map((name) => join(directory, name)) as [string, string];
const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=metadata', '-days', '2'];
const names = ['-addext', 'subjectAltName=IP:169.254.169.254'];
execFileSync('openssl', ['req', '-x509', ...curve, ...names, '-keyout', key, '-out', cert], { stdio: 'ignore' });
await using stage = await Stage.start({ content: { instance: { id: 'i-1' } } });
await using sockets = await MetadataSockets.open({
  server: stage.server,
  paths: devicePaths(directory, directory, 'web'),
  owner: { uid: undefined, gid: undefined },
  wish: { ways: ['network'], ...(hops !== undefined && { hopLimit: Number(hops) }) },
  tap: 'tap0',
  tls: { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') },
  onTrouble: (what) => process.stderr.write(`${what}\n`),
});
const boot = async (): Promise<void> => {
  await sockets.listenOnTap();
  process.stdout.write('listening\n');
};
await boot();
for await (const _ of createInterface({ input: process.stdin })) await boot();
