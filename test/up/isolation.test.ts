/** Two VMs with different policies at once: what root in one can do to see or hinder the other, both ways round. */
import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync, readdirSync, readlinkSync, readSync, statSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { connectAs } from './connect.ts';
import { UpMachine } from './machine.ts';

/** What root tries in a guest of the VM $1 against the VM $2; $3: the other's word, in two parts; $4: the host's run directory. */
const attempts = String.raw`
other=$2; word=$3$4; run=$5; port=$6; m=/run/metadata
echo "== names"
for path in $m/../$other $m/$other $m/vms/$other $m/../../vms/$other/fs.sock $m/guest/../../$other/secrets/db $run/vms/$other/fs/fs.sock; do
  ls -laR "$path"; cat "$path"; done
echo "== links"
mkdir -p $m/guest/links
ln -s ../../../$other $m/guest/links/up; ln -s $run/vms/$other $m/guest/links/run; ln -s /proc/1/root $m/guest/links/root
ln -s ../../vms/$other/secrets/db $m/guest/links/db
for link in $m/guest/links/up $m/guest/links/run $m/guest/links/db; do cat $link; ls -la $link/; done
mkdir "$m/guest/../../$other-made"; rmdir "$m/guest/../../$other-made"
echo "== all names and attributes"
find $m -xdev ! -path "$m/.changes" | sort
getfattr -R -d -m - $m/instance $m/secrets $m/guest
for name in system.porthole.vm system.porthole.$other system.porthole.nodeid system.porthole.tree user.$other trusted.$other security.$other; do
  getfattr -n $name $m $m/secrets/db; done
echo "== mounts"
mkdir -p /mnt/try
for tag in $other metadata-$other metadata/$other ../$other metadata1 metadata2 fs "" " " METADATA; do
  mount -t virtiofs "$tag" /mnt/try && echo "MOUNTED $tag"; done
mount -t 9p -o trans=virtio,version=9p2000.L $other /mnt/try && echo "MOUNTED 9p of the other"
mount -t 9p -o trans=virtio,version=9p2000.L metadata /mnt/try && echo "MOUNTED 9p"
mount -t virtiofs -o source=$other,subdir=$other,rootmode=40000,user_id=0 metadata /mnt/try && echo "MOUNTED with options"
mount -t virtiofs metadata /mnt/try && { find /mnt/try -xdev ! -path /mnt/try/.changes | sort; umount /mnt/try; }
echo "devices $(ls -d /sys/bus/virtio/drivers/virtiofs/virtio* | wc -l)"
for device in /sys/bus/virtio/devices/*; do cat $device/device $device/features; done
echo "== this kernel"
cat /proc/self/mountinfo /proc/cmdline /proc/iomem /proc/fs/*/* /sys/fs/fuse/connections/*/waiting
grep -rsl "[$3]$4" /proc/1/environ /proc/sys/kernel /sys/module/virtiofs /sys/bus/virtio/devices/*/ && echo "FOUND it"
echo "== the host"
for header in "Host: 127.0.0.1:$port" "Host: localhost:$port" "Accept: */*"; do
  for path in /v1/vms /v1/vms/$other/metadata/secrets/db; do wget -T 10 -q -O - --header "$header" http://10.0.2.2:$port$path && echo "ANSWERED"; done; done
echo "== handles"
trespass $m "$word" 2000
`;

/**
 * `fill` and `hold` fill what guests may make, hold the handles and readers that they get, and go on trying until /tmp/stop is
 * there; `load` times a program's reads and writes.
 */
