import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { identify, type ProcessIdentity } from '../qemu/index.ts';
import { claimUids, type UidRange } from './uid-claim.ts';

/** A machine with daemons that are known by the names of their state directories. */
class Machine {
  readonly #directory = mkdtempSync(join(tmpdir(), 'porthole-uids-'));
  readonly claims = join(this.#directory, 'claims');
  subordinate = '';

  constructor(t: TestContext) {
    t.after(() => rmSync(this.#directory, { recursive: true }));
  }

  state(name: string): string {
    const directory = join(this.#directory, name);
    mkdirSync(directory, { recursive: true });
    return directory;
  }

  claim(name: string, first?: number, count = 100): UidRange {
    const subordinate = join(this.#directory, 'subuid');
    writeFileSync(subordinate, this.subordinate);
    return claimUids({ first, count, stateDirectory: this.state(name), directory: this.claims, subordinate });
  }

  /** As the claim of a daemon that is another process. */
  isOf(first: number, daemon: ProcessIdentity): void {
    const file = join(this.claims, String(first));
    const claim = JSON.parse(readFileSync(file, 'utf8')) as object;
    writeFileSync(file, JSON.stringify({ ...claim, daemon }));
  }
}

const startProcess = async (uid?: number) => {
  const child = spawn('sleep', ['600'], { stdio: 'ignore', ...(uid !== undefined && { uid, gid: uid }) });
  await once(child, 'spawn');
  return { pid: child.pid!, end: () => child.kill('SIGKILL') && once(child, 'exit') };
};

test('claimUids gives each daemon uids of its own, and a daemon the same ones again', (t) => {
  const machine = new Machine(t);
  const [a, b] = [machine.claim('a'), machine.claim('b')];
  assert.deepEqual(
    [a, b],
    [700_000, 765_536].map((first) => ({ first, count: 100 })),
  );
  assert.deepEqual(machine.claim('b'), b);
  assert.deepEqual(machine.claim('a'), a);
  assert.deepEqual(machine.claim('c', 5_000), { first: 5_000, count: 100 });
  assert.deepEqual(machine.claim('c'), { first: 5_000, count: 100 });
});

test('claimUids refuses uids that another daemon gives out, wherever the ranges meet', (t) => {
  const machine = new Machine(t);
  machine.claim('a', 5_000);
  for (const first of [4_901, 5_000, 5_099])
    assert.throws(
      () => machine.claim('b', first),
      /uids from \d+ on are those of the VMs of another host daemon, whose state is in ".*\/a"/,
    );
  assert.equal(machine.claim('b', 5_100).first, 5_100);
});

test('claimUids refuses another range than that of the VMs that there are', (t) => {
  const machine = new Machine(t);
  machine.claim('a', 5_000);
  assert.throws(() => machine.claim('a', 6_000), /have uids from 5000 on, and not from 6000; leave --uid-base out/);
});

test('claimUids refuses a range that goes beyond the last uid', (t) => {
  const machine = new Machine(t);
  assert.throws(() => machine.claim('a', 2_147_483_600), /the 100 uids from 2147483600 on go beyond the last one/);
});

test('claimUids leaves out what is given to containers of users', (t) => {
  const machine = new Machine(t);
  machine.subordinate = '# comment\nroot:100000:65536\nan:700050:10\nnonsense:x:y\n';
  assert.equal(machine.claim('a').first, 765_536);
});

test('claimUids gives what another daemon had once its daemon, its VMs and its state are gone', async (t) => {
  if (process.getuid?.() !== 0) return t.skip('running as other users needs root');
  const machine = new Machine(t);
  // Far from where daemons of this machine may have theirs.
  const { first } = machine.claim('a', 3_000_000);
  const daemon = await startProcess();
  const vm = await startProcess(first + 7);
  t.after(vm.end);
  const identity = identify(daemon.pid)!;
  machine.isOf(first, identity);
  const remembered = join(machine.state('a'), 'uids');
  const text = readFileSync(remembered);
  rmSync(remembered);
  assert.throws(() => machine.claim('b', first), /of another host daemon/, 'the daemon lives');
  await daemon.end();
  assert.throws(() => machine.claim('b', first), /of another host daemon/, 'a VM of its lives');
  await vm.end();
  writeFileSync(remembered, text);
  machine.claim('a');
  machine.isOf(first, identity);
  assert.throws(() => machine.claim('b', first), /of another host daemon/, 'its state is there');
  rmSync(machine.state('a'), { recursive: true });
  assert.equal(machine.claim('b', first).first, first);
  return undefined;
});
