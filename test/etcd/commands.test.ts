/** `porthole store` on what is no store, on one that a daemon uses, and with another key file. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { StoreClaim } from '../../src/cli/store-claim.ts';
import { openEtcdStores } from '../../src/store/index.ts';
import { porthole } from '../cli/stage.ts';
import { temporaryStore } from '../store/temporary.ts';
import { EtcdCluster } from './cluster.ts';

const run = (...args: readonly string[]): Promise<{ readonly failed: boolean; readonly said: string }> => {
  const [file, ...first] = porthole;
  return new Promise((resolve) =>
    execFile(file, [...first, 'store', ...args], (error, out, err) =>
      resolve({ failed: error !== null, said: out + err }),
    ),
  );
};

test('porthole store makes no store, leaves a daemon alone, and changes the key file', async (t) => {
  await using cluster = await EtcdCluster.start({ members: 1 });
  const { keyFile } = temporaryStore(t);
  const directory = dirname(keyFile);
  const url = `etcd://${cluster.endpoints[0]}/east`;
  const flags = ['--store', url, '--key', keyFile];
  for (const command of ['rotate', 'restored']) {
    const { failed, said } = await run(command, ...flags);
    assert(failed && /there is no store below the prefix "east" of etcd/.test(said), said);
  }
  const missing = await run('copy', '--from', `sqlite:${directory}/none`, '--to', url, '--key', keyFile);
  assert(
    missing.failed && /there is no store in ".*none\/store"; is the directory right/.test(missing.said),
    missing.said,
  );
  assert.equal(await cluster.ctl(['get', '--prefix', 'east']), '');
  assert.deepEqual([existsSync(join(directory, 'none')), existsSync(keyFile)], [false, false]);

  const place = { endpoints: cluster.endpoints, prefix: 'east' };
  {
    await using stores = await openEtcdStores({ ...place, keyFile });
    await stores.region.commit({ operations: [{ type: 'put', key: 'a', value: new Uint8Array([7]) }] });
    await using held = new AsyncDisposableStack();
    held.use(await StoreClaim.take(stores.region, { idFile: join(directory, 'daemon-id'), onLost: assert.fail }));
    for (const command of ['rotate', 'restored']) {
      const { failed, said } = await run(command, ...flags);
      assert(failed && /the host daemon on ".*" uses this store; stop every daemon first/.test(said), said);
    }
  }
  await using before = await openEtcdStores({ ...place, keyFile });
  const newKey = join(directory, 'key-2');
  const changed = await run('rotate', ...flags, '--key-file', newKey);
  assert(!changed.failed && /1 values sealed anew/.test(changed.said), changed.said);
  // Who opened it with the old key makes no data key that nobody else could open.
  await assert.rejects(before.rotateDataKey(), { code: 'STORE_KEY_WRONG' });
  await assert.rejects(openEtcdStores({ ...place, keyFile }), { code: 'STORE_KEY_WRONG' });
  await using after = await openEtcdStores({ ...place, keyFile: newKey });
  assert.deepEqual((await after.region.get('a'))?.value, new Uint8Array([7]));
});
