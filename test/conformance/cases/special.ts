import assert from 'node:assert/strict';
import type { Rule } from '../../../src/tree/index.ts';
import { O_RDONLY, O_TRUNC, O_WRONLY, R_OK } from '../../../src/wire/index.ts';
import type { WorldSpec } from '../../tree/world.ts';
import type { Identity } from '../driver.ts';
import { byV9fs } from '../ninep-ways.ts';
import {
  app,
  bytes,
  ok,
  openStat,
  plain,
  policy,
  postgres,
  root,
  sslCert,
  stranger,
  strangerInSslCert,
  textIn,
  textOf,
  touch,
  visitor,
  workshop,
} from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const secret = '/secrets/db-password';
const ruled = (rule: Omit<Rule, 'path'>, path = secret): WorldSpec => ({ ...plain, rules: [{ path, ...rule }] });

const psql: Identity = { ...postgres, program: '/usr/bin/psql' };
const NO_SYSTEM_XATTRS = 'Linux’s 9P client asks nobody for attributes of `system.` but ACLs';

const unproven: Cannot = {
  because: 'nobody proves the program: every caller is refused',
  instead: async (tree) => {
    for (const who of [psql, postgres, root]) assert.equal(await tree.as(who).open(secret, O_RDONLY), 'EACCES');
  },
};

const otherProgram: Cannot = {
  because: 'it proves the program, which is another here: tried with real ones by a test of its own',
  instead: unproven.instead,
};

