import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isReadableByAll } from '../../src/parts/index.ts';
import type { ImageFile, ImageRequest } from '../../src/records/index.ts';
import { porthole, setStage, spec, steady, withVm } from './stage.ts';

test('porthole vm makes, lists, shows, stops and deletes a machine', async (t) => {
  const stage = await setStage(t);
  const { api, run } = stage;
  const empty = await Promise.all([run('vm', 'ls'), run('image', 'ls'), run('key', 'ls'), run('operation', 'ls')]);
  assert.deepEqual(
    empty.map(({ code, out, err }) => [code, out, err]),
    [
      [0, '', 'no virtual machines yet; "porthole vm create" makes one\n'],
      [0, '', 'no images yet; "porthole image add" and "porthole image build" add one\n'],
      [0, '', 'no keys yet; on this machine none is needed, and "porthole key create" makes one for others\n'],
      [0, '', 'nothing goes on; --all lists what has finished\n'],
    ],
  );
  const file = join(api.directory, 'web.yaml');
  writeFileSync(file, spec.replace('hunter2', '{ file: ./db }'));
  writeFileSync(join(api.directory, 'db'), 'hunter2');
  assert.deepEqual(await run('image', 'build', 'tiny'), { code: 0, out: '', err: 'added tiny:1\n' });
  const options = ['--image', 'tiny', '--metadata', 'web.yaml', '--port', '8080:80', '--port', '127.0.0.2:53:53/udp'];
  const created = await run('vm', 'create', 'web-1', ...options, '--label', 'role=web', '--disk', '1G');
  assert.deepEqual(created, { code: 0, out: '', err: '' });

  const [table, shown, json, images, quiet, value, none] = await Promise.all([
    run('vm', 'ls', '--label', 'role=web'),
    run('vm', 'show', 'web-1'),
    run('vm', 'ls', '--json'),
    run('image', 'ls'),
    run('vm', 'ls', '-q'),
    run('metadata', 'get', 'web-1', '/secrets/db'),
    run('vm', 'ls', '--status', 'failed'),
  ]);
  assert.match(
    steady(table.out),
    /^NAME   STATUS   FOR +TYPE   IMAGE   ADDRESSES  AGE\nweb-1  running  AGO +small  tiny:1  -          AGO\n$/,
  );
  assert.equal(
    steady(shown.out).replace(/[0-9a-f]{64}/, 'DIGEST'),
    `name:     web-1
id:       i-ID
status:   running
since:    TIME (AGO)
type:     small (1 vCPU, 1024 MiB)
image:    tiny:1 (sha256:DIGEST)
disk:     1 GiB
network:  user
ports:    127.0.0.1:8080 -> 80/tcp
          127.0.0.2:53 -> 53/udp
labels:   role=web
restart:  on-failure
boot:     boot-1 (number 1)
created:  TIME (AGO)
`,
  );
  const vms = JSON.parse(json.out) as { name: string; status: string }[];
  assert.deepEqual(
    vms.map(({ name, status }) => [name, status]),
    [['web-1', 'running']],
  );
  assert.equal(
    steady(images.out),
    `NAME  VERSION    SIZE   DISK  REGIONS  DIGEST               AGE
tiny  1        1000 B  4 KiB  local    sha256:000000000000  AGO
`,
  );
  assert.equal(quiet.out, 'web-1\n');
  // The value came from a file that only this side may read.
  assert.equal(value.out, 'hunter2');
  assert.deepEqual(none, { code: 0, out: '', err: 'no virtual machine matches\n' });

  assert.deepEqual(await run('vm', 'stop', 'web-1', '--grace', '0'), { code: 0, out: '', err: '' });
  assert.match((await run('vm', 'ls')).out, /^web-1 {2}stopped/m);
  // One that is not there keeps the others from nothing.
  const started = await run('vm', 'start', 'web-2', 'web-1');
  assert.deepEqual(started, {
    code: 1,
    out: '',
    err: 'porthole: there is no VM "web-2"; did you mean "web-1"?\n',
  });
  const [rebooted, unsaid] = await Promise.all([run('vm', 'reboot', 'web-1', '--no-wait'), run('vm', 'rm', 'web-1')]);
  assert.match(rebooted.out, /^op-[0-9a-f]{22}\n$/);
  assert.deepEqual(unsaid, {
    code: 2,
    out: '',
    err: 'porthole: deleting cannot be undone: add --yes, as there is nobody to ask\n',
  });
  const operation = await run('operation', 'show', rebooted.out.trim(), '--wait');
  assert.equal(
    steady(operation.out),
    'id:        op-ID\nkind:      vm.reboot\nof:        web-1\nstate:     succeeded\nbegun:     TIME (AGO)\nfinished:  TIME (AGO)\n',
  );
  const inUse = await run('image', 'rm', 'tiny:1');
  assert.equal(inUse.code, 1);
  assert.match(inUse.err, /^porthole: .*tiny/);
  assert.deepEqual(await run('vm', 'rm', 'web-1', '--yes'), { code: 0, out: '', err: '' });
  assert.equal(api.host.vms.size, 0);
  const all = await run('operation', 'ls', '--all');
  assert.match(steady(all.out), /^ID +KIND +OF +STATE +AGE +STEP\nop-ID +image\.add +tiny:1 +succeeded +AGO\n/);
  assert.match(all.out, /vm\.delete +web-1 +succeeded/);
});

