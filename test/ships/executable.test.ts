/** The one-file executable: where it runs, what it costs, what is in it. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { before, type TestContext, test } from 'node:test';
import { tinyImage } from '../../images/tiny/image.ts';
import { thisVersion } from '../../src/parts/index.ts';
import { until } from '../until.ts';
import { build, builtExecutable } from './built.ts';

const root = path.resolve(import.meta.dirname, '../..');
const example = path.join(root, 'examples');

let executable = '';
before(() => {
  executable = builtExecutable().executable;
});

const emptyDirectory = (t: TestContext): string => {
  mkdirSync(path.join(root, '.cache'), { recursive: true });
  const directory = mkdtempSync(path.join(root, '.cache/ships-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
};

/** @param files a directory, whose files are put there */
const inBarePlace = (script: string, files = example): { readonly status: number | null; readonly text: string } => {
  // What is started there ends with it.
  const spaces = ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'];
  const args = [...spaces, 'sh', path.join(import.meta.dirname, 'bare-place.sh'), executable, files];
  const { status, stdout, stderr } = spawnSync('unshare', args, { input: script, encoding: 'utf8', timeout: 300_000 });
  return { status, text: `${stdout}${stderr}` };
};

test('the executables serve mounts where nothing else is and nothing written may be executed', () => {
  const { status, text } = inBarePlace(
    `
      mkdir mnt
      socket=$PWD/server.sock
      "$porthole" serve web.yaml --mount mnt --http "unix:$socket,privileged" --state state --audit audit.jsonl >said 2>&1 &
      server=$!
      tries=0
      until mountpoint -q mnt; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { cat said; exit 1; }
        sleep 0.1
      done
      cat mnt/instance/hostname; echo
      cat mnt/secrets/db-password; echo
      setpriv --reuid 1001 --clear-groups cat mnt/secrets/api-token 2>&1 || echo refused
      echo written >mnt/guest/file
      cat mnt/guest/file
      sed -i 's/hostname: web-1/hostname: web-2/' web.yaml
      tries=0
      until [ "$(cat mnt/instance/hostname)" = web-2 ]; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { cat said; exit 1; }
        sleep 0.1
      done
      mkdir agent
      "$agent" --server "unix:$socket" --mount agent >agent-said 2>&1 &
      tries=0
      until mountpoint -q agent; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { cat agent-said; exit 1; }
        sleep 0.1
      done
      cat agent/secrets/db-password; echo " by the agent"
      "$agent" who $! | grep ^program
      kill $!
      wait $!
      cat agent-said
      kill $server
      wait $server
      echo "denials: $(grep -c '"path":"/secrets/api-token","uid":1001' audit.jsonl)"
      "$porthole" export --state state | grep -A1 'guest:'
      if mountpoint -q mnt || mountpoint -q agent; then echo "still mounted"; fi
    `,
  );
  assert.equal(status, 0, text);
  assert.match(text, /web-1\nhunter2\n.*Permission denied\nrefused\nwritten\n.*^denials: 1$.*guest:/ms);
  assert.match(text, /hunter2 by the agent\nprogram .*porthole-agent\n.*mounted on agent, .*\nstopped\n/s);
  assert.doesNotMatch(text, /still mounted/);
});

test('a whole life of a VM, with the executable alone and an image of files that are sent to it', async (t) => {
  const files = emptyDirectory(t);
  chmodSync(files, 0o711);
  const { kernel, initramfs } = await tinyImage();
  copyFileSync(kernel, path.join(files, 'vmlinux'));
  copyFileSync(initramfs, path.join(files, 'initrd'));
  writeFileSync(
    path.join(files, 'web.yaml'),
    `porthole: 1
metadata:
  instance: { hostname: web-1 }
  secrets: { db: hunter2 }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`,
  );
  const { status, text } = inBarePlace(
    String.raw`
      PATH=/usr/sbin:/usr/bin:/sbin:/bin
      until_it() {
        tries=0
        until eval "$1"; do
          tries=$((tries + 1))
          [ $tries -lt 500 ] || { echo "waited in vain: $1"; cat said; "$porthole" vm logs web-1; exit 1; }
          sleep 0.2
        done
      }
      # Claims of other daemons are not to be seen in this place, nor is its own outside.
      "$porthole" up --state state --run run --uid-base 1800000000 --listen 127.0.0.1:0 --json >events 2>said &
      daemon=$!
      until_it 'grep -qs "\"event\":\"up\"" events'
      url=$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' events)
      PORTHOLE_API=unix:$PWD/run/api.sock "$porthole" key create far --role admin --out key
      export PORTHOLE_API=$url PORTHOLE_KEY_FILE=$PWD/key

      "$porthole" image add own --kernel vmlinux --initrd initrd --append 'tiny=vm quiet panic=-1 random.trust_cpu=on'
      "$porthole" image ls
      printf blue >colour
      "$porthole" vm create web-1 --image own --type nano --metadata web.yaml
      until_it '"$porthole" vm logs web-1 | grep -q "tiny: ready"'
      "$porthole" metadata set web-1 /instance/colour --file colour
      "$porthole" metadata get web-1 /secrets/db
      echo
      typed='echo "guest: $(cat /run/metadata/instance/hostname) $(cat /run/metadata/instance/colour)" >/run/metadata/guest/seen'
      { echo "$typed"; exec sleep 600; } | "$porthole" vm console web-1 >console 2>&1 &
      console=$!
      until_it '"$porthole" metadata get web-1 /guest/seen 2>/dev/null'
      "$porthole" vm ls
      "$porthole" vm stop web-1
      "$porthole" vm show web-1 | grep -i status
      "$porthole" vm start web-1
      until_it '[ "$("$porthole" vm logs web-1 | grep -c "tiny: ready")" = 2 ]'
      "$porthole" metadata get web-1 /guest/seen
      "$porthole" vm rm web-1 --yes
      "$porthole" image rm own:1
      "$porthole" vm ls
      if kill $console 2>/dev/null; then echo "trouble: the console outlived its VM"; fi
      kill $daemon
      wait $daemon
      until_it '! pgrep -f "$PWD/run"'
      cat said
    `,
    files,
  );
  assert.equal(status, 0, text);
  for (const said of [
    /^own +1 +\d+ MiB .* sha256:/m,
    /^hunter2\nguest: web-1 blue\n/m,
    /^web-1 +running /m,
    /^status: +stopped \(the guest powered off when asked to\)$/m,
    /^added own:1$/m,
    /^no virtual machines yet;/m,
  ])
    assert.match(text, said);
  assert.doesNotMatch(text, /trouble/);
});

