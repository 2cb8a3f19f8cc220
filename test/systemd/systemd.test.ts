/** The executable and its units in a Debian guest with systemd. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { startDebian } from '../../images/debian/guest.ts';
import type { Guest } from '../../images/tiny/guest.ts';
import { tinyImage } from '../../images/tiny/image.ts';
import { builtExecutable } from '../ships/built.ts';

const root = path.resolve(import.meta.dirname, '../..');
/** An emulated machine on a busy one. */
const patient = { timeoutMs: 240_000 };

let guest: Guest;
before(async () => {
  const { directory } = builtExecutable();
  const { dir: tiny } = await tinyImage();
  guest = await startDebian({
    shares: [
      { tag: 'dist', path: directory },
      { tag: 'systemd', path: path.join(root, 'systemd') },
      { tag: 'examples', path: path.join(root, 'examples') },
      { tag: 'tiny', path: tiny },
    ],
  });
  await guest.sh(
    `install -m 0755 /mnt/dist/porthole /mnt/dist/porthole-agent /usr/bin/
     install -m 0644 /mnt/systemd/*.service /etc/systemd/system/
     install -d /etc/porthole && install -m 0600 /mnt/examples/* /etc/porthole/`,
    patient,
  );
});
after(() => guest?.[Symbol.asyncDispose]());

/** What people are to see when it fails. */
const journal = async (unit: string): Promise<string> =>
  (await guest.run(`systemctl status --no-pager ${unit}; journalctl --no-pager -n 50 -u ${unit}`, patient)).text;

const sh = async (script: string): Promise<string> => {
  const { exitCode, text, errorText } = await guest.run(`set -eu\n${script}`, { ...patient, shell: 'bash' });
  assert.equal(exitCode, 0, `${script}\n${text}${errorText}\n${exitCode === 0 ? '' : await journal('porthole')}`);
  return text;
};

test('the units of systemd/ are what systemd understands', async () => {
  assert.equal(await sh('systemd-analyze verify --man=no /etc/systemd/system/porthole*.service 2>&1'), '');
});

test('systemd-analyze calls porthole.service no worse than MEDIUM', async () => {
  const report = await sh('systemd-analyze security --no-pager --offline=true /etc/systemd/system/porthole.service');
  const exposure = Number(/Overall exposure level[^:]*: ([\d.]+)/.exec(report)?.[1]);
  assert.ok(exposure > 0 && exposure < 5, report);
});

/** By hand: `PORTHOLE_AGENT_KILLS=20`. */
const kills = Number(process.env['PORTHOLE_AGENT_KILLS'] ?? 2);

test(`porthole-agent.service: the mount outlives ${kills} kills and a restart, and ends with a stop`, async () => {
  await sh(`
    systemd-run --quiet --unit=metadata porthole serve /etc/porthole/web.yaml \
      --http unix:/run/metadata.sock,privileged --state /var/lib/porthole/agent
    echo SERVER=unix:/run/metadata.sock >/etc/default/porthole-agent
    systemctl start porthole-agent
  `);
  const said = await sh(`
    cd /run/metadata/guest
    exec 3</run/metadata/secrets/db-password
    device=$(stat -c %d .)
    pid() { systemctl show -P MainPID porthole-agent; }
    for n in $(seq ${kills}); do
      before=$(pid)
      kill -9 $before
      echo $n >>log
      [ "$(pid)" != $before ]
    done
    before=$(pid)
    systemctl restart porthole-agent
    [ "$(pid)" != $before ]
    echo restarted >>log
    [ "$(stat -c %d .)" = $device ]
    systemctl show -P NFileDescriptorStore porthole-agent
    cat log
    cat <&3
  `);
  const numbers = Array.from({ length: kills }, (_, i) => `${i + 1}\n`).join('');
  assert.equal(said, `5\n${numbers}restarted\nhunter2`);
  assert.equal(
    await sh(`
      systemctl stop porthole-agent
      mountpoint -q /run/metadata || echo ended
      systemctl start porthole-agent
      cat /run/metadata/secrets/db-password
      systemctl stop porthole-agent metadata
    `),
    'ended\nhunter2',
    'its token was handed back',
  );
});

