import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../until.ts';
import { setStage, spec, steady, withVm } from './stage.ts';

test('porthole metadata reads and writes values from files, standard input and a prompt', async (t) => {
  const stage = await setStage(t);
  const { api, run, runWith } = stage;
  await withVm(stage, spec);
  writeFileSync(join(api.directory, 'value'), Uint8Array.of(0, 255, 10));
  const value = async (path: string): Promise<string> =>
    (await api.ask({ path: `/v1/vms/web-1/metadata${path}` })).bytes.toString('latin1');

  const done = { code: 0, out: '', err: '' };
  assert.deepEqual(await run('metadata', 'set', 'web-1', '/a/b', '--file', 'value'), done);
  assert.equal(await value('/a/b'), '\0\u00ff\n');
  const [exact, piped, stripped] = await Promise.all([
    run('metadata', 'get', 'web-1', '/a/b'),
    runWith({ input: 'one\n' }, 'metadata', 'set', 'web-1', '/one'),
    runWith({ input: 'two\r\n' }, 'metadata', 'set', 'web-1', '/two', '--strip-newline'),
  ]);
  assert.equal(exact.code, 0);
  assert.deepEqual([piped, stripped], [done, done]);
  assert.deepEqual([await value('/one'), await value('/two')], ['one\n', 'two']);

  const prompt = stage.terminal({}, 'metadata', 'set', 'web-1', '/secrets/db');
  await prompt.says(/value of \/secrets\/db \(it is not shown; Enter ends it\): /);
  prompt.type('wrong\u0015pässs\u007fwort\r');
  const prompted = await prompt.ended;
  assert.equal(prompted.code, 0, prompted.out);
  assert.doesNotMatch(prompted.out, /wrong|wort/);
  assert.equal(Buffer.from(await value('/secrets/db'), 'latin1').toString(), 'pässwort');
  const interrupted = stage.terminal({}, 'metadata', 'set', 'web-1', '/secrets/db');
  await interrupted.says(/Enter ends it\): /);
  interrupted.type('half\u0003');
  assert.equal((await interrupted.ended).code, 130);
  assert.equal(Buffer.from(await value('/secrets/db'), 'latin1').toString(), 'pässwort');

  // No argument can hold a value.
  const refused = await run('metadata', 'set', 'web-1', '/secrets/db', '--value', 'hunter2');
  assert.deepEqual([refused.code, refused.err], [2, "porthole: unknown option '--value'\n"]);
  const exists = await runWith({ input: 'x' }, 'metadata', 'set', 'web-1', '/one', '--new');
  assert.equal(exists.code, 1);
  assert.match(exists.err, /"\/one" is there already/);

  const [listed, removed, missing] = await Promise.all([
    run('metadata', 'ls', 'web-1', '/secrets'),
    run('metadata', 'rm', 'web-1', '/one'),
    run('metadata', 'get', 'web-1', '/secret/db'),
  ]);
  assert.match(
    steady(listed.out),
    /^MODE +OWNER +SIZE +REVISION +CHANGED +NAME\n-r-------- +114:0 +9 B +1\.\d+ +AGO +db\n$/,
  );
  assert.deepEqual(removed, done);
  assert.deepEqual(
    [missing.code, missing.err],
    [1, 'porthole: there is nothing at "/secret/db"; did you mean "/secrets/db"?\n'],
  );
  const [whole, unlisted] = await Promise.all([
    run('metadata', 'rm', 'web-1', '/a'),
    run('metadata', 'get', 'web-1', '/secrets'),
  ]);
  assert.equal(whole.code, 1);
  assert.match(whole.err, /^porthole: "\/a" is a directory that is not empty; .*; with --recursive it goes/);
  assert.match(unlisted.err, /"\/secrets" is a directory; "porthole metadata ls web-1 \/secrets" lists it/);
});

test('porthole metadata get shows a secret on a terminal only to who says so, and no escape sequence', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const ask = stage.terminal({}, 'metadata', 'get', 'web-1', '/secrets/db');
  await ask.says(/"\/secrets\/db" is a secret; show it on this terminal\? \[y\/N\] /);
  ask.type('n\r');
  const { code, out } = await ask.ended;
  assert.equal(code, 1);
  assert.doesNotMatch(out, /hunter2/);
  const revealed = stage.terminal({}, 'metadata', 'get', 'web-1', '/secrets/db', '--reveal');
  assert.match((await revealed.ended).out, /^hunter2\r\n$/);
  const evil = '\u001b]0;owned\u0007\u001b[31mred\u001b[0m\u001b[2J\u009b';
  await stage.runWith({ input: evil }, 'metadata', 'set', 'web-1', '/instance/evil');
  const [shown, piped] = await Promise.all([
    stage.terminal({}, 'metadata', 'get', 'web-1', '/instance/evil').ended,
    stage.run('metadata', 'get', 'web-1', '/instance/evil'),
  ]);
  assert.equal(shown.out, '\u001b[31mred\u001b[0m\\u{9b}\r\n');
  assert.equal(piped.out, evil);
});