test('the executable says its version and commit where there is no git', () => {
  const { status, text } = inBarePlace('"$porthole" --version');
  assert.equal(status, 0, text);
  assert.match(text, new RegExp(`^${RegExp.escape(thisVersion().version)} \\(commit [0-9a-f]{12}(\\+changes)?\\)\\n$`));
});

test('the executable is the same, byte for byte, when it is built again', (t) => {
  const [one, other] = [emptyDirectory(t), emptyDirectory(t)];
  for (const directory of [one, other]) build(directory);
  const names = readdirSync(one).toSorted();
  assert.deepEqual(names, ['THIRD-PARTY-LICENSES', 'porthole', 'porthole-agent']);
  for (const name of names) {
    const same = readFileSync(path.join(one, name)).equals(readFileSync(path.join(other, name)));
    assert.ok(same, `${name} differs`);
  }
});

test('THIRD-PARTY-LICENSES has the licences of Node and of the packages in the executable', () => {
  const text = readFileSync(path.join(path.dirname(executable), 'THIRD-PARTY-LICENSES'), 'utf8');
  const packages = ['@msgpack/msgpack', 'commander', 'koffi', 'yaml', 'zod', `node-linux-${process.arch}`];
  for (const name of packages) {
    assert.match(text, new RegExp(`^${RegExp.escape(name)} \\d+\\.\\d+\\.\\d+ \\(.+\\)\\n=+\\n\\n.`, 'm'));
  }
  assert.match(text, /^Copyright Node\.js contributors/m);
});

/** Private memory, in KiB, of the device process of a served mount that has been read and is at rest. */
async function privateMemory(t: TestContext, program: string): Promise<number> {
  const directory = emptyDirectory(t);
  const mount = path.join(directory, 'mnt');
  mkdirSync(mount);
  const host = spawn(program, ['serve', path.join(example, 'web.yaml'), '--mount', mount, '--json'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const ended = new Promise((resolve) => host.once('close', resolve));
  try {
    const lines = createInterface({ input: host.stdout });
    await new Promise<void>((resolve, reject) => {
      lines.on('line', (line) => line.includes('"event":"ready"') && resolve());
      lines.once('close', () => reject(new Error(`${program} ended before it had mounted`)));
    });
    for (let round = 0; round < 50; round++) readFileSync(path.join(mount, 'secrets/db-password'));
    const children = readFileSync(`/proc/${host.pid}/task/${host.pid}/children`, 'utf8').trim();
    assert.match(children, /^\d+$/, 'one device process');
    let [last, looks] = [0, 0];
    return await until('memory that stays', () => {
      const text = readFileSync(`/proc/${children}/smaps_rollup`, 'utf8');
      const now = Number(/^Private_Dirty:\s+(\d+) kB/m.exec(text)?.[1]);
      looks = now === last ? looks + 1 : 0;
      last = now;
      return looks === 50 && now;
    });
  } finally {
    host.kill();
    await ended;
  }
}

test('a device process has no more private memory from the executable than from a checkout', async (t) => {
  const checkout = path.join(root, 'porthole');
  // The first run from a checkout compiles.
  await privateMemory(t, checkout);
  const fromCheckout = await privateMemory(t, checkout);
  const fromExecutable = await privateMemory(t, executable);
  t.diagnostic(`private memory: ${fromExecutable} KiB from the executable, ${fromCheckout} KiB from a checkout`);
  assert.ok(fromExecutable > 1_000);
  assert.ok(fromExecutable <= fromCheckout, `${fromExecutable} KiB against ${fromCheckout} KiB`);
});