test('porthole vm rm asks on a terminal, and only "y" deletes', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const no = stage.terminal({}, 'vm', 'rm', 'web-1');
  await no.says(/delete "web-1", its disk and its metadata\? \[y\/N\] /);
  no.type('\r');
  assert.equal((await no.ended).code, 130);
  assert.equal(stage.api.host.vms.size, 1);
  const yes = stage.terminal({}, 'vm', 'rm', 'web-1');
  await yes.says(/\[y\/N\] /);
  yes.type('y\r');
  assert.equal((await yes.ended).code, 0);
  assert.equal(stage.api.host.vms.size, 0);
});

test('porthole vm attach makes a VM of others once, and prints what each monitor needs', async (t) => {
  const { run } = await setStage(t);
  const expected = `listening on /run/porthole/vms/db-1/fs.sock
  QEMU (the guest's memory after size= and -m, the same in both):
    -device vhost-user-fs-pci,chardev=metadata,tag=metadata
  libvirt, in the domain's XML:
    <filesystem/>
  Cloud Hypervisor:
    --fs tag=metadata
  in the guest:
    mkdir -p /run/metadata
    mount -t virtiofs metadata /run/metadata
`;
  assert.deepEqual(await run('vm', 'attach', 'db-1'), { code: 0, out: expected, err: '' });
  assert.deepEqual(await run('vm', 'attach', 'db-1'), { code: 0, out: expected, err: '' });
  assert.equal((await run('vm', 'attach', 'db-1', '--for', 'libvirt')).out, '<filesystem/>\n');
  assert.match((await run('vm', 'ls')).out, /^db-1 .* attached +- /m);
  assert.match((await run('vm', 'boot', 'db-1')).out, /^boot 1 of db-1: \S+\n$/);
});

test('porthole vm attach prints a whole domain of libvirt, of the machine that is wanted', async (t) => {
  const { run } = await setStage(t);
  const whole = ['vm', 'attach', 'db-1', '--for', 'libvirt-domain'];
  const machine = ['--memory', '2G', '--cpus', '2', '--disk', 'qcow2:/srv/db 1.qcow2'];
  const boot = ['--kernel', '/srv/kernel', '--initrd', '/srv/initrd', '--append', 'quiet a=b'];
  assert.deepEqual(await run(...whole, '--domain', 'db one', ...machine, ...boot), {
    code: 0,
    out: '<domain>{"memoryMiB":2048,"vcpus":2,"disk":"/srv/db 1.qcow2","diskFormat":"qcow2","kernel":"/srv/kernel","initrd":"/srv/initrd","kernelArguments":"quiet a=b"}</domain>\n',
    err: '',
  });
  assert.match((await run('vm', 'show', 'db-1')).out, /^domain: +db one$/m);
  assert.deepEqual(await run(...whole, '--domain', 'db one'), {
    code: 0,
    out: '<domain>{"memoryMiB":1024,"vcpus":1}</domain>\n',
    err: '',
  });
  for (const [args, code, complaint] of [
    [['--domain', 'other'], 1, 'the domain of "db-1" is "db one"; that cannot be changed'],
    [['--disk', '/srv/db.qcow2'], 2, 'write its format and an absolute path, as in "qcow2:/srv/web-1.qcow2"'],
    [['--memory', '1000000'], 2, 'whole MiB are needed'],
    [['--initrd', '/srv/initrd'], 2, '--initrd and --append are for a kernel'],
  ] as const) {
    const { code: ended, out, err } = await run(...whole, ...args);
    assert.deepEqual([ended, out], [code, ''], `${args.join(' ')}: ${err}`);
    assert.ok(err.includes(complaint), err);
  }
  await run('vm', 'attach', 'db-2');
  assert.match((await run('vm', 'attach', 'db-2', '--domain', 'db two')).err, /was attached without a domain/);
});