const words = String.raw`
m=/run/metadata/guest
fill() { mkdir -p $m/$1; n=0; while [ ! -e /tmp/stop ]; do n=$((n+1))
  dd if=/dev/zero of=$m/$1/$n bs=64k count=1 2>/tmp/flood-$1 && mkdir -p $m/$1/d$n 2>/tmp/flood-$1 ||
  { [ -e /tmp/full-$1 ] || cp /tmp/flood-$1 /tmp/full-$1; n=$((n%100)); }; done; }
hold() { while [ ! -e /tmp/stop ]; do for i in 1 2 3 4 5 6 7 8; do timeout 5 cat /run/metadata/.changes >/dev/null 2>&1 & done
  for i in 1 2 3 4 5 6 7 8 9; do sleep 5 </run/metadata/secrets/key & done; wait; done; }
run() { /usr/bin/setpriv --reuid $1 --regid $1 --clear-groups /bin/busybox ash -c "$(cat /run/metadata/app/words); fill $1"; }
as() { echo "<$(/usr/bin/setpriv --reuid $1 --regid $1 --clear-groups cat $2 2>&1 | sed 's/.*: //')>"; }
load() { bench-fs open 300 /run/metadata/secrets/key; a=$(cut -d' ' -f1 /proc/uptime)
  for i in $(seq 50); do echo $i >>$m/log || echo FAILED; done; echo took $a $(cut -d' ' -f1 /proc/uptime)
  dd if=/dev/zero of=$m/own bs=64k count=4 2>/dev/null && rm $m/own || echo FAILED; }
`;

const users = [1000, 1001, 1002, 1003] as const;
type Name = 'one' | 'two';

/** `word` is asked for in the other guest; `silent` is never typed there, and must be nowhere in its memory. */
const tenants = {
  one: { word: 'alpha-6b1f03', silent: 'quebec-51d07e', owner: 1000, hostname: 'host-of-one' },
  two: { word: 'bravo-c2977e', silent: 'romeo-0ce84b', owner: 1001, hostname: 'host-of-two' },
} as const;
const otherOf = { one: 'two', two: 'one' } as const;

const specOf = (name: Name): string => {
  const { word, silent, hostname } = tenants[name];
  const policy =
    name === 'one'
      ? `  - { path: /secrets/db, owner: 1000, mode: "0400" }
  - { path: /guest, quota: { bytes: 4MiB, nodes: 300 } }`
      : `  - { path: /secrets/db, owner: 1001, mode: "0400", root: deny }
  - { path: /instance/hostname, owner: 1001, mode: "0440", hidden: true }
  - { path: /guest, quota: { bytes: 2MiB, nodes: 200 } }`;
  return `porthole: 1
metadata:
  instance: { hostname: ${hostname} }
  secrets: { db: ${word}, key: ${silent}, ${word}: named-${name} }
  app: { attempts: ${JSON.stringify(attempts)}, words: ${JSON.stringify(words)} }
policy:
  - { path: /app/*, mode: "0444" }
  - { path: /app, mode: "0755" }
${policy}
`;
};

