/** A guest makes symlinks as it likes. Where its tree is mounted on this machine too, they must lead nobody to its files. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';

const porthole = path.join(import.meta.dirname, '../../porthole');

async function readThroughLink(withGuest: boolean): Promise<{ readonly link: string; readonly read: string }> {
  const top = mkdtempSync(path.join(tmpdir(), 'porthole-links-'));
  const mount = path.join(top, 'mount');
  const victim = path.join(top, 'shadow');
  mkdirSync(mount);
  writeFileSync(victim, 'of this machine');
  const spec = path.join(top, 'spec.yaml');
  writeFileSync(spec, `porthole: 1\nmetadata: { instance: { id: { symlink: ${victim} } } }\n`);
  const socket = withGuest ? ['--vhost-user', path.join(top, 'vm.sock')] : [];
  const server = spawn(porthole, ['serve', spec, '--mount', mount, ...socket], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    for await (const line of createInterface(server.stdout!)) if (line === `mounted on ${mount}`) break;
    server.stdout!.resume();
    const link = path.join(mount, 'instance/id');
    const told = { link: readlinkSync(link), read: '' };
    try {
      told.read = readFileSync(link, 'utf8');
    } catch (error) {
      told.read = (error as NodeJS.ErrnoException).code ?? '';
    }
    assert.equal(told.link, victim);
    return told;
  } finally {
    server.kill('SIGTERM');
    if (server.exitCode === null) await once(server, 'exit');
    rmSync(top, { recursive: true });
  }
}

test('a mount follows symlinks, but none beside a guest that can make them', async () => {
  assert.equal((await readThroughLink(false)).read, 'of this machine');
  assert.equal((await readThroughLink(true)).read, 'ELOOP');
});