/** porthole.service with its sandbox, and `serve` in the place of its command. */
const serveAsUnit = `
  mkdir -p /etc/systemd/system/porthole.service.d
  cat >/etc/systemd/system/porthole.service.d/serve.conf <<'END'
[Service]
ExecStart=
ExecStartPre=/bin/mkdir -p /run/porthole/mnt
ExecStart=/usr/bin/porthole serve /etc/porthole/web.yaml --mount /run/porthole/mnt --state /var/lib/porthole/web
END
  systemctl daemon-reload
`;

/** In the service's own view of the file system, where the mount is. */
const inside = (command: string): string =>
  `nsenter --mount --target $(systemctl show -P MainPID porthole) -- ${command}`;

const untilMounted = `
  for try in $(seq 1200); do
    [ "$(systemctl show -P MainPID porthole)" != 0 ] && ${inside('mountpoint -q /run/porthole/mnt')} && break
    systemctl is-failed -q porthole && exit 1
    sleep 0.1
  done
`;

test('porthole serve runs as porthole.service: a read, a restart, a stop', async () => {
  await sh(`${serveAsUnit}
    systemctl start porthole
    ${untilMounted}`);
  assert.equal(await sh(inside('cat /run/porthole/mnt/instance/hostname')), 'web-1');
  assert.equal(await sh(inside('cat /run/porthole/mnt/secrets/db-password')), 'hunter2');
  await sh(inside(`sh -c 'echo kept >/run/porthole/mnt/guest/file'`));

  const before = await sh('systemctl show -P MainPID porthole');
  await sh(`systemctl restart porthole\n${untilMounted}`);
  assert.notEqual(await sh('systemctl show -P MainPID porthole'), before);
  assert.equal(await sh(inside('cat /run/porthole/mnt/guest/file')), 'kept\n');

  await sh('systemctl stop porthole');
  assert.equal(await sh('systemctl is-active porthole || true'), 'inactive\n');
  assert.equal(await sh("grep -c /run/porthole/mnt /proc/[0-9]*/mountinfo | grep -v ':0$' || true"), '');
  assert.equal(await sh('ls -d /run/porthole'), '/run/porthole\n');
});

test('porthole.service may start units of other users, which live on without it', async () => {
  await sh(`
    cat >/etc/systemd/system/porthole.service.d/serve.conf <<'END'
[Service]
ExecStart=
ExecStart=/bin/sh -c "systemd-run --quiet --collect --service-type=exec --unit=porthole-try -- setpriv --reuid=700001 --regid=700001 --clear-groups sleep 1000 && exec sleep 1000"
END
    systemctl daemon-reload
    systemctl start porthole
    for try in $(seq 600); do systemctl is-active -q porthole-try && break; sleep 0.1; done
    systemctl stop porthole`);
  assert.equal(await sh('stat -c %u /proc/$(systemctl show -P MainPID porthole-try)'), '700001\n');
  await sh('systemctl stop porthole-try');
});

/** Until the daemon has said so many times that its API answers. A command that asks it takes seconds in emulation. */
const untilUp = (times: number): string => `
  for try in $(seq 600); do
    [ "$(journalctl --quiet -o cat -u porthole | grep -c '^API on')" = ${times} ] && break
    systemctl is-failed -q porthole && exit 1
    sleep 0.2
  done
  [ $try != 600 ]
`;

/** Reads and appends without pause, and tells on the console what went wrong. The guest's clock counts hundredths of a second. */
const load = String.raw`
now() { read -r up rest </proc/uptime; echo $((10#$(echo $up | tr -d .))); }
n=0
while [ ! -e /run/metadata/app/stop ]; do
  a=$(now); n=$((n+1))
  [ "$(cat /run/metadata/secrets/db)" = hunter2 ] || echo "READ FAILED $n"
  echo $n >>/run/metadata/guest/log || echo "REFUSED $n"
  d=$(($(now)-a)); [ $d -lt 100 ] || echo "stalled for $d hundredths of a second"
done
echo "rounds: $n"
`;

const webSpec = `porthole: 1
metadata: { instance: { hostname: web-1 }, secrets: { db: hunter2 }, app: { load: ${JSON.stringify(load)} } }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;

const consoleLog = '/var/lib/porthole/vms/web-1/console.log.*';
const untilOnConsole = (text: string): string => `
  for try in $(seq 1200); do grep -qs '${text}' ${consoleLog} && break; sleep 0.1; done
  grep -q '${text}' ${consoleLog}
