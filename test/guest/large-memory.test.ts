/** Guests whose buffers are where a small guest has none: beyond 4 GiB, in a second region of guest memory, from two CPUs. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { Guest } from '../../images/tiny/guest.ts';
import { serve } from '../../src/host/index.ts';

const at = '/run/metadata';
const md5 = (bytes: Uint8Array): string => createHash('md5').update(bytes).digest('hex');

/** Pages in use by zone, of /proc/zoneinfo; with 6 GiB, `Normal` is all that lies beyond 4 GiB. */
const usedPages =
  (zoneinfo: string) =>
  (zone: string): number => {
    const found = new RegExp(`zone +${zone}\\n[^]*?managed +(\\d+)[^]*?nr_free_pages +(\\d+)`).exec(zoneinfo);
    assert.ok(found, zoneinfo);
    return Number(found[1]) - Number(found[2]);
  };

test('a guest with 6 GiB and two CPUs reads and writes with buffers beyond 4 GiB', async () => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-memory-'));
  const socket = path.join(directory, 'socket');
  const file = path.join(directory, 'vm.yaml');
  const value = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 31 + (i >> 8)) & 0xff));
  writeFileSync(path.join(directory, 'value'), value);
  writeFileSync(file, 'porthole: 1\nmetadata: { instance: { value: { file: ./value } } }\n');
  try {
    await using server = await serve({
      file,
      vhostUser: [socket],
      mounts: [],
      writeStdout: () => true,
      onEvent: () => {},
    });
    await using guest = await Guest.start({ memory: '6G', cpus: 2, virtiofs: [{ socket, tag: 'metadata' }] });
    await guest.mount('metadata', at);
    const copies = [0, 1].map((cpu) =>
      guest.sh(
        `taskset ${1 << cpu} sh -c 'cp ${at}/instance/value ${at}/guest/copy-${cpu} && md5sum <${at}/guest/copy-${cpu}'`,
        { timeoutMs: 60_000 },
      ),
    );
    for (const text of await Promise.all(copies)) assert.equal(text, `${md5(value)}  -\n`);
    const { snapshot } = server.tree.authority;
    for (const cpu of [0, 1]) {
      const node = snapshot.resolve(`/guest/copy-${cpu}`);
      assert.ok(node?.bytes && value.equals(node.bytes));
    }
    const used = usedPages(await guest.sh('cat /proc/zoneinfo'));
    assert.ok(used('Normal') > 2 * used('DMA32'), `${used('Normal')} pages beyond 4 GiB, ${used('DMA32')} below`);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
