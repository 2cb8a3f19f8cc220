/** How a test sees that a VM never runs twice: by the processes of its QEMUs, and by what its guests write on its disk. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type { Client } from '../../src/cluster/index.ts';
import { bootClockMs } from '../../src/qemu/index.ts';
import { until } from '../until.ts';
import { typeTo } from './guests.ts';

export interface Qemu {
  readonly pid: number;
  /** As the kernel says: milliseconds of the boot clock. */
  readonly beganAtMs: number;
  readonly command: string;
}

/** That process, if it is one and runs. */
export const qemuAt = (pid: number): Qemu | undefined => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    if (!stat.includes('(qemu')) return undefined;
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const command = readFileSync(`/proc/${pid}/cmdline`, 'latin1');
    return fields[0] === 'Z' ? undefined : { pid, beganAtMs: Number(fields[19]) * 10, command };
  } catch {
    return undefined;
  }
};

/** That of a VM on a host with this run directory. */
export const qemuIn = (run: string, vm: string): Qemu | undefined => {
  const argument = path.join(run, 'vms', vm, 'qemu/qmp.sock');
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => qemuAt(Number(name)))
    .find((qemu) => qemu?.command.includes(argument));
};

const lookEveryMs = 5;
const findEveryMs = 100;

/** When each QEMU of a VM was seen last: those that are known are looked at often, others are looked for. */
export class Lives implements Disposable {
  readonly #find: () => readonly (Qemu | undefined)[];
  readonly #seen = new Map<number, { readonly beganAtMs: number; readonly seenAtMs: number }>();
  readonly #timers: readonly NodeJS.Timeout[];

  constructor(find: () => readonly (Qemu | undefined)[]) {
    this.#find = find;
    this.#timers = [
      setInterval(() => this.#look(), findEveryMs),
      setInterval(() => {
        for (const pid of this.#seen.keys()) this.#see(qemuAt(pid));
      }, lookEveryMs),
    ];
  }

  #look(): void {
    for (const qemu of this.#find()) this.#see(qemu);
  }

  #see(qemu: Qemu | undefined): void {
    if (qemu !== undefined) this.#seen.set(qemu.pid, { beganAtMs: qemu.beganAtMs, seenAtMs: bootClockMs() });
  }

  /** There were more than so many, one after the other. @returns how long there was none between them, in milliseconds */
  check(least: number): number[] {
    this.#look();
    const lives = [...this.#seen.values()].toSorted((a, b) => a.beganAtMs - b.beganAtMs);
    assert.ok(lives.length > least);
    const gaps = lives.slice(1).map(({ beganAtMs }, i) => beganAtMs - lives[i]!.seenAtMs);
    for (const gapMs of gaps) assert.ok(gapMs > 0, `a QEMU began ${-gapMs} ms before the last sight of the one before`);
    return gaps;
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearInterval(timer);
  }
}

/** What guests of a VM say on its network disk: a block each time, behind what was said there before. */
export class DiskStamps {
  readonly #client: Client;
  readonly #vm: string;
  readonly #disks: string;

  /** @param disks where the region's are; there must be no other VM's */
  constructor(client: Client, vm: string, disks: string) {
    this.#client = client;
    this.#vm = vm;
    this.#disks = disks;
  }

  /** Has the guest say by which epoch it runs, until it ends. */
  async begin(epoch: number): Promise<void> {
    const write = `printf '${epoch} %d\\n' $n | dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2> /dev/null`;
    await typeTo(this.#client, this.#vm, `n=$(tr -d '\\000' < /dev/vda | wc -l)`);
    const forEver = `(while :; do ${write}; n=$((n+1)); sleep 0.1; done) > /dev/null 2>&1 &`;
    await typeTo(this.#client, this.#vm, forEver);
    await until('the guest to say so', () => this.#all().some((stamp) => stamp.epoch === epoch));
  }

  #all(): { readonly epoch: number; readonly count: number }[] {
    const id = readdirSync(this.#disks).find((name) => name.startsWith('i-'));
    const bytes = readFileSync(path.join(this.#disks, id!, 'disk.raw'), 'latin1');
    return [...bytes.matchAll(/(\d+) (\d+)\n/g)].map(([, epoch, count]) => ({
      epoch: Number(epoch),
      count: Number(count),
    }));
  }

  /** None of an epoch wrote again once a higher one had. @returns how often it was said */
  check(): number {
    const stamps = this.#all();
    assert.deepEqual(
      stamps.map(({ count }) => count),
      stamps.map((_, i) => i),
    );
    assert.deepEqual(
      stamps.map(({ epoch }) => epoch),
      stamps.map(({ epoch }) => epoch).toSorted((a, b) => a - b),
    );
    return stamps.length;
  }
}
