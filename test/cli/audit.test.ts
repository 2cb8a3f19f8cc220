import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { hostKey } from '../../src/records/index.ts';
import { addHost } from '../cluster/hosts.ts';
import { until } from '../until.ts';
import { setStage, steady } from './stage.ts';

test('porthole audit verify checks each host, and goes on from what was noted', async (t) => {
  const stage = await setStage(t);
  const last = `0.${'a'.repeat(64)}`;
  const found = await stage.run('audit', 'verify');
  assert.deepEqual(found, {
    code: 0,
    out: `local/local: 0 records, all as they were written, up to ${last}\n`,
    err: '',
  });
  const { out } = await stage.run('audit', 'verify', '--json', '--host', 'local');
  assert.deepEqual(JSON.parse(out), { region: 'local', host: 'local', records: 0, problems: [], last });
  const noted = join(stage.api.directory, 'noted.jsonl');
  writeFileSync(noted, out);
  stage.api.host.auditProblems.push({ file: '1.jsonl', line: 7, what: 'record 7 was changed' });
  const changed = await stage.run('audit', 'verify', '--noted', noted);
  assert.deepEqual(changed, {
    code: 1,
    out: 'local/local: 0 records since what was noted, NOT as they were written\n',
    err: 'local/local: 1.jsonl:7: record 7 was changed\n',
  });
  for (const wrong of [
    ['--host', 'none'],
    ['--vm', 'web-1'],
  ])
    assert.equal((await stage.run('audit', 'verify', ...wrong)).code, 2);
  const { checkAudit } = stage.api.host;
  let asked = 0;
  stage.api.host.checkAudit = async () => {
    const checked = await checkAudit.call(stage.api.host);
    return { ...checked, isEnd: ++asked > 5 };
  };
  assert.deepEqual(await stage.run('audit', 'verify', '--noted', noted), {
    code: 1,
    out: '',
    err: 'local/local was not checked: the host says that there is more, and gives nothing\n',
  });
  stage.api.host.checkAudit = checkAudit;
  writeFileSync(noted, 'x');
  assert.match((await stage.run('audit', 'verify', '--noted', noted)).err, /not what "porthole audit verify --json"/);
});

test('porthole audit asks, filters and follows', async (t) => {
  const stage = await setStage(t);
  const record = (more: object = {}): void => {
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
    stage.api.host.recorded(about);
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

  const { out } = await stage.run('audit', '--all-vms', '--path', '/secrets/db');
  assert.match(out, /^TIME +HOST +VM .*\n\S+ +local\/local +web-1 /);
  await addHost(stage.api.stores.region, 'away');
  const partly = await stage.run('audit', '--all-vms', '--json');
  assert.deepEqual([partly.code, partly.out.split('\n').length], [1, 3]);
  assert.match(partly.err, /^host "away" of region "local" did not answer, what is recorded there is missing: /);
  await stage.api.stores.region.commit({ operations: [{ type: 'delete', key: hostKey('away') }] });

  const following = stage.start({}, 'audit', '--follow', '--since', '1h', '--json');
  await following.says(/"2"/);
  record();
  await following.says(/"3"/);
  await stage.api.restart();
  record();
  await following.says(/"4"/);
  const ids = following.out().match(/"id":"\d"/g);
  assert.deepEqual(ids, ['"id":"1"', '"id":"2"', '"id":"3"', '"id":"4"']);
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