`;

/** Lines that the VM has appended so far, as the API has them. */
const written = async (): Promise<number[]> =>
  (await sh('porthole metadata get web-1 /guest/log')).trim().split('\n').map(Number);

test('a VM, its QEMU, device process and keeper live on when porthole.service is restarted and killed', async (t) => {
  const commandLine = 'tiny=vm quiet panic=-1 random.trust_cpu=on';
  await sh(`
    rm -r /etc/systemd/system/porthole.service.d
    systemctl daemon-reload
    systemctl start porthole
    cat >/root/web.yaml <<'END'
${webSpec}END
    ${untilUp(1)}
    qemu-img create -q -f qcow2 /root/disk.qcow2 64M
    porthole image add disk /root/disk.qcow2
    porthole image add own --kernel /mnt/tiny/vmlinuz --initrd /mnt/tiny/initramfs --append '${commandLine}'
    porthole vm create web-1 --image own --type nano --disk 64M --metadata /root/web.yaml
    ${untilOnConsole('tiny: ready')}
    { echo 'bash /run/metadata/app/load 2>&1 </dev/null & echo be""gun'; exec sleep 600; } |
      porthole vm console web-1 >/tmp/console 2>&1 &
    ${untilOnConsole('begun')}
    kill %1`);
  // The outer guest's emulated CPU can virtualize, so that nothing is emulated twice.
  assert.match(await sh('journalctl --quiet -o cat -u porthole'), /^VMs run on KVM$/m);
  assert.equal(await sh('stat -c %a /var/lib/porthole'), '711\n');

  // Images are converted, and disks made, in a sandbox within the unit's own.
  assert.equal(await sh('stat -c %u /var/lib/porthole/vms/web-1/disk.qcow2'), '700000\n');
  const blobs = '/var/lib/porthole/oci/blobs/sha256';
  assert.equal(await sh(`for blob in ${blobs}/*; do head -c 3 $blob | grep -ao QFI; done || true`), 'QFI\n');

  const kinds = ['vm-web-1', 'watch-web-1', 'device-web-1', 'keeper'];
  const processes = async (): Promise<string> =>
    sh(kinds.map((kind) => `systemctl show -P Id -P MainPID -P Slice 'porthole-${kind}-*' | xargs`).join('\n'));
  const before = await processes();
  for (const [index, line] of before.trim().split('\n').entries())
    assert.match(line, new RegExp(`^[1-9]\\d* porthole\\.slice porthole-${kinds[index]}-\\w+\\.service$`));
  assert.equal(await sh("stat -c %u /proc/$(systemctl show -P MainPID 'porthole-vm-web-1-*')"), '700000\n');

  let lines = 0;
  /** A write waits for the daemon 5 s. */
  let refusedMost = 0;
  for (const [index, what] of ['restart', 'kill -s KILL'].entries()) {
    const began = performance.now();
    await sh(`systemctl ${what} porthole\n${untilUp(index + 2)}`);
    const upMs = performance.now() - began;
    refusedMost += Math.ceil(upMs / 5000);
    assert.equal(await processes(), before, `after systemctl ${what}`);
    const now = (await written()).length;
    assert.ok(now > lines, `the guest goes on after systemctl ${what}`);
    t.diagnostic(`systemctl ${what}: the API answered after ${(upMs / 1000).toFixed(1)} s`);
    lines = now;
  }

  await sh(`echo | porthole metadata set web-1 /app/stop\n${untilOnConsole('rounds: ')}`);
  const said = await sh(`cat ${consoleLog}`);
  for (const stall of said.match(/stalled.*/g) ?? []) t.diagnostic(stall.trim());
  assert.doesNotMatch(said, /READ FAILED/);
  // A daemon that is away for more than 5 s, as in emulation, costs the writes that waited for it, and no other.
  const refused = [...said.matchAll(/REFUSED (\d+)/g)].map(([, round]) => Number(round));
  assert.ok(refused.length <= refusedMost, said);
  const rounds = Array.from({ length: Number(/rounds: (\d+)/.exec(said)?.[1]) }, (_, index) => index + 1);
  const acknowledged = rounds.filter((round) => !refused.includes(round));
  assert.deepEqual(await written(), acknowledged, 'what was acknowledged, once, in order, and nothing else');
  t.diagnostic(`${rounds.length} rounds, ${refused.length} refused`);

  await sh('porthole vm rm web-1 --yes && systemctl stop porthole');
  assert.equal(await sh('systemctl show -P Result porthole'), 'success\n');
  assert.equal(await sh("systemctl list-units --plain --no-legend 'porthole-*.service'"), '');
});
