import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { ServedMount } from './served-mount.ts';

/** Reads back all that fio wrote, and compares it with the checksum and place in each block. */
const verified = '--verify_fatal=1 --do_verify=1 --output-format=json';

const fioJobs: readonly { readonly title: string; readonly args: string }[] = [
  {
    title: 'random 4 KiB writes, two jobs',
    args: '--ioengine=psync --rw=randwrite --bs=4k --size=256k --numjobs=2 --verify=crc32c',
  },
  {
    title: 'sequential 64 KiB writes up to the size limit',
    args: '--ioengine=sync --rw=write --bs=64k --size=1m --verify=sha256',
  },
  {
    title: 'random reads and writes of odd sizes',
    args: '--ioengine=psync --rw=randrw --bsrange=512-9000 --bs_unaligned=1 --size=300k --verify=xxhash',
  },
  {
    title: 'O_DIRECT with 8 in flight by libaio',
    args: '--ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=16k --size=512k --verify=md5',
  },
  {
    title: 'io_uring with fsync after each',
    args: '--ioengine=io_uring --iodepth=8 --fsync=1 --rw=randwrite --bs=4k --size=128k --verify=crc32c',
  },
  {
    title: '50 small files',
    args: '--ioengine=sync --rw=randwrite --nrfiles=50 --filesize=4k --size=200k --bs=1k --verify=crc32c',
  },
];

interface FioReport {
  readonly jobs: readonly {
    readonly error: number;
    readonly write: { readonly io_bytes: number };
    readonly read: { readonly io_bytes: number };
  }[];
}

/** Stressors that make more files than they need by default, or larger ones than a value may be. */
const limitedBy: Readonly<Record<string, string>> = {
  chdir: '--chdir-dirs 500',
  dentry: '--dentries 500',
  fallocate: '--fallocate-bytes 1m',
  hdd: '--hdd-bytes 1m',
  readahead: '--readahead-bytes 1m',
  seek: '--seek-size 1m',
  'sync-file': '--sync-file-bytes 1m',
};

const stressors =
  'access chdir chmod chown dentry dir dirdeep dirmany dup fallocate fcntl filename flock fstat getdent handle hdd inotify io lease locka lockf open readahead rename seek sendfile splice symlink sync-file touch utime';

describe('load generators on a mount', () => {
  let mount: ServedMount;
  before(async () => {
    mount = await ServedMount.start();
  });
  after(() => mount[Symbol.asyncDispose]());

  for (const { title, args } of fioJobs) {
    test(`fio verifies ${title}`, async () => {
      const said = await mount.sh(`fio --name=v --directory=. ${args} ${verified}; rm -f v.*`);
      const { jobs } = JSON.parse(said.slice(said.indexOf('{'))) as FioReport;
      assert.ok(jobs.length > 0);
      for (const { error, read, write } of jobs) {
        assert.equal(error, 0);
        assert.ok(
          write.io_bytes > 0 && read.io_bytes >= write.io_bytes,
          `${read.io_bytes} read, ${write.io_bytes} written`,
        );
      }
    });
  }

  test('fio with mmap is refused ENODEV', async () => {
    const { errorText, text } = await mount.run(
      'fio --name=m --directory=. --ioengine=mmap --rw=randwrite --bs=4k --size=64k',
    );
    assert.match(text + errorText, /func=mmap, error=No such device/);
  });

  test('2,000 random writes, reads, truncations, appends and reopenings leave a file as they would on a disk', async () => {
    const said = await mount.sh(`python3 - <<'X'
import os, random
random.seed(1)
fd = os.open('f', os.O_CREAT | os.O_RDWR)
model = bytearray()
for i in range(2000):
    what = random.choice(['write', 'read', 'truncate', 'append', 'reopen', 'stat', 'empty'])
    offset, size = random.randrange(200000), random.randrange(1, 70000)
    if what == 'write':
        data = random.randbytes(size)
        os.pwrite(fd, data, offset)
        model.extend(bytes(max(0, offset - len(model))))
        model[offset:offset + size] = data
    elif what == 'read':
        assert os.pread(fd, size, offset) == model[offset:offset + size], i
    elif what == 'truncate':
        os.ftruncate(fd, offset)
        model = model[:offset] + bytes(max(0, offset - len(model)))
    elif what == 'append':
        with open('f', 'ab', 0) as f: f.write(b'appended')
        model += b'appended'
    elif what == 'reopen':
        os.close(fd)
        fd = os.open('f', os.O_RDWR)
    elif what == 'stat':
        assert os.fstat(fd).st_size == os.stat('f').st_size == len(model), i
    elif i % 5 == 0:
        open('f', 'wb', 0).close()
        model.clear()
print(os.pread(fd, 1 << 20, 0) == model)
X`);
    assert.equal(said, 'True\n');
  });

  for (const stressor of stressors.split(' ')) {
    test(`stress-ng --${stressor} ends without a failure`, async () => {
      const { exitCode, text, errorText } = await mount.run(
        `stress-ng --${stressor} 2 ${limitedBy[stressor] ?? ''} -t 1 --temp-path . --verify --metrics-brief 2>&1; ls -A | wc -l`,
        { timeoutMs: 120_000 },
      );
      assert.equal(exitCode, 0, text + errorText);
      assert.doesNotMatch(text, /fail:|error:|skip/);
      assert.match(text, /successful run completed[^]*\n0\n$/);
    });
  }
});
