import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { until } from '../../test/until.ts';
import { type DomainFollower, DomainWatch } from './domain-watch.ts';

const uuid = '11111111-2222-3333-4444-555555555555';
const listingOf = (id: number): string => `${uuid} web-1\n\n${id} web-1\n\nDomain: 'web-1'\n  cpu.time=1000\n\n`;

/** A `virsh` that prints what a test says: lists from a file, events from a pipe; without the file it fails. */
class Edge {
  readonly directory = mkdtempSync(join(tmpdir(), 'porthole-virsh-'));
  readonly watch: DomainWatch;
  readonly troubles: string[] = [];
  readonly looks: (number | string)[] = [];
  reboots = 0;
  readonly follower: DomainFollower = {
    domain: 'web-1',
    onLook: (found) => this.looks.push(typeof found === 'string' ? found : found.id),
    onReboot: () => {
      this.reboots++;
    },
  };

  constructor(t: TestContext) {
    const virsh = join(this.directory, 'virsh');
    writeFileSync(
      virsh,
      `#!/bin/sh
case "$*" in
*' event --all --loop --timestamp') exec cat '${this.directory}/events' ;;
*) cat '${this.directory}/list' 2>/dev/null || { echo 'error: failed to connect' >&2; echo 'error: more' >&2; exit 1; } ;;
esac
`,
    );
    chmodSync(virsh, 0o755);
    execFileSync('mkfifo', [join(this.directory, 'events')]);
    this.watch = new DomainWatch({ uri: 'test:///', virsh, onTrouble: (what) => this.troubles.push(what) });
    t.after(async () => {
      await this.watch.close();
      rmSync(this.directory, { recursive: true });
    });
  }

  list(text: string | undefined): void {
    if (text === undefined) rmSync(join(this.directory, 'list'));
    else writeFileSync(join(this.directory, 'list'), text);
  }

  /** Resolves when somebody listens. */
  events(): Promise<FileHandle> {
    return open(join(this.directory, 'events'), 'w');
  }
}

test('DomainWatch tells how a domain is when libvirt says that something changed, and of each reboot once', async (t) => {
  const edge = new Edge(t);
  edge.list(listingOf(3));
  edge.watch.follow(edge.follower);
  const events = await edge.events();
  await until('the first look', () => edge.looks.at(-1) === 3);
  edge.list(`${uuid} web-1\n\n\n\n`);
  await events.write("2026-01-01 10:00:00.000+0000: event 'lifecycle' for domain 'other': Stopped Failed\n");
  await until('the next look', () => edge.looks.at(-1) === 'off');
  edge.list('\n\n\n');
  for (const [at, name] of [
    ['00.000', 'web-1'],
    ['00.020', 'web-1'],
    ['00.150', 'web-1'],
    ['00.500', 'other'],
    ['03.000', 'web-1'],
  ])
    await events.write(`2026-01-01 10:00:${at}+0000: event 'reboot' for domain '${name}'\n`);
  // A line may come in pieces.
  await events.write('2026-01-01 10:00:04.000+0000: event ');
  await events.write("'lifecycle' for domain 'web-1': Undefined Removed\n");
  await until('the last look', () => edge.looks.at(-1) === 'unknown');
  assert.equal(edge.reboots, 2);
  assert.deepEqual(edge.troubles, []);
  await events.close();
});

test('DomainWatch says once that libvirt cannot be asked, goes on trying, and looks when it can be again', async (t) => {
  const edge = new Edge(t);
  edge.list(listingOf(3));
  edge.watch.follow(edge.follower);
  const events = await edge.events();
  await until('the first look', () => edge.looks.at(-1) === 3);
  edge.list(undefined);
  await events.close();
  const next = await edge.events();
  await until('word of it', () => edge.troubles.length > 0);
  // Both the events and the list are lost; which is noticed first is chance, and the news is one.
  const trouble =
    /^libvirt at "test:\/\/\/" (tells nothing: virsh ended|cannot be asked: error: failed to connect); trying again$/;
  assert.match(edge.troubles[0]!, trouble);
  await until('the list is asked for in vain', () => edge.watch.trouble.includes('cannot be asked'));
  assert.match(edge.watch.trouble, trouble);
  assert.equal(edge.troubles.length, 1);
  assert.equal(edge.looks.at(-1), 3, 'what cannot be asked is not told as gone');
  edge.list(listingOf(4));
  await next.write("2026-01-01 10:00:00.000+0000: event 'lifecycle' for domain 'web-1': Started Booted\n");
  await until('the look', () => edge.looks.at(-1) === 4);
  assert.deepEqual(edge.troubles.slice(1), ['libvirt at "test:///" can be asked again']);
  assert.equal(edge.watch.trouble, '');
  await next.close();
});
