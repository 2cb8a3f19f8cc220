/** The network of a host that is all in one network namespace: this file runs itself again in there. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { SessionLauncher } from '../qemu/index.ts';
import { HostNetwork } from './host-network.ts';

const variable = 'PORTHOLE_TEST_RUN_DIRECTORY';
const within = process.env[variable];
const skip =
  process.getuid?.() === 0 && existsSync('/dev/net/tun') ? false : 'tap devices take root and a /dev/net/tun';
const guest = { id: 'i-1', mac: '52:54:00:00:00:01', ipv4: '10.20.0.5', dns: [], hasMetadata: false };

const open = (runDirectory: string): HostNetwork =>
  new HostNetwork({
    runDirectory,
    launcher: new SessionLauncher(),
    onTrouble: (what) => {
      throw new Error(what);
    },
  });

/** Of the tap device: whose it is, in its own words. */
const ownerOf = (tap: string): unknown => {
  const links = execFileSync('ip', ['-json', '-details', 'link', 'show', 'dev', tap], { encoding: 'utf8' });
  const [link] = JSON.parse(links) as { linkinfo: { info_data: { user: unknown } } }[];
  return link?.linkinfo.info_data.user;
};

const inNetwork = async (runDirectory: string): Promise<readonly unknown[]> => {
  const owners: unknown[] = [];
  // It left while the daemon was away, and came back, as another user.
  for (const uid of [61_001, 61_001, 61_002]) {
    const network = open(runDirectory);
    await network.attach({ ...guest, uid });
    owners.push(ownerOf(network.tapOf(guest.id)));
    await network.release();
  }
  // Of a daemon that does not know any more what is attached.
  writeFileSync(join(runDirectory, 'network/attached.json'), '[{}]');
  const last = open(runDirectory);
  await last.attach({ ...guest, id: 'i-2', ipv4: '10.20.0.6', uid: 61_003 });
  owners.push(ownerOf(last.tapOf(guest.id)));
  await last.keepOnly(new Set());
  await last.release();
  assert.equal(execFileSync('ip', ['-o', 'link'], { encoding: 'utf8' }).includes(last.tapOf(guest.id)), false);
  return owners;
};

if (within === undefined) {
  test('HostNetwork bounds the logs of what guests speak to', async (t) => {
    t.mock.timers.enable({ apis: ['setInterval'] });
    const directory = mkdtempSync(join(tmpdir(), 'porthole-network-'));
    t.after(() => rmSync(directory, { recursive: true }));
    const network = open(directory);
    const logs = ['dnsmasq', 'bird'].map((name) => join(directory, 'network', `${name}.log`));
    mkdirSync(join(directory, 'network'));
    for (const log of logs) writeFileSync(log, 'a line\n'.repeat(1024 * 1024));
    t.mock.timers.tick(60_000);
    for (const log of logs) assert.ok(statSync(log).size <= 1024 * 1024);
    await network.release();
  });

  test('HostNetwork makes a tap device anew that belongs to the user of before, and takes none from who may have it', {
    skip,
  }, (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'porthole-network-'));
    t.after(() => rmSync(directory, { recursive: true }));
    const printed = execFileSync('unshare', ['--net', process.execPath, import.meta.filename], {
      encoding: 'utf8',
      env: { PATH: process.env['PATH'], [variable]: join(directory, 'run') },
    });
    assert.deepEqual(JSON.parse(printed), [61_001, 61_001, 61_002, 61_002]);
  });
} else process.stdout.write(JSON.stringify(await inNetwork(within)));
