import assert from 'node:assert/strict';
import { O_RDONLY, O_WRONLY } from '../../../src/wire/index.ts';
import { byV9fs } from '../ninep-ways.ts';
import { app, ok, plain, postgres, root, stranger, textIn } from '../people.ts';
import type { Cannot, Topic } from '../suite.ts';

const secret = '/secrets/db-password';
const spec = { ...plain, rules: [{ path: secret, owner: postgres.uid, mode: 0o400, source: 'web.yaml:3' }] };
const hostSpec = { ...plain, rules: [{ path: secret, owner: postgres.uid, mode: 0o400, decide: 'host' as const }] };

const refusedByGuest: Cannot = {
  because: 'the guest kernel refuses by the mode before we are asked: no audit record',
  instead: async (tree) => {
    assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
    assert.equal((await tree.audit()).filter((one) => one.uid === stranger.uid).length, 0);
  },
};

export const audit: Topic = {
  name: 'audit',
  cases: [
    {
      name: 'open that the mode refuses leaves a record of who, what and by which rule',
      spec,
      run: async (tree) => {
        assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
        const record = (await tree.audit()).find((one) => one.uid === stranger.uid && one.operation === 'open');
        assert.ok(record !== undefined);
        const { uid, gid, path, verdict, errno, rule } = record;
        assert.deepEqual(
          { uid, gid, path, verdict, errno, rule },
          { uid: 2000, gid: 2000, path: secret, verdict: 'denied', errno: 'EACCES', rule: `${secret} (web.yaml:3)` },
        );
        assert.ok(record.revision > 0 && record.pid > 0 && Number.isSafeInteger(record.timeMs));
      },
      cannot: {
        ninep: {
          because: '9P tells of no group and no process: the record has group 65534 and process 0',
          instead: async (tree) => {
            assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
            const record = (await tree.audit()).find((one) => one.uid === stranger.uid && one.operation === 'open');
            assert.ok(record !== undefined);
            const { gid, pid, path, verdict, rule } = record;
            assert.deepEqual(
              { gid, pid, path, verdict, rule },
              { gid: 65_534, pid: 0, path: secret, verdict: 'denied', rule: `${secret} (web.yaml:3)` },
            );
          },
        },
        virtiofs: refusedByGuest,
        ...byV9fs(refusedByGuest),
      },
    },
    {
      name: 'open for writing that root may not is recorded everywhere',
      spec,
      run: async (tree) => {
        assert.equal(await tree.as(root).open(secret, O_WRONLY), 'EACCES');
        const record = (await tree.audit()).find((one) => one.uid === 0 && one.verdict === 'denied');
        assert.deepEqual([record?.path, record?.errno, record?.operation], [secret, 'EACCES', 'open']);
      },
    },
    {
      name: 'open of a secret is recorded, of what all may read is not',
      spec,
      run: async (tree) => {
        assert.equal(await tree.as(postgres).readText(secret), 'hunter2');
        assert.equal(await tree.as(app).readText('/instance/id'), 'i-0001');
        const allowed = (await tree.audit()).filter((one) => one.verdict === 'allowed');
        assert.deepEqual(
          allowed.map(({ uid, path }) => [uid, path]),
          [[postgres.uid, secret]],
        );
      },
    },
    {
      name: 'open of a secret is EIO while the log keeps nothing, of what all may read is not',
      spec,
      run: async (tree) => {
        await tree.breakAudit(true);
        assert.equal(await tree.as(postgres).open(secret, O_RDONLY), 'EIO');
        assert.equal(await tree.as(app).readText('/instance/id'), 'i-0001');
        assert.equal(await tree.as(stranger).open(secret, O_RDONLY), 'EACCES');
        await tree.breakAudit(false);
        assert.equal(await tree.as(postgres).readText(secret), 'hunter2');
      },
    },
    {
      name: 'read of `once` is EIO while the log keeps nothing, and burns nothing',
      spec: { ...plain, rules: [{ path: secret, owner: app.uid, mode: 0o400, once: true }] },
      run: async (tree) => {
        await tree.breakAudit(true);
        const actor = tree.as(app);
        const fd = ok(await actor.open(secret, O_RDONLY));
        assert.equal(await actor.read(fd, 10), 'EIO');
        await tree.breakAudit(false);
        assert.equal(textIn(await actor.pread(fd, 10, 0)), 'hunter2');
      },
    },
    {
      name: 'open denied over and over is recorded at first and then counted, and another’s first is always kept',
      spec: hostSpec,
      run: async (tree) => {
        const actor = tree.as(stranger);
        for (let round = 0; round < 100; round++) assert.equal(await actor.open(secret, O_RDONLY), 'EACCES');
        assert.equal(await tree.as(app).open(secret, O_RDONLY), 'EACCES');
        const denied = (await tree.audit()).filter((one) => one.verdict === 'denied');
        const flood = denied.filter((one) => one.uid === stranger.uid).length;
        assert.ok(flood >= 20 && flood < 90, `${flood} records of 100`);
        assert.equal(denied.filter((one) => one.uid === app.uid).length, 1);
        await tree.pass(1000);
        assert.equal(await actor.open(secret, O_RDONLY), 'EACCES');
        const told = (await tree.audit()).filter((one) => one.uid === stranger.uid);
        assert.ok((told.at(-1)?.dropped ?? 0) > 0);
        assert.equal(
          told.reduce((sum, one) => sum + 1 + (one.dropped ?? 0), 0),
          101,
        );
      },
    },
    {
      name: 'write refused to what was made outside is recorded, and so is one that changed it',
      spec: { ...plain, rules: [{ path: '/instance/id', owner: app.uid, mode: 0o644 }] },
      run: async (tree) => {
        assert.equal(await tree.as(root).chmod('/instance/id', 0o777), 'EPERM');
        assert.equal(await tree.as(app).writeFile('/instance/id', 'mine', O_WRONLY), 'OK');
        const records = await tree.audit();
        const of = (uid: number) => records.find((one) => one.uid === uid && one.path === '/instance/id');
        assert.deepEqual([of(0)?.operation, of(0)?.verdict, of(0)?.errno], ['setattr', 'denied', 'EPERM']);
        assert.deepEqual([of(app.uid)?.operation, of(app.uid)?.verdict], ['write', 'allowed']);
      },
    },
  ],
};
