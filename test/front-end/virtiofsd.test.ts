/** The front end itself, proved against a back end that nobody here wrote: Debian's C virtiofsd. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { startVirtiofsd, virtiofsdProgram } from '../virtiofsd.ts';
import { FrontEnd, fuse } from './index.ts';

const skip =
  !existsSync(virtiofsdProgram) || process.getuid?.() !== 0
    ? `needs root and ${virtiofsdProgram} (Debian package qemu-system-common)`
    : false;

for (const options of [{ indirect: true }, { indirect: false }, { eventIdx: false }]) {
  test(`FrontEnd talks FUSE to the C virtiofsd when ${JSON.stringify(options)}`, { skip }, async (t) => {
    const dir = await mkdtemp('/tmp/porthole-virtiofsd-');
    await chmod(dir, 0o755);
    await writeFile(path.join(dir, 'hello'), 'hello, world');
    t.after(() => rm(dir, { recursive: true }));
    await using daemon = await startVirtiofsd({ source: dir, cache: 'none' });
    const front = FrontEnd.connect(daemon.socket, options);
    t.after(() => front.close());
    front.handshake();
    front.start();
    const queue = front.queues[1]!;
    const request = queue.request(0);
    const reply = fuse.viewOf(queue.reply(0));
    front.roundTrip(queue, 0, fuse.writeInit(request, 2), fuse.INIT_REPLY_BYTES);
    assert.equal(fuse.OutHeader.error.get(reply, 0), 0);
    assert.equal(reply.getUint32(16, true), 7);
    assert.equal(front.roundTrip(queue, 0, fuse.writeGetattr(request, 4, 1), fuse.GETATTR_REPLY_BYTES), 120);
    assert.equal(fuse.OutHeader.unique.get(reply, 0), 4);
    assert.equal(reply.getUint32(16 + 16 + 60, true), 0o40755);
    const name = new TextEncoder().encode('hello');
    assert.equal(front.roundTrip(queue, 0, fuse.writeLookup(request, 6, 1, name), fuse.ENTRY_REPLY_BYTES), 144);
    const nodeid = reply.getUint32(16, true);
    front.roundTrip(queue, 0, fuse.writeOpen(request, 8, nodeid), fuse.OPEN_REPLY_BYTES);
    const [lo, hi] = [reply.getUint32(16, true), reply.getUint32(20, true)];
    assert.equal(front.roundTrip(queue, 0, fuse.writeRead(request, 10, nodeid, lo, hi, 0, 4096), 16 + 4096), 28);
    assert.equal(new TextDecoder().decode(queue.reply(0).slice(16, 28)), 'hello, world');
    front.roundTrip(queue, 0, fuse.writeRelease(request, 12, nodeid, lo, hi), 16);
    const bases = front.stop();
    assert.deepEqual(bases, [0, 6]);
  });
}
