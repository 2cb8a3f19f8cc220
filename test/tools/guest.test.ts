/** The tools of this machine in a guest, on virtiofs: `/usr` is shared with it read-only, and they run chrooted there. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { Guest } from '../../images/tiny/guest.ts';
import { toolsSpec } from './served-mount.ts';
import { sourceTree } from './source-tree.ts';

const TIMEOUT_MS = 90_000;

/** A root for the tools: this machine's /usr, the guest's devices, and the tree at /run/metadata. */
const prepareRoot = `
  r=/tools; mkdir -p $r/usr $r/etc $r/tmp $r/proc $r/dev $r/run/metadata; chmod 1777 $r/tmp
  mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose usr $r/usr
  for d in bin sbin lib lib64; do [ -e $r/usr/$d ] && ln -sfn usr/$d $r/$d; done
  cp /etc/passwd /etc/group $r/etc/; mount -t proc proc $r/proc; mount --bind /dev $r/dev; mount --bind /run/metadata $r/run/metadata`;

describe('tools in a guest on virtiofs', () => {
  let directory: string;
  let server: ChildProcess;
  let guest: Guest;
  let scripts = 0;

  before(async () => {
    directory = mkdtempSync(path.join(tmpdir(), 'porthole-tools-'));
    const [spec, socket] = [path.join(directory, 'spec.yaml'), path.join(directory, 'socket')];
    writeFileSync(spec, toolsSpec);
    const porthole = path.join(import.meta.dirname, '../../porthole');
    server = spawn(porthole, ['serve', spec, '--vhost-user', socket, '--json'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    for await (const line of createInterface(server.stdout!)) if (line.includes('"event":"ready"')) break;
    server.stdout!.resume();
    guest = await Guest.start({
      virtiofs: [{ socket, tag: 'metadata' }],
      shares: [{ tag: 'usr', path: '/usr' }],
      memory: '512M',
    });
    await guest.mount('metadata', '/run/metadata');
    await guest.sh(prepareRoot);
  });
  after(async () => {
    await guest[Symbol.asyncDispose]();
    const ended = once(server, 'close');
    server.kill('SIGTERM');
    await ended;
    rmSync(directory, { recursive: true, force: true });
  });

  /** Runs a bash script (`set -eu`) with this machine's tools, in a new directory of `uid` below `/guest`. */
  async function sh(script: string, uid = 0): Promise<string> {
    const inside = `/run/metadata/guest/script-${++scripts}`;
    const file = `/tools/tmp/script-${scripts}`;
    const preamble = `cd ${inside}; export PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 TZ=UTC HOME=/nonexistent SCRATCH=/tmp HERE=${inside}\n`;
    const { exitCode, text, errorText } = await guest.run(
      `mkdir ${inside} && chown ${uid}:${uid} ${inside} && cat > ${file} <<'END_OF_SCRIPT' && chroot /tools /usr/bin/setpriv --reuid ${uid} --regid ${uid} --clear-groups /usr/bin/bash -eu /tmp/script-${scripts}
${preamble}${script}
END_OF_SCRIPT`,
      { timeoutMs: TIMEOUT_MS },
    );
    assert.equal(exitCode, 0, `${script}\nexited with ${exitCode}; it said:\n${text}${errorText}`);
    return text;
  }

  test('fio writes at random and verifies every block', async () => {
    const said = await sh(
      'fio --name=v --directory=. --ioengine=psync --rw=randwrite --bs=4k --size=128k --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=json',
    );
    const { jobs } = JSON.parse(said.slice(said.indexOf('{'))) as {
      jobs: { error: number; read: { io_bytes: number }; write: { io_bytes: number } }[];
    };
    assert.deepEqual(
      jobs.map(({ error, read, write }) => [error, read.io_bytes, write.io_bytes]),
      [[0, 128 * 1024, 128 * 1024]],
    );
  });

  for (const shell of ['dash', 'bash']) {
    test(`${shell} writes with > and >>, from 4 processes at once too`, async () => {
      const said = await sh(
        `${shell} -c 'echo one > f; echo two >> f; cat f; : > f; cat f; stat -c %s f; echo three > f; cat f'
         for p in 1 2 3 4; do ${shell} -c 'i=0; while [ $i -lt 25 ]; do echo "$1 $i" >> log; i=$((i + 1)); done' x $p & done
         wait; wc -l < log; sort -u log | wc -l`,
        1000,
      );
      assert.equal(said, 'one\ntwo\n0\nthree\n100\n100\n');
    });
  }

  test('cp -a, tar and rsync keep ids, modes, times, ACLs, links and bytes', async () => {
    const said = await sh(`${sourceTree}
      cp -a src cp; same src cp
      tar --acls --xattrs -C src -cf t.tar .; mkdir tar; tar --acls --xattrs -C tar -xpf t.tar; same src tar
      rsync -aAX src/ rsync; same src rsync`);
    assert.equal(said, 'same\nsame\nsame\n');
  });

  test('setfacl gives and takes what the guest’s kernel then allows, and getfattr says why', async () => {
    const said = await sh(`
      as() { setpriv --reuid "$1" --regid "$1" --clear-groups "\${@:2}" > /dev/null 2>&1 && echo yes || echo no; }
      chmod 755 .; echo x > f; chmod 600 f; as 114 cat f; setfacl -m u:114:r,g:1001:rw f; as 114 cat f; as 114 tee f; as 1001 cat f; as 1000 cat f
      getfacl -cn f; stat -c %a f; setfacl -b f; as 114 cat f; stat -c %a f
      getfattr -h --only-values -n system.porthole.why f; echo; setfattr -n user.a -v 1 f 2>&1 || true`);
    assert.equal(
      said,
      `no
yes
no
yes
no
user::rw-
user:114:r--
group::---
group:1001:rw-
mask::rw-
other::---

660
no
600
uid 0; read: allowed (mode 0600, root may); write: allowed (mode 0600, root may); rule: default
setfattr: f: Operation not supported
`,
    );
  });

  test('chown to a supplementary group is the guest’s kernel’s to allow', async () => {
    const said = await sh(`echo x > f; chown 1000:1000 f
      setpriv --reuid 1000 --regid 1000 --groups 1001 chown 1000:1001 f; stat -c '%u %g' f
      setpriv --reuid 1000 --regid 1000 --groups 1001 chown 1000:1002 f 2>&1 || true`);
    assert.equal(said, "1000 1001\nchown: changing ownership of 'f': Operation not permitted\n");
  });

  test('git adds, commits, checks and packs', async () => {
    const said = await sh(
      `export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
       git init -q -b main repo; cd repo; mkdir d; for i in 1 2 3; do echo $i > d/f$i; git add .; git commit -qm $i; done
       git mv d e; git commit -qm moved; git gc -q --prune=now; git fsck --strict --full; git log --oneline | wc -l; find .git/objects -name '*.pack' | wc -l; git status --short | wc -l`,
      1000,
    );
    assert.equal(said, '4\n1\n0\n');
  });
});
