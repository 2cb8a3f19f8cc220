/** The executable and its units in a Debian guest with systemd. */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { startDebian } from '../../images/debian/guest.ts';
import type { Guest } from '../../images/tiny/guest.ts';
import { builtExecutable } from '../ships/built.ts';

const root = path.resolve(import.meta.dirname, '../..');
/** An emulated machine on a busy one. */
const patient = { timeoutMs: 240_000 };

let guest: Guest;
before(async () => {
  const { directory } = builtExecutable();
  guest = await startDebian({
    shares: [
      { tag: 'dist', path: directory },
      { tag: 'systemd', path: path.join(root, 'systemd') },
      { tag: 'examples', path: path.join(root, 'examples') },
    ],
  });
  await guest.sh(
    `install -m 0755 /mnt/dist/porthole /usr/bin/porthole
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
  assert.equal(await sh('systemd-analyze verify --man=no /etc/systemd/system/porthole.service 2>&1'), '');
});

test('systemd-analyze calls porthole.service no worse than MEDIUM', async () => {
  const report = await sh('systemd-analyze security --no-pager --offline=true /etc/systemd/system/porthole.service');
  const exposure = Number(/Overall exposure level[^:]*: ([\d.]+)/.exec(report)?.[1]);
  assert.ok(exposure > 0 && exposure < 5, report);
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

test('porthole serve runs as porthole.service: a read, a restart, a kill, a stop', async () => {
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

  await sh(`
    old=$(systemctl show -P MainPID porthole)
    systemctl kill -s KILL porthole
    for try in $(seq 1200); do
      new=$(systemctl show -P MainPID porthole)
      [ "$new" != 0 ] && [ "$new" != "$old" ] && break
      sleep 0.1
    done
    ${untilMounted}`);
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

/** Asks the daemon over its socket, as a person on the machine does. */
const untilUp = `
  for try in $(seq 600); do
    porthole status --json >/tmp/status 2>/tmp/trouble && break
    systemctl is-failed -q porthole && exit 1
    sleep 0.2
  done
  cat /tmp/status
`;

test('porthole up is ready as porthole.service, again after a restart and after a kill', async () => {
  await sh('rm -r /etc/systemd/system/porthole.service.d && systemctl daemon-reload && systemctl start porthole');
  assert.ok(JSON.parse(await sh(untilUp)));
  await sh('systemctl restart porthole');
  assert.ok(JSON.parse(await sh(untilUp)));
  await sh(`
    old=$(systemctl show -P MainPID porthole)
    systemctl kill -s KILL porthole
    for try in $(seq 1200); do
      new=$(systemctl show -P MainPID porthole)
      [ "$new" != 0 ] && [ "$new" != "$old" ] && break
      sleep 0.1
    done`);
  assert.ok(JSON.parse(await sh(untilUp)));
  assert.equal(await sh('stat -c %a /var/lib/porthole'), '711\n');
  await sh('systemctl stop porthole');
  assert.equal(await sh('systemctl show -P Result porthole'), 'success\n');
});
