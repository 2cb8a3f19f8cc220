/** A guest whose device process dies and is replaced while its programs read and write: none of them notices. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { until } from '../until.ts';
import type { Kind } from './programs.ts';
import { type Program, Stage, told } from './stage.ts';

const KILLS = 20;
const kinds: readonly Kind[] = [
  'lines',
  'lines',
  'directories',
  'names',
  'replaces',
  'holds',
  'stats',
  'lists',
  'slow',
];
/** Those that are quick, where it is not they that are tested. */
const few: readonly Kind[] = ['lines', 'directories', 'replaces', 'holds'];

describe('a guest under a device process that ends', () => {
  let stage: Stage;
  before(async () => {
    stage = await Stage.start();
  });
  after(() => stage?.[Symbol.asyncDispose]());

  const start = async (which: readonly Kind[] = few): Promise<Program[]> => {
    const all: Program[] = [];
    for (const kind of which) all.push(await stage.run(kind));
    return all;
  };
  const nothingBroke = async (): Promise<void> => {
    const counters = await stage.server.statistics(60_000);
    for (const name of ['badChains', 'brokenQueues', 'sessionFaults', 'fuse.bugs'])
      assert.equal(counters?.[name], 0, name);
    const told = stage.events.filter((event) => event.event === 'target' && event.what === 'broken');
    assert.deepEqual(told, []);
  };

  test(`no program notices ${KILLS} kills, and nothing that was acknowledged is lost or done twice`, async (t) => {
    const all = await start(kinds);
    const changes = stage.guest.spawn('exec cat /run/metadata/.changes');
    await changes.waitForOutput(/\n/);
    for (let i = 0; i < KILLS; i++) {
      // When in the life of the process it comes is what is to vary.
      await delay(30 + ((i * 137) % 400));
      stage.rewriteNote();
      await stage.succeed('kill');
      await stage.goOn(all);
    }
    await stage.end(all);
    for (const program of all) stage.check(program);
    const seen = changes.stdoutText;
    changes.kill(9);
    t.diagnostic(`acknowledged: ${all.map((program) => `${program.kind} ${told(program)}`).join(', ')}`);
    t.diagnostic(`stalls in ms: ${stage.stallsMs.map((ms) => ms.toFixed(0)).join(' ')}`);
    const lines = seen
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as { revision: number; missed?: true });
    t.diagnostic(`/.changes: ${lines.length} lines, ${lines.filter(({ missed }) => missed === true).length} missed`);
    for (const [i, { revision }] of lines.entries())
      if (i > 0) assert.ok(revision >= lines[i - 1]!.revision, 'revisions of /.changes only rise');
    await nothingBroke();
  });

  test('replacing the process is noticed by no program', async (t) => {
    stage.stallsMs.length = 0;
    const all = await start();
    for (let i = 0; i < 3; i++) {
      await stage.succeed('replace');
      await stage.goOn(all);
    }
    await stage.end(all);
    for (const program of all) stage.check(program);
    t.diagnostic(`stalls in ms: ${stage.stallsMs.map((ms) => ms.toFixed(0)).join(' ')}`);
    await nothingBroke();
  });

  test('what is stopped while the process ends goes on with cont', async () => {
    const all = await start();
    await stage.guest.qmp('stop');
    await stage.succeed('kill');
    await stage.guest.qmp('cont');
    await stage.goOn(all);
    await stage.succeed('kill');
    await stage.guest.qmp('stop');
    await stage.guest.qmp('cont');
    await stage.goOn(all);
    await stage.end(all);
    for (const program of all) stage.check(program);
    await nothingBroke();
  });

  test('a value that burns is given to one reader, who reads on after the process ended', async () => {
    const reader = stage.guest.spawn(
      'exec 3</run/metadata/secrets/once; dd bs=4 count=1 <&3 2>/dev/null; read x; cat <&3',
    );
    await reader.waitForOutput(/burn/);
    await stage.succeed('kill');
    reader.write('\n');
    reader.endInput();
    await reader.done;
    assert.equal(reader.stdoutText, 'burn me');
    assert.notEqual((await stage.guest.run('cat /run/metadata/secrets/once')).exitCode, 0);
  });

  test('umount and mount, and a reset of the machine, work after it', async () => {
    await stage.guest.sh('umount /run/metadata');
    await stage.guest.mount('metadata', '/run/metadata');
    assert.equal(await stage.guest.sh('cat /run/metadata/instance/id'), 'i-1');
    await stage.succeed('kill');
    await stage.guest.reset();
    await stage.guest.mount('metadata', '/run/metadata');
    assert.equal(await stage.guest.sh('cat /run/metadata/instance/id'), 'i-1');
    await stage.succeed('kill');
    assert.equal(await stage.guest.sh('cat /run/metadata/instance/id'), 'i-1');
    await nothingBroke();
  });

  test('a keeper that dies is filled anew, and a device process that dies then is succeeded', async () => {
    const all = await start();
    const filled = (): number =>
      stage.events.filter((event) => event.event === 'target' && event.what === 'kept').length;
    const before = filled();
    process.kill(stage.server.keeperPid!, 'SIGKILL');
    await until('the keeper to be there again', () => filled() > before);
    await stage.goOn(all);
    await stage.succeed('kill');
    await stage.goOn(all);
    await stage.end(all);
    for (const program of all) stage.check(program);
    await nothingBroke();
  });
});
