import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryStore } from '../../test/store/temporary.ts';
import { until } from '../../test/until.ts';
import { encodeRecord, type HostLeftRecord, hostLeftKey } from '../records/index.ts';
import { openStores } from '../store/index.ts';
import { LeftVms } from './left-vms.ts';

const uid = 61_977;
const skip = process.getuid?.() === 0 ? false : 'processes of other users take root';

test('LeftVms ends what runs as the user of a VM that was here, and nobody where it never was', { skip }, async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-left-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const stores = await openStores(temporaryStore(t));
  t.after(() => stores.close());
  const { region } = stores;
  const other = spawn('sleep', ['3600'], { uid, gid: uid, stdio: 'ignore' });
  t.after(() => other.kill('SIGKILL'));
  await until('it to run', () => readFileSync(`/proc/${other.pid}/comm`, 'latin1').startsWith('sleep'));
  const [stateDirectory, runDirectory] = [join(directory, 'state'), join(directory, 'run')];
  const left = new LeftVms(region, 'h1', { stateDirectory, runDirectory });
  const leave = async (): Promise<void> => {
    const record: HostLeftRecord = { id: 'i-00000000000000001', epoch: 1, uid };
    const key = hostLeftKey('h1', 'web');
    await region.commit({ operations: [{ type: 'put', key, value: encodeRecord(record) }] });
    await left.removeAll();
    assert.equal(await left.has('web'), false);
  };
  // Left by a machine that had the name before.
  await leave();
  assert.match(readFileSync(`/proc/${other.pid}/status`, 'latin1'), /^State:\s+S/m);
  mkdirSync(join(stateDirectory, 'vms/web'), { recursive: true });
  const ended = once(other, 'exit');
  await leave();
  assert.deepEqual(await ended, [null, 'SIGKILL']);
  assert.equal(existsSync(join(stateDirectory, 'vms/web')), false);
});
