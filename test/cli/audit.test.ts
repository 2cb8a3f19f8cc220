import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../until.ts';
import { setStage, steady } from './stage.ts';

test('porthole audit asks, filters and follows', async (t) => {
  const stage = await setStage(t);
  const { audits } = stage.api.host;
  let n = 0;
  const record = (more: object = {}): void => {
    n++;
    const about = {
      timeMs: Date.now(),
      vm: 'web-1',
      way: 'virtiofs',
      operation: 'open',
      path: '/secrets/db',
      uid: 1000,
      gid: 1000,
      pid: 7,
      revision: 3,
      verdict: 'denied' as const,
      rule: '/secrets/db (web.yaml:7)',
      errno: 'EACCES',
      ...more,
    };
    audits.push({ id: `1.${n}`, record: about });
  };
  const nothing = await stage.run('audit');
  assert.deepEqual(nothing, { code: 0, out: '', err: 'no record matches\n' });
  record({ dropped: 4 });
  record({ uid: 114, verdict: 'allowed', errno: undefined, path: '/secrets/\u001b[2Jx' });
  const [all, denied, json, terminal] = await Promise.all([
    stage.run('audit'),
    stage.run('audit', '--denied', '--uid', '1000', '--vm', 'web-1', '--path', '/secrets', '--since', '1h'),
    stage.run('audit', '--json', '--limit', '1'),
    stage.terminal({ environment: { NO_COLOR: '1' } }, 'audit', '--denied').ended,
  ]);
  assert.equal(
    steady(all.out),
    `TIME                  VM               UID  OPERATION  VERDICT         PATH                      RULE
TIME  web-1           1000  open       denied EACCES   /secrets/db               /secrets/db (web.yaml:7)  (and 4 more like it)
TIME  web-1            114  open       allowed         /secrets/\\u{1b}[2Jx       /secrets/db (web.yaml:7)
`,
  );
  assert.match(steady(denied.out), /^TIME .*\nTIME .* denied EACCES .*\n$/);
  assert.equal((JSON.parse(json.out) as { uid: number }).uid, 114);
  assert.ok(!terminal.out.includes('\u001b'), terminal.out);
  const coloured = await stage.terminal({}, 'audit', '--denied').ended;
  assert.ok(coloured.out.includes('\u001b[1m\u001b[31mdenied EACCES \u001b[39m\u001b[22m'), coloured.out);

  const following = stage.start({}, 'audit', '--follow', '--since', '1h', '--json');
  await following.says(/"1\.2"/);
  record();
  await following.says(/"1\.3"/);
  await stage.api.restart();
  record();
  await following.says(/"1\.4"/);
  const ids = following.out().match(/"id":"1\.\d"/g);
  assert.deepEqual(ids, ['"id":"1.1"', '"id":"1.2"', '"id":"1.3"', '"id":"1.4"']);
  const fresh = stage.start({}, 'audit', '--follow');
  await until(
    'a new record',
    async () => {
      if (fresh.out() !== '') return true;
      record();
      return undefined;
    },
    60_000,
  );
  for (const one of [following, fresh]) {
    one.child.kill('SIGINT');
    assert.equal((await one.ended).code, 0);
  }
});