test('porthole vm gives a machine a metadata server, and shows where its guest finds it', async (t) => {
  const { run } = await setStage(t);
  const ways = ['--metadata-server', 'socket', '--metadata-server', 'vsock'];
  assert.equal((await run('vm', 'attach', 'fc-1', ...ways, '--facade', 'ec2')).code, 0);
  assert.match((await run('vm', 'show', 'fc-1')).out, /^metadata server: +a relay\n +vsock:2:80$/m);
  const serial = await run('vm', 'attach', 'fc-1', '--metadata-server', 'serial');
  assert.match(serial.err, /"fc-1" was attached without --metadata-server serial; that cannot be changed/);
  for (const [more, complaint] of [
    [['--facade', 'nocloud'], 'the metadata server of "fc-1" shows the APIs of ec2; that cannot be changed'],
    [['--facade', 'ec2', '--imds-v1'], '"fc-1" was attached without --imds-v1; that cannot be changed'],
  ] as const) {
    const { code, err } = await run('vm', 'attach', 'fc-1', ...ways, ...more);
    assert.deepEqual([code, err.includes(complaint)], [1, true], err);
  }
  assert.equal((await run('vm', 'attach', 'fc-1', ...ways, '--facade', 'ec2')).code, 0);
  for (const [args, complaint] of [
    [['--hop-limit', '2'], '--hop-limit is for a metadata server: add --metadata-server'],
    [['--metadata-server', 'serial', '--facade', 'azure'], 'Allowed choices are ec2, gce, openstack, nocloud'],
    [['--metadata-server', 'socket'], 'Allowed choices are network, vsock, serial'],
  ] as const) {
    const { code, err } = await run('vm', 'create', 'web-1', '--image', 'tiny', ...args);
    assert.equal(code, 2, err);
    assert.ok(err.includes(complaint), err);
  }
});

