/** The guest's virtiofs with a back end that nobody here wrote, so that what fails elsewhere is not the guest's fault. */
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Guest } from '../../images/tiny/guest.ts';
import { startVirtiofsd, type Virtiofsd } from '../virtiofsd.ts';

describe('virtiofs served by the C virtiofsd', () => {
  let source: string;
  let backEnds: Virtiofsd[];
  let guests: Guest[];
  before(async () => {
    source = mkdtempSync(join(tmpdir(), 'porthole-source-'));
    chmodSync(source, 0o755);
    writeFileSync(join(source, 'open'), 'for all\n');
    writeFileSync(join(source, 'secret'), 'for root\n', { mode: 0o600 });
    backEnds = await Promise.all([1, 2].map(() => startVirtiofsd({ source, cache: 'none' })));
    guests = await Promise.all(
      backEnds.map(({ socket }) => Guest.start({ virtiofs: [{ socket, tag: 'metadata' }], allowReset: true })),
    );
  });
  after(async () => {
    for (const each of [...guests, ...backEnds]) await each[Symbol.asyncDispose]();
    rmSync(source, { recursive: true });
  });

  test('mount shows the host’s files to root and to users as their modes say, in two guests at once', async () => {
    for (const guest of guests) {
      await guest.mount('metadata', '/run/metadata');
      assert.equal(await guest.sh('cat /run/metadata/open /run/metadata/secret'), 'for all\nfor root\n');
      const user = await guest.run('cat /run/metadata/open /run/metadata/secret', { uid: 1000 });
      assert.deepEqual([user.text, user.exitCode], ['for all\n', 1]);
      assert.match(user.errorText, /secret: Permission denied/);
    }
  });

  test('mount works again after the driver was unbound and bound, and after a reset', async () => {
    const [guest] = guests;
    assert.ok(guest);
    await guest.sh('umount /run/metadata');
    await guest.sh('cd /sys/bus/virtio/drivers/virtiofs; d=$(basename virtio*); echo $d >unbind; echo $d >bind');
    await guest.mount('metadata', '/run/metadata');
    assert.equal(await guest.sh('cat /run/metadata/open'), 'for all\n');
    await guest.reset();
    await guest.mount('metadata', '/run/metadata');
    assert.equal(await guest.sh('cat /run/metadata/open'), 'for all\n');
  });
});
