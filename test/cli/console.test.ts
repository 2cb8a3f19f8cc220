import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../until.ts';
import { setStage, spec, withVm } from './stage.ts';

test('porthole vm console types what is typed, Ctrl-C too, until the detach key', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const { console } = stage.api.host.vms.get('web-1')!;
  const typed = (): string => Buffer.concat(console.typed).toString();
  console.print('login: ');
  const session = stage.terminal({}, 'vm', 'console', 'web-1');
  await session.says(/^the console of web-1; Ctrl-\] ends it\r\n[^]*login: $/);
  session.type('root\r');
  await until('what was typed', async () => typed() === 'root\r', 60_000);
  session.type('\u0003\u001a\u0004');
  await until('keys that would end other programs', async () => typed() === 'root\r\u0003\u001a\u0004', 60_000);
  console.print('\u001b[2Jbye\r\n');
  await session.says(/bye/);
  session.type('x\u001dnever');
  const { code, out } = await session.ended;
  assert.equal(code, 0);
  assert.equal(typed(), 'root\r\u0003\u001a\u0004x');
  // As the machine sent it: a full-screen program must work.
  assert.ok(out.includes('\u001b[2Jbye\r\n'), out);

  const piped = stage.start({}, 'vm', 'console', 'web-1', '--escape', '^a');
  await piped.says(/Ctrl-a ends it/);
  piped.type('\u001d\u0001');
  assert.equal((await piped.ended).code, 0);
  assert.equal(typed().at(-1), '\u001d');
  const watched = stage.start({ input: '' }, 'vm', 'console', 'web-1');
  await watched.says(/ends it/);
  console.print('still here');
  await watched.says(/still here/);
  watched.child.kill('SIGINT');
  assert.equal((await watched.ended).code, 0);

  console.isRunning = false;
  const stopped = await stage.runWith({ input: 'x' }, 'vm', 'console', 'web-1');
  assert.equal(stopped.code, 1);
  assert.match(stopped.err, /porthole: the VM does not run; start it first\n$/);
});

test('porthole vm logs prints the log and follows it over a restart of the server', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const { console } = stage.api.host.vms.get('web-1')!;
  console.print('one\ntwo\nthree\u001b]0;owned\u0007\n');
  const [all, tail, shown] = await Promise.all([
    stage.run('vm', 'logs', 'web-1'),
    stage.run('vm', 'logs', 'web-1', '--tail', '2'),
    stage.terminal({}, 'vm', 'logs', 'web-1').ended,
  ]);
  assert.equal(all.out, 'one\ntwo\nthree\u001b]0;owned\u0007\n');
  assert.equal(tail.out, 'two\nthree\u001b]0;owned\u0007\n');
  assert.equal(shown.out, 'one\r\ntwo\r\nthree\r\n');
  const following = stage.start({}, 'vm', 'logs', 'web-1', '--tail', '0', '--follow');
  await until(
    'the first line',
    async () => {
      if (following.out() !== '') return true;
      console.print('.\n');
      return undefined;
    },
    60_000,
  );
  const before = following.out().length;
  await stage.api.restart();
  console.print('after\n');
  await until('what came after', async () => following.out().endsWith('after\n'), 60_000);
  assert.match(following.out().slice(before), /^(\.\n)*after\n$/);
  following.child.kill('SIGINT');
  assert.equal((await following.ended).code, 0);
});