test('porthole vm top shows what an agent says of its guest, and of what makes no sense that it is not shown', async (t) => {
  const { api, run } = await setStage(t);
  await run('vm', 'attach', 'db-1');
  const alone = await run('vm', 'top', 'db-1');
  assert.match(alone.out, /^CPU time: +2 s[^]*\ninside: no agent has said anything\n$/);
  const at = '2026-03-01T12:00:00Z';
  const process = { pid: 7, user: 'postgres', uid: 114, cpuPercent: 12.5, memoryBytes: 4096, state: 'S' };
  const write = async (name: string, value: object): Promise<void> => {
    const bytes = Buffer.from(JSON.stringify(value));
    await api.host.vms.get('db-1')!.tree.authority.edit([{ op: 'put', path: `/guest/.agent/${name}`, bytes }], []);
  };
  await write('processes.json', { version: 1, at, processes: [{ ...process, command: 'bad\u001b[2Jname' }] });
  await write('status.json', { version: 1, at, uptimeSeconds: 'hunter2' });
  const { out } = await run('vm', 'top', 'db-1');
  assert.match(out, /^not shown: \/guest\/.agent\/status.json is not as an agent writes it at uptimeSeconds$/m);
  assert.match(out, /^ +7 +postgres +12\.5% +4 KiB +S +bad\\u\{1b\}\[2Jname$/m);
  assert.doesNotMatch(out, /hunter2/);
});

test('porthole image add shows how far it is, and Ctrl-C cancels it', async (t) => {
  const stage = await setStage(t);
  const { host } = stage.api;
  const begun = Promise.withResolvers<void>();
  let cancelled = false;
  let request: ImageRequest | undefined;
  host.addImageWith = (asked, { progress, signal }) => {
    request = asked;
    const told = setInterval(() => {
      progress({ step: 'converting', done: 30 * 1024 * 1024, total: 120 * 1024 * 1024 });
    }, 100);
    begun.resolve();
    return new Promise((_resolve, reject) => {
      signal!.addEventListener('abort', () => {
        clearInterval(told);
        cancelled = true;
        reject(signal!.reason as Error);
      });
    });
  };
  const disk = Buffer.alloc(600_000, 'abc');
  writeFileSync(join(stage.api.directory, 'disk.qcow2'), disk);
  const adding = stage.terminal({}, 'image', 'add', 'debian:12', 'disk.qcow2');
  await begun.promise;
  const { source } = request!;
  assert.ok(source.kind === 'disk' && source.disk.from === 'upload' && source.format === 'qcow2');
  assert.ok(disk.equals(host.uploads.get(source.disk.id)!), 'what came is what the file has');
  await adding.says(/\[#{5,6}\.{16,18}\] .*adding debian:12: converting, 30 MiB of 120 MiB \(25 %\)/);
  adding.type('\u0003');
  const { code, out } = await adding.ended;
  assert.equal(code, 130);
  assert.equal(cancelled, true);
  assert.match(out, /sending disk.qcow2, .* of 586 KiB \(\d+ %\)/);
  assert.match(out, /adding debian:12: cancelled\r\n$/);
});

test('porthole image add takes a kernel and its initrd, and refuses what makes no sense before it sends anything', async (t) => {
  const stage = await setStage(t);
  const { host, directory } = stage.api;
  for (const name of ['vmlinuz', 'initrd']) writeFileSync(join(directory, name), `this is ${name}`);
  writeFileSync(join(directory, 'empty'), '');
  let request: ImageRequest | undefined;
  const { addImageWith } = host;
  host.addImageWith = (asked, options) => {
    request = asked;
    return addImageWith(asked, options);
  };
  const files = ['--kernel', 'vmlinuz', '--initrd', 'initrd'];
  assert.deepEqual(await stage.run('image', 'add', 'own', ...files, '--append', 'quiet panic=1'), {
    code: 0,
    out: '',
    err: 'added own:1\n',
  });
  const source = request?.source;
  assert.ok(source?.kind === 'kernel' && source.commandLine === 'quiet panic=1');
  const text = (file: ImageFile | undefined): string =>
    file?.from === 'upload' ? String(host.uploads.get(file.id)) : 'none';
  assert.deepEqual([text(source.kernel), text(source.initrd)], ['this is vmlinuz', 'this is initrd']);

  const before = host.uploads.size;
  const refused = async (...args: readonly string[]): Promise<string> => (await stage.run('image', 'add', ...args)).err;
  assert.match(await refused('own'), /give a disk, or a kernel with --kernel, and not both/);
  assert.match(await refused('own', 'disk', ...files), /not both/);
  assert.match(await refused('own', 'disk', '--append', 'quiet'), /--initrd and --append belong to --kernel/);
  assert.match(await refused('own', 'nothing'), /reading "nothing" failed: ENOENT/);
  assert.match(await refused('own', 'empty'), /"empty" is empty/);
  assert.match(await refused('own', '.'), /"\." is no regular file/);
  assert.match(await refused('own:1', 'vmlinuz'), /has a version "1" already; give another version/);
  assert.equal(host.uploads.size, before);
});

test('Ctrl-C cancels porthole vm create, and porthole vm stop says how to go on with what it cannot cancel', async (t) => {
  const stage = await setStage(t, { obeys: false });
  await stage.api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  // Nobody brings anything about.
  const interrupted = async (mark: string, ...args: readonly string[]): Promise<readonly [number | null, string]> => {
    const child = stage.start({}, ...args);
    for (let found = false; !found; ) {
      const { json } = await stage.api.ask({ path: '/v1/operations' });
      found = JSON.stringify(json).includes(mark);
    }
    child.child.kill('SIGINT');
    const { code, err } = await child.ended;
    return [code, steady(err)];
  };
  const created = await interrupted('vm.create', 'vm', 'create', 'web-1', '--image', 'tiny');
  assert.deepEqual(created, [130, 'creating web-1: cancelled\n']);
  assert.equal(`${(await stage.api.ask({ path: '/v1/vms/web-1' })).json['desired']}`, 'deleted');
  await stage.run('vm', 'create', 'web-2', '--image', 'tiny', '--no-wait');
  const [code, words] = await interrupted('vm.stop', 'vm', 'stop', 'web-2');
  assert.equal(code, 130);
  assert.match(words, /^stopping web-2 goes on: .*; "porthole operation show op-ID" tells how it goes\n$/);
});

test('porthole key makes keys for others, told once, and revokes them', async (t) => {
  const stage = await setStage(t, { listen: { tcp: { host: '127.0.0.1', port: 0 } } });
  const { api, run, runWith } = stage;
  const file = join(api.directory, 'ci.key');
  const made = await run('key', 'create', 'CI of web', '--role', 'viewer', '--expires', '90d', '--out', 'ci.key');
  assert.deepEqual(made, { code: 0, out: '', err: '' });
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.match(readFileSync(file, 'utf8'), /^ph_[0-9a-f]{16}_[\w-]{43}\n$/);
  const again = await run('key', 'create', 'x', '--role', 'viewer', '--out', 'ci.key');
  assert.deepEqual([again.code, again.err], [1, 'porthole: "ci.key" exists already; it is not overwritten\n']);
  const listed = await run('key', 'ls');
  assert.match(
    steady(listed.out),
    /^ID +ROLE +EXPIRES +AGE +NAME\n[0-9a-f]{16} {2}viewer {2}TIME \(in AGO\) {2}AGO +CI of web\n$/,
  );
  const printed = await run('key', 'create', 'x', '--role', 'operator');
  assert.equal(printed.err, 'the key, which is told this once:\n');
  assert.match(printed.out, /^ph_[0-9a-f]{16}_[\w-]{43}\n$/);

  const remote = { PORTHOLE_API: api.server.url!, PORTHOLE_KEY_FILE: file };
  const asViewer = (...args: readonly string[]) => runWith({ environment: remote }, ...args);
  assert.equal((await asViewer('vm', 'ls', '--json')).out, '[]\n');
  const refused = await asViewer('key', 'ls');
  assert.deepEqual([refused.code, refused.err], [1, 'porthole: this needs the role admin, and yours is viewer\n']);
  const id = /^([0-9a-f]{16}) {2}viewer/m.exec(listed.out)![1]!;
  assert.equal((await run('key', 'rm', id)).code, 0);
  const revoked = await asViewer('vm', 'ls');
  assert.equal(revoked.code, 1);
  assert.match(revoked.err, /the key is unknown, revoked or out of date/);
  const without = await runWith({ environment: { PORTHOLE_API: api.server.url! } }, 'vm', 'ls');
  assert.equal(without.code, 2);
  assert.match(without.err, /needs a key: name its file in PORTHOLE_KEY_FILE/);
  // Configured: the key goes there and nowhere else.
  const configuration = join(api.directory, '.config', 'porthole');
  mkdirSync(configuration, { recursive: true });
  writeFileSync(join(configuration, 'config.yaml'), `api: ${api.server.url}\nkey: ${printed.out}`, { mode: 0o644 });
  const open = await runWith({ environment: { PORTHOLE_API: '' } }, 'vm', 'ls');
  assert.deepEqual(
    [open.code, /others may read the key in ".*config\.yaml"; run: chmod 600/.test(open.err)],
    [2, true],
  );
  writeFileSync(join(configuration, 'key'), printed.out, { mode: 0o600 });
  writeFileSync(join(configuration, 'config.yaml'), `api: ${api.server.url}\nkeyFile: key\n`);
  assert.equal((await runWith({ environment: { PORTHOLE_API: '' } }, 'vm', 'ls', '--json')).out, '[]\n');
});

test('porthole vm create names the image that was probably meant', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const { code, err } = await stage.run('vm', 'create', 'web-2', '--image', 'tniy');
  assert.deepEqual([code, err], [1, 'porthole: there is no image "tniy"; did you mean "tiny"?\n']);
});

test('porthole help prints the help of any command', async (t) => {
  const { run } = await setStage(t);
  const [help, own, unknown] = await Promise.all([
    run('help', 'vm', 'create'),
    run('vm', 'create', '--help'),
    run('help', 'vm', 'creat'),
  ]);
  assert.deepEqual([help.code, help.out], [0, own.out]);
  assert.deepEqual(
    [unknown.code, unknown.err],
    [2, 'porthole: there is no command "porthole vm creat"; did you mean "create"?\n'],
  );
});

test('porthole reaches an API over TLS with a key and a certificate, and says what is missing', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-cli-tls-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const [cert, key] = [join(directory, 'cert.pem'), join(directory, 'key.pem')];
  const words = `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=porthole -addext subjectAltName=IP:127.0.0.1 -keyout ${key} -out ${cert}`;
  const made = spawnSync('openssl', words.split(' '), { encoding: 'utf8' });
  assert.equal(made.status, 0, made.stderr);
  const tls = { cert: readFileSync(cert, 'utf8'), key: readFileSync(key, 'utf8') };
  const stage = await setStage(t, { listen: { tcp: { host: '127.0.0.1', port: 0, tls } } });
  const { run, runWith, api } = stage;
  await run('key', 'create', 'laptop', '--role', 'operator', '--out', 'laptop.key');
  const remote = { PORTHOLE_API: api.server.url!, PORTHOLE_KEY_FILE: join(api.directory, 'laptop.key') };
  const [trusted, stranger, plain] = await Promise.all([
    runWith({ environment: { ...remote, PORTHOLE_CA_FILE: cert } }, 'vm', 'ls', '--json'),
    runWith({ environment: remote }, 'vm', 'ls'),
    runWith({ environment: { ...remote, PORTHOLE_API: api.server.url!.replace('https', 'http') } }, 'vm', 'ls'),
  ]);
  assert.deepEqual(trusted, { code: 0, out: '[]\n', err: '' });
  assert.equal(stranger.code, 4);
  assert.match(
    stranger.err,
    /is signed by nobody whom this machine trusts; name the file of its issuer: PORTHOLE_CA_FILE/,
  );
  assert.equal(plain.code, 4);
});

test('porthole says which group may use the socket to a user who may not', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('running it as other users needs root');
  if (!isReadableByAll('device')) return t.skip('other users cannot get to this checkout');
  const stage = await setStage(t, { listen: { socketGroup: { gid: 100, role: 'operator' } } });
  chmodSync(stage.api.directory, 0o711);
  const as = (uid: number, gid: number) =>
    stage.shell(
      { environment: { HOME: '/' } },
      'setpriv',
      `--reuid=${uid}`,
      `--regid=${gid}`,
      '--clear-groups',
      ...porthole,
      'vm',
      'ls',
      '-q',
    ).ended;
  const stranger = await as(4321, 4321);
  assert.equal(stranger.code, 4);
  assert.match(
    stranger.out,
    /uid 4321 may not use "[^"]*api\.sock"; the group "users" may: run "adduser USER users", then log in again/,
  );
  const member = await as(4321, 100);
  assert.deepEqual([member.code, member.out], [0, '']);
  return undefined;
});

test('porthole says how the host is, and renews what serves a machine', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const { out } = await stage.run('status');
  assert.equal(
    steady(out),
    `host:         host-1
version:      0.1.0
running:      since TIME (AGO)
accelerator:  tcg (no usable /dev/kvm: guests are slow)
processors:   2
memory:       3.7 GiB free of 7.5 GiB
disk:         47 GiB free of 93 GiB
store:        sqlite
machines:     1 running
replicas:     web-1: 1
outdated:     web-1 (0.0.9+0123456789ab)
`,
  );
  assert.deepEqual(await stage.run('vm', 'renew', 'web-1'), { code: 0, out: '', err: '' });
  assert.doesNotMatch((await stage.run('status')).out, /outdated/);
  const one = await stage.run('vm', 'renew', 'none', 'web-1', '--json');
  assert.deepEqual(JSON.parse(one.out), [{ vm: 'web-1', version: '0.1.0+0123456789ab', outdated: false }]);
  assert.deepEqual([one.code, one.err], [1, 'porthole: there is no VM "none"; "porthole vm ls" lists them\n']);
  const json = JSON.parse((await stage.run('status', '--json')).out) as Record<string, unknown>;
  assert.deepEqual([json['name'], json['cpus']], ['host-1', 2]);
});