test('porthole metadata import and policy set show mistakes with their line, and change nothing', async (t) => {
  const stage = await setStage(t);
  const { api, run, runWith } = stage;
  await withVm(stage, spec);
  writeFileSync(
    join(api.directory, 'bad.yaml'),
    'porthole: 1\nmetadata: { secrets: { db: hunter2 } }\npolicy:\n  - { path: /secrets/db, ownr: root, mode: "0400" }\n',
  );
  const bad = await run('metadata', 'import', 'web-1', 'bad.yaml');
  assert.deepEqual(bad, {
    code: 3,
    out: '',
    err: `bad.yaml:4:26: error: policy[0].ownr: unknown key "ownr"
  4 |   - { path: /secrets/db, ownr: root, mode: "0400" }
    |                          ^
    = did you mean "owner"?
`,
  });
  const policy = 'users: { app: 1000 }\npolicy:\n  - { path: /secrets/db, owner: app, mode: 0400 }\n';
  const refused = await runWith({ input: policy }, 'policy', 'set', 'web-1', '-');
  assert.equal(refused.code, 3);
  assert.equal(
    refused.err,
    `standard input:3:44: error: policy[0].mode: 0400 without quotes is a decimal number in YAML
  3 |   - { path: /secrets/db, owner: app, mode: 0400 }
    |                                            ^
    = write it quoted: "0400"
`,
  );
  writeFileSync(join(api.directory, 'policy.yaml'), policy.replace('0400', '"0400"'));
  assert.deepEqual(await run('policy', 'set', 'web-1', 'policy.yaml'), { code: 0, out: '', err: '' });
  const [got, explained, json, file, noVm, wrongWay] = await Promise.all([
    run('policy', 'get', 'web-1'),
    run('policy', 'explain', 'web-1', '/secrets/db', '--uid', '1000'),
    run('policy', 'explain', 'web-1', '/secrets/db', '--uid', '1001', '--json'),
    run('policy', 'explain', './policy.yaml', '/secrets/db', '--uid', '1000'),
    run('policy', 'explain', 'value', '/secrets/db', '--uid', '1000'),
    run('policy', 'explain', 'web-1', '/secrets/db', '--uid', '1000', '--way', 'mount'),
  ]);
  assert.equal(got.out, 'users:\n  app: 1000\npolicy:\n  - path: /secrets/db\n    owner: 1000\n    mode: "0400"\n');
  assert.equal(
    explained.out,
    `-r-------- 1000 0 /secrets/db

uid 1000, gid 1000, by virtiofs
  read   allowed  /secrets/db  (mode 0400)
  write  denied   /secrets/db  (mode 0400)

from the rules:
  owner: 1000  (/secrets/db (policy:3))
  mode: 0400  (/secrets/db (policy:3))
`,
  );
  assert.equal((JSON.parse(json.out) as { read: { allowed: boolean } }).read.allowed, false);
  // A file is read as a spec, and this one is none.
  assert.equal(file.code, 3);
  assert.deepEqual([noVm.code, noVm.err], [1, 'porthole: there is no VM "value"; "porthole vm ls" lists them\n']);
  assert.equal(wrongWay.code, 2);
  assert.match(wrongWay.err, /--way and --state are for a spec file.*for a file: \.\/web-1/);

  const exported = await run('metadata', 'export', 'web-1');
  assert.match(exported.out, /db: hunter2\n/);
  const back = await runWith({ input: exported.out }, 'metadata', 'import', 'web-1', '-');
  assert.deepEqual(back, { code: 0, out: '', err: 'nothing changed\n' });
});

test('porthole metadata watch prints each change once while the server restarts', async (t) => {
  const stage = await setStage(t);
  const { api } = stage;
  await withVm(stage, spec);
  const lines = stage.start({}, 'metadata', 'watch', 'web-1', '/instance', '--json');
  const words = stage.start({}, 'metadata', 'watch', 'web-1', '/instance');
  await words.says(/following \/instance of web-1 from revision 1\.\d+ on; Ctrl-C ends\n/);
  const set = async (n: number): Promise<void> => {
    const { status } = await api.ask({ method: 'PUT', path: `/v1/vms/web-1/metadata/instance/n`, body: `${n}` });
    assert.equal(status, 200);
  };
  // The other one says nothing before the first change: until it shows one, changes are made.
  let first = 0;
  await until(
    'the first line',
    async () => {
      if (lines.out() !== '') return true;
      await set(++first);
      return undefined;
    },
    60_000,
  );
  const tree = api.host.vms.get('web-1')!.tree;
  const seen = (): number[] =>
    lines
      .out()
      .trim()
      .split('\n')
      .map((line) => Number((JSON.parse(line) as { revision: string }).revision.split('.')[1]));
  const last = (): number => tree.authority.snapshot.revision;
  for (let i = 0; i < 3; i++) {
    await set(1000 + 10 * i);
    await api.restart();
    await set(1001 + 10 * i);
    await set(1002 + 10 * i);
  }
  await until('the last change', async () => seen().at(-1) === last(), 60_000);
  const revisions = seen();
  assert.deepEqual(
    revisions,
    Array.from({ length: revisions.length }, (_, i) => last() - revisions.length + 1 + i),
    'one after the other, none twice',
  );
  assert.match(lines.err(), /^the connection was lost; trying again\nconnected again\n/);
  await words.says(new RegExp(`1\\.${last()} {2}changed {5}/instance/n\n`));
  for (const one of [lines, words]) {
    one.child.kill('SIGINT');
    assert.equal((await one.ended).code, 0);
  }
  tree.remembered = 1;
  const gone = await stage.run('metadata', 'watch', 'web-1', '--from', '1.2');
  assert.equal(gone.code, 1);
  assert.match(gone.err, /revisions before \d+ are forgotten; read again, then follow from there\n$/);
});
