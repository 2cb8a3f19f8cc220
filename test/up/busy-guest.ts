/** A guest that reads and writes without pause, and what its programs saw. */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { until } from '../until.ts';
import { UpMachine } from './machine.ts';

/** Times of one kind; the guest's clock counts hundredths of a second. */
const guestScript = String.raw`
now() { read -r up rest </proc/uptime; echo $((10#$(echo $up | tr -d .))); }
reads() { n=0; while [ ! -e /tmp/stop ]; do a=$(now); v=$(cat /run/metadata/$1) || echo "READ FAILED $1"; b=$(now)
  [ -n "$v" ] || echo "READ NOTHING $1"; n=$((n+1)); d=$((b-a)); [ $d -lt 50 ] || echo "stall read $1 $d"; done; echo "reads $1 $n"; }
writes() { i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); a=$(now); echo $i >>/run/metadata/guest/log || echo "WRITE FAILED $i"; b=$(now)
  d=$((b-a)); [ $d -lt 50 ] || echo "stall write $d"; done; echo "writes $i"; }
replaces() { i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i >/run/metadata/guest/.new && mv /run/metadata/guest/.new /run/metadata/guest/now || echo "REPLACE FAILED $i"; done; echo "replaces $i"; }
held() { exec 3</run/metadata/secrets/db; n=0; while [ ! -e /tmp/stop ]; do [ "$(cat /proc/self/fd/3)" = hunter2 ] || echo "HELD FAILED"; n=$((n+1)); sleep 0.1; done; echo "held $n"; }
reads secrets/db & reads instance/hostname & writes & replaces & held & wait; echo all-done
`;

const spec = `porthole: 1
metadata: { instance: { hostname: web-1 }, secrets: { db: hunter2 }, app: { load: ${JSON.stringify(guestScript)} } }
policy: [{ path: /secrets/db, owner: 1000, mode: "0400" }]
`;

export class BusyGuest {
  readonly machine: UpMachine;

  constructor(machine: UpMachine) {
    this.machine = machine;
  }

  static async start(t: TestContext): Promise<BusyGuest> {
    const machine = new UpMachine(t);
    await machine.spawn();
    await machine.tinyImage();
    await machine.done(
      await machine.client.call('createVm', { body: { name: 'one', type: 'nano', image: { name: 'tiny' }, spec } }),
    );
    await machine.untilReady('one');
    await machine.type('one', 'sh /run/metadata/app/load >/tmp/report 2>&1 </dev/null &');
    const guest = new BusyGuest(machine);
    await until(
      'the first line',
      () =>
        guest.written().then(
          () => true,
          () => false,
        ),
      60_000,
    ).catch(async () => assert.fail(await machine.type('one', 'cat /tmp/report')));
    return guest;
  }

  /** How many lines the guest has appended so far, as the API sees it. */
  async written(): Promise<number[]> {
    const { bytes } = await this.machine.client.raw('readMetadata', { params: { name: 'one', path: 'guest/log' } });
    return bytes.toString().trim().split('\n').map(Number);
  }

  async progress(): Promise<void> {
    const before = (await this.written()).length;
    await until('the guest to write on', async () => (await this.written()).length > before + 2, 60_000).catch(
      (error: unknown) => {
        assert.fail(`${(error as Error).message}: ${JSON.stringify(this.machine.events)} ${this.machine.said}`);
      },
    );
  }

  /** Ends the guest's programs, and checks what they saw. */
  async check(t: TestContext): Promise<void> {
    await this.machine.type('one', 'touch /tmp/stop; until grep -q all-done /tmp/report; do sleep 0.2; done');
    const report = await this.machine.type('one', 'cat /tmp/report');
    // A write waits 5 s for a daemon, which is long enough where this machine is not busy with other things.
    const { awaysMs } = this.machine;
    const mayFail = awaysMs.reduce((sum, awayMs) => sum + Math.floor((awayMs + 1_000) / 5_000), 0);
    const failed = [...report.matchAll(/WRITE FAILED (\d+)/g)].map(([, line]) => Number(line));
    const notReplaced = report.split('REPLACE FAILED').length - 1;
    if (Math.max(failed.length, notReplaced) > mayFail)
      assert.fail(`the daemon was away for ${awaysMs.map((ms) => ms.toFixed(0)).join(', ')} ms: ${report}`);
    const complaints =
      mayFail === 0 ? report : report.replaceAll(/.*(WRITE|REPLACE) FAILED.*|.*Input\/output error.*/g, '');
    assert.doesNotMatch(complaints, /FAILED|NOTHING|error/i);
    const written = await this.written();
    const counted = Number(/writes (\d+)/.exec(report)?.[1]);
    assert.deepEqual(
      written,
      Array.from({ length: counted }, (_, index) => index + 1).filter((line) => !failed.includes(line)),
      'each line once, in order',
    );
    for (const line of report.split('\n').filter(Boolean)) t.diagnostic(line);
  }
}