describe('two VMs with different policies', () => {
  let machine: UpMachine;
  const ends: (() => unknown)[] = [];
  before(async () => {
    machine = new UpMachine({ after: (end) => ends.push(end as () => unknown) });
    await machine.start({ tcp: { host: '127.0.0.1', port: 0, names: [] } });
    await machine.tinyImage();
    const made = await Promise.all(
      (['one', 'two'] as const).map((name) =>
        machine.client.call('createVm', {
          body: { name, type: 'nano', image: { name: 'tiny' }, spec: specOf(name) },
        }),
      ),
    );
    for (const operation of made) await machine.done(operation);
    await Promise.all([machine.untilReady('one'), machine.untilReady('two')]);
    for (const name of ['one', 'two'] as const) {
      // The kernel says nothing more here.
      await machine.type(name, 'dmesg -n 1; . /run/metadata/app/words');
      await machine.type(name, 'cat /run/metadata/.changes >/tmp/changes &');
      // The shell holds it from now on.
      await machine.type(name, 'key=$(cat /run/metadata/secrets/key)');
    }
  });
  after(async () => {
    for (const end of ends) await end();
  });

  /** What it says, or why not. */
  const readAs = async (name: Name, uid: number, path: string): Promise<string> => {
    const printed = await machine.type(name, `as ${uid} /run/metadata/${path}`);
    return /<(.*)>/.exec(printed)?.[1] ?? printed;
  };

  test('each has the rules of its own policy, whatever the other’s says', async () => {
    const seen: Record<string, readonly string[]> = {};
    for (const name of ['one', 'two'] as const)
      for (const path of ['secrets/db', 'instance/hostname'])
        seen[`${name} ${path}`] = [
          await readAs(name, 0, path),
          await readAs(name, 1000, path),
          await readAs(name, 1001, path),
        ];
    const no = 'Permission denied';
    assert.deepEqual(seen, {
      'one secrets/db': ['alpha-6b1f03', 'alpha-6b1f03', no],
      'one instance/hostname': ['host-of-one', 'host-of-one', 'host-of-one'],
      'two secrets/db': [no, no, 'bravo-c2977e'],
      'two instance/hostname': ['host-of-two', 'No such file or directory', 'host-of-two'],
    });
  });

  for (const name of ['one', 'two'] as const) {
    const other = otherOf[name];

    test(`root in ${name} sees nothing of ${other}`, async (t) => {
      const { word, silent, hostname } = tenants[other];
      const port = new URL(machine.up.url!).port;
      const run = `${machine.directory}/run`;
      const given = [name, other, word.slice(0, 5), word.slice(5), run, port].join(' ');
      const printed = await machine.type(name, `sh /run/metadata/app/attempts ${given} 2>&1`);
      assert.match(printed, /== handles/, printed);
      for (const secret of [word, silent, hostname, `named-${other}`])
        assert.ok(!printed.includes(secret), `${secret} in ${printed}`);
      assert.doesNotMatch(printed, /MOUNTED|ANSWERED|FOUND/);
      assert.match(printed, /^devices 1$/m);
      const found = JSON.parse(/\{"handles".*\}/.exec(printed)?.[0] ?? printed) as Record<string, number>;
      assert.equal(found['found'], 0, printed);
      assert.ok(found['tried']! > 4_000 && found['ioctls']! > 4_000 && found['handles']! > 10, printed);
      t.diagnostic(
        `of ${found['tried']} handles ${found['opened']} opened, of ${found['ioctls']} ioctls ${found['answered']} were answered`,
      );
      // The probe finds what there is to find.
      const own = await machine.type(name, `trespass /run/metadata ${tenants[name].silent} 50`);
      assert.ok((JSON.parse(own) as Record<string, number>)['found']! > 0, own);
    });
  }

  test('who watches /.changes in one is told nothing of the other', async () => {
    for (const name of ['one', 'two'] as const)
      await machine.client.call('writeMetadata', {
        params: { name, path: `guest/told-${tenants[name].silent}` },
        body: Buffer.from('x'),
      });
    for (const name of ['one', 'two'] as const) {
      const own = `told-${tenants[name].silent}`;
      await machine.type(name, `until grep -q ${own} /tmp/changes; do sleep 0.1; done`);
      const told = await machine.type(name, 'cat /tmp/changes');
      const { silent, word } = tenants[otherOf[name]];
      assert.ok(!told.includes(silent) && !told.includes(word), told);
      assert.equal(told.split(own).length, 2, told);
    }
  });

  test('what serves one can reach nothing that serves the other', () => {
    const uids = Object.fromEntries(
      (['one', 'two'] as const).map((name) => {
        const [device, qemu] = [machine.devicePid(name)!, machine.qemuPid(name)!].map(
          (pid) => statSync(`/proc/${pid}`).uid,
        );
        assert.equal(device, qemu);
        return [name, device!];
      }),
    ) as Record<Name, number>;
    assert.notEqual(uids.one, uids.two);
    for (const name of ['one', 'two'] as const)
      for (const socket of ['device/link.sock', 'fs/fs.sock', 'qemu/qmp.sock', 'keeper.sock', 'console.sock']) {
        const path = `${machine.directory}/run/vms/${otherOf[name]}/${socket}`;
        assert.ok(statSync(path).isSocket());
        assert.equal(connectAs(uids[name], path), 'Permission denied', path);
      }
  });

  test('nothing of the other was ever in the memory of one', async () => {
    for (const name of ['one', 'two'] as const) {
      const pid = machine.qemuPid(name)!;
      assert.ok(memoryHas(pid, tenants[name].silent), 'its own is there');
      assert.ok(!memoryHas(pid, tenants[otherOf[name]].silent), `the other’s is in the memory of ${name}`);
    }
  });

  for (const name of ['one', 'two'] as const) {
    const other = otherOf[name];

    test(`${other} reads and writes on while ${name} fills what it may`, async (t) => {
      const load = async (): Promise<{ readonly p50: number; readonly p99: number; readonly writesMs: number }> => {
        const printed = await machine.type(other, 'load');
        assert.doesNotMatch(printed, /FAILED/);
        const [, from, to] = /took (\S+) (\S+)/.exec(printed) ?? [];
        const { p50, p99 } = JSON.parse(/\{.*\}/.exec(printed)?.[0] ?? printed) as {
          readonly p50: number;
          readonly p99: number;
        };
        return { p50: p50 / 1000, p99: p99 / 1000, writesMs: ((Number(to) - Number(from)) * 1000) / 50 };
      };
      // The same share of this machine's time is taken from the other, by nothing of ours.
      await machine.type(name, 'rm -f /tmp/stop; (while [ ! -e /tmp/stop ]; do :; done) &');
      const quiet = await load();
      await machine.type(name, 'touch /tmp/stop; sleep 0.5; rm /tmp/stop');
      for (const uid of users) await machine.type(name, `run ${uid} >/dev/null 2>&1 &`);
      await machine.type(name, 'hold >/dev/null 2>&1 &');
      await machine.type(name, `until [ -s /tmp/full-${users[0]} ]; do sleep 0.1; done`);
      const busy = await load();
      const complaints = await machine.type(name, `cat /tmp/full-${users[0]}`);
      assert.match(complaints, /No space left on device|Disk quota exceeded/);
      await machine.type(name, 'touch /tmp/stop; rm -rf /run/metadata/guest/100?');
      t.diagnostic(
        ['beside a busy loop', quiet, 'beside the flood', busy]
          .map((part) =>
            typeof part === 'string'
              ? part
              : `read p50 ${part.p50.toFixed(0)} p99 ${part.p99.toFixed(0)} µs, append ${part.writesMs.toFixed(1)} ms`,
          )
          .join(': '),
      );
      assert.ok(busy.p99 < 1_000_000, 'reads do not wait');
      assert.ok(busy.writesMs < 1_000, 'writes do not wait');
    });
  }
});

/** Whether the guest's memory, that of its QEMU, has these bytes anywhere. */
const memoryHas = (pid: number, text: string): boolean => {
  const directory = `/proc/${pid}/fd`;
  const fds = readdirSync(directory).filter((fd) => readlinkSync(`${directory}/${fd}`).startsWith('/memfd:'));
  assert.ok(fds.length > 0, 'QEMU has its guest’s memory as a file');
  const wanted = Buffer.from(text);
  const piece = Buffer.alloc(1024 * 1024 + wanted.length);
  for (const fd of fds) {
    const memory = openSync(`${directory}/${fd}`, 'r');
    try {
      const { size } = fstatSync(memory);
      for (let at = 0; at < size; at += 1024 * 1024) {
        const length = readSync(memory, piece, 0, piece.length, at);
        if (piece.subarray(0, length).includes(wanted)) return true;
      }
    } finally {
      closeSync(memory);
    }
  }
  return false;
};