export const special: Topic = {
  name: 'special keys of rules',
  cases: [
    {
      name: 'open of `root: deny` refuses the guest’s root and nobody else, and stat does not',
      spec: ruled({ owner: postgres.uid, mode: 0o400, root: 'deny' }),
      run: async (tree) => {
        assert.equal(await tree.as(root).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(postgres).readText(secret), 'hunter2');
        assert.equal(ok(await tree.as(root).stat(secret)).size, 7);
        const denied = (await tree.audit()).find(
          (record) => record.verdict === 'denied' && record.operation === 'open',
        );
        assert.deepEqual([denied?.uid, denied?.path, denied?.rule, denied?.errno], [0, secret, secret, 'EACCES']);
      },
    },
    {
      name: 'lookup and readdir of a `root: deny` directory refuse the guest’s root, and let others pass',
      spec: {
        ...plain,
        rules: [
          { path: '/secrets', mode: 0o755, root: 'deny' },
          { path: secret, mode: 0o444 },
        ],
      },
      run: async (tree) => {
        assert.equal(await tree.as(root).stat(secret), 'EACCES');
        assert.equal(await tree.as(root).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(root).readdir('/secrets'), 'EACCES');
        assert.equal(await tree.as(stranger).readText(secret), 'hunter2');
        assert.equal(ok(await tree.as(stranger).readdir('/secrets')).length, 3);
      },
    },
    {
      name: 'open of `decide: host` by a listed member of the group needs no group in the guest',
      spec: ruled({ group: sslCert, mode: 0o440, decide: 'host' }),
      run: async (tree) => {
        assert.equal(await tree.as(app).readText(secret), 'hunter2');
        assert.equal(await tree.as(strangerInSslCert).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
      },
    },
    {
      name: 'rename out of a rule with special keys is EXDEV, within it is granted',
      spec: { ...plain, rules: [{ path: '/guest/w/**', root: 'deny' }] },
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        await touch(actor, `${directory}/f`);
        assert.equal(await actor.rename(`${directory}/f`, '/guest/f'), 'EXDEV');
        assert.equal(await actor.rename(`${directory}/f`, `${directory}/g`), 'OK');
        assert.equal(await tree.as(root).open(`${directory}/g`, O_RDONLY), 'EACCES');
      },
    },
    {
      name: 'open of `decide: host` is decided outside, with a record, though the mode shows read and write for all',
      spec: ruled({ owner: postgres.uid, mode: 0o400, decide: 'host' }),
      run: async (tree) => {
        assert.equal(ok(await tree.as(stranger).stat(secret)).mode & 0o666, 0o666);
        assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(postgres).open(secret, O_WRONLY), 'EACCES');
        assert.equal(await tree.as(postgres).readText(secret), 'hunter2');
        const records = await tree.audit();
        assert.ok(records.some((record) => record.uid === stranger.uid && record.verdict === 'denied'));
        assert.ok(records.some((record) => record.uid === postgres.uid && record.verdict === 'allowed'));
      },
    },
    {
      name: 'lookup and readdir of `hidden` show it to those who may read it only',
      spec: ruled({ owner: app.uid, mode: 0o400, hidden: true }, '/instance/id'),
      run: async (tree) => {
        const names = async (who: Identity) => ok(await tree.as(who).readdir('/instance')).map((entry) => entry.name);
        assert.equal(await tree.as(app).readText('/instance/id'), 'i-0001');
        assert.ok((await names(app)).includes('id'));
        for (const call of ['stat', 'lstat'] as const)
          assert.equal(await tree.as(stranger)[call]('/instance/id'), 'ENOENT');
        assert.equal(await tree.as(stranger).open('/instance/id', O_RDONLY), 'ENOENT');
        assert.equal(await tree.as(stranger).access('/instance/id', R_OK), 'ENOENT');
        assert.deepEqual((await names(stranger)).toSorted(), ['.', '..', 'hostname']);
        assert.ok((await names(root)).includes('id'));
      },
    },
    {
      name: 'lookup below a `hidden` directory answers ENOENT to those who may not read it',
      spec: ruled({ owner: app.uid, mode: 0o700, hidden: true }, '/instance/private'),
      run: async (tree) => {
        await tree.load({
          content: { instance: { private: { token: 't' } } },
          policy,
          rules: [
            { path: '/instance/private', owner: app.uid, mode: 0o700, hidden: true },
            { path: '/instance/private/token', mode: 0o444 },
          ],
        });
        assert.equal(await tree.as(app).readText('/instance/private/token'), 't');
        assert.equal(await tree.as(stranger).stat('/instance/private/token'), 'ENOENT');
        assert.equal(await tree.as(stranger).readdir('/instance/private'), 'ENOENT');
      },
    },
    {
      name: 'open of `program` is for that executable alone, and grants nothing by itself',
      spec: ruled({ owner: postgres.uid, mode: 0o400, program: ['/usr/bin/psql'] }),
      run: async (tree) => {
        assert.equal(await tree.as(psql).readText(secret), 'hunter2');
        assert.equal(await tree.as({ ...psql, program: '/usr/bin/cat' }).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(postgres).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as({ ...app, program: '/usr/bin/psql' }).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(root).open(secret, O_RDONLY), 'EACCES');
      },
      cannot: {
        session: unproven,
        ninep: unproven,
        mount: unproven,
        agent: otherProgram,
        virtiofs: unproven,
        ...byV9fs(unproven),
      },
    },
    {
      name: 'open of `unit` is refused to those who prove no unit',
      spec: ruled({ owner: postgres.uid, mode: 0o400, unit: ['postgresql.service'] }),
      run: async (tree) => {
        for (const who of [postgres, root, app]) assert.equal(await tree.as(who).open(secret, O_RDONLY), 'EACCES');
      },
    },
    {
      name: 'open before `from` is refused, and granted from then on',
      spec: plain,
      run: async (tree) => {
        await tree.load(ruled({ owner: app.uid, mode: 0o400, fromMs: tree.nowMs() + 1500 }));
        assert.equal(await tree.as(app).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(root).open(secret, O_RDONLY), 'EACCES');
        await tree.pass(1600);
        assert.equal(await tree.as(app).readText(secret), 'hunter2');
      },
    },
    {
      name: 'open and read from `until` on are refused, by handles opened before as well',
      spec: plain,
      run: async (tree) => {
        await tree.load(ruled({ owner: app.uid, mode: 0o400, untilMs: tree.nowMs() + 1500 }));
        const actor = tree.as(app);
        const fd = ok(await actor.open(secret, O_RDONLY));
        assert.equal(await textOf(actor, fd), 'hunter2');
        await tree.pass(1600);
        assert.equal(await actor.pread(fd, 6, 0), 'EACCES');
        assert.equal(await actor.open(secret, O_RDONLY), 'EACCES');
      },
    },
    {
      name: 'read of `once` burns with its first byte, and stat, access, open and why do not',
      spec: ruled({ owner: app.uid, mode: 0o400, once: true }),
      run: async (tree) => {
        const actor = tree.as(app);
        assert.equal(ok(await actor.stat(secret)).size, 7);
        assert.equal(await actor.access(secret, R_OK), 'OK');
        assert.match(
          new TextDecoder().decode(ok(await actor.getxattr(secret, 'system.porthole.why'))),
          /read: allowed/,
        );
        assert.equal(await actor.close(ok(await actor.open(secret, O_RDONLY))), 'OK');
        const late = ok(await actor.open(secret, O_RDONLY));
        const fd = ok(await actor.open(secret, O_RDONLY));
        assert.equal(ok(await actor.pread(late, 10, 100)).length, 0);
        assert.equal((await tree.look(secret))?.text, 'hunter2');
        assert.equal(textIn(await actor.read(fd, 3)), 'hun');
        assert.equal((await tree.look(secret))?.text, '');
        assert.equal(textIn(await actor.read(fd, 10)), 'ter2');
        assert.equal(textIn(await actor.pread(fd, 10, 0)), 'hunter2');
        assert.equal(await actor.pread(late, 10, 0), 'EACCES');
        assert.equal(await actor.open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(root).open(secret, O_RDONLY), 'EACCES');
        assert.equal(ok(await actor.stat(secret)).mode, 0);
        await actor.close(fd);
        assert.equal(await actor.open(secret, O_RDONLY), 'EACCES');
      },
      cannot: byV9fs({
        because: NO_SYSTEM_XATTRS,
        instead: async (tree) => {
          const actor = tree.as(app);
          assert.equal(ok(await actor.stat(secret)).size, 7);
          assert.equal(await actor.access(secret, R_OK), 'OK');
          assert.equal(await actor.getxattr(secret, 'system.porthole.why'), 'EOPNOTSUPP');
          assert.equal(await actor.close(ok(await actor.open(secret, O_RDONLY))), 'OK');
          const fd = ok(await actor.open(secret, O_RDONLY));
          assert.equal((await tree.look(secret))?.text, 'hunter2');
          assert.equal(textIn(await actor.read(fd, 3)), 'hun');
          assert.equal((await tree.look(secret))?.text, '');
          assert.equal(textIn(await actor.pread(fd, 10, 0)), 'hunter2');
          assert.equal(await actor.open(secret, O_RDONLY), 'EACCES');
          assert.equal(await tree.as(root).open(secret, O_RDONLY), 'EACCES');
        },
      }),
    },
    {
      name: 'read of `once` is for those who may read it, and a new value can be read once again',
      spec: ruled({ owner: app.uid, mode: 0o400, once: true }),
      run: async (tree) => {
        assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(app).readText(secret), 'hunter2');
        await tree.load(ruled({ owner: app.uid, mode: 0o400, once: true }));
        assert.equal(await tree.as(app).open(secret, O_RDONLY), 'EACCES');
        await tree.load({
          ...ruled({ owner: app.uid, mode: 0o400, once: true }),
          content: { secrets: { 'db-password': 'new' } },
        });
        assert.equal(await tree.as(app).readText(secret), 'new');
        assert.equal(await tree.as(app).open(secret, O_RDONLY), 'EACCES');
        const reads = (await tree.audit()).filter((record) => record.path === secret && record.verdict === 'allowed');
        assert.equal(reads.filter((record) => record.operation === 'burn').length, 2);
      },
    },
    {
      name: 'write of `writeOnce` works while the file is empty, then EPERM for every change',
      spec: {
        content: { instance: { result: '' } },
        policy,
        rules: [{ path: '/instance/result', owner: app.uid, mode: 0o644, writeOnce: true }],
      },
      run: async (tree) => {
        const actor = tree.as(app);
        const fd = ok(await actor.open('/instance/result', O_WRONLY));
        assert.equal(await actor.write(fd, bytes('done')), 4);
        assert.equal(await actor.write(fd, bytes('more')), 'EPERM');
        await actor.close(fd);
        assert.equal(await actor.open('/instance/result', O_WRONLY), 'EPERM');
        assert.equal(await actor.open('/instance/result', O_WRONLY | O_TRUNC), 'EPERM');
        assert.equal(await actor.truncate('/instance/result', 0), 'EPERM');
        assert.equal(await tree.as(visitor).readText('/instance/result'), 'done');
        assert.equal((await tree.look('/instance/result'))?.text, 'done');
      },
    },
    {
      name: 'unlink and rename of what a guest wrote under `writeOnce` are EPERM',
      spec: { ...plain, rules: [{ path: '/guest/w/*', writeOnce: true }] },
      run: async (tree) => {
        const actor = tree.as(app);
        const directory = await workshop(actor);
        assert.equal(await actor.writeFile(`${directory}/f`, 'once'), 'OK');
        assert.equal(await actor.unlink(`${directory}/f`), 'EPERM');
        assert.equal(await actor.rename(`${directory}/f`, '/guest/f'), 'EPERM');
        await touch(actor, `${directory}/g`);
        assert.equal(await actor.rename(`${directory}/g`, `${directory}/f`), 'EPERM');
        assert.equal((await openStat(actor, `${directory}/f`)).size, 4);
        assert.equal(await actor.unlink(`${directory}/g`), 'OK');
      },
    },
  ],
};
