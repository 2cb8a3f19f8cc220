/** The native API: the token before all else, the caller in every request, decided here. */
import assert from 'node:assert/strict';
import type { ClientRequest, IncomingMessage } from 'node:http';
import { test } from 'node:test';
import { Validator } from '@seriousme/openapi-schema-validator';
import { Stage } from '../../test/imds/stage.ts';
import type { WorldSpec } from '../../test/tree/world.ts';
import { until } from '../../test/until.ts';
import { nativeRoutes } from './native-routes.ts';
import { openApiDocument } from './openapi.ts';

const app = { uid: 1000, gid: 1000, pid: 7 };
const root = { uid: 0, gid: 0, pid: 1 };

const spec: WorldSpec = {
  content: {
    instance: { id: 'i-1' },
    secrets: { mine: 'for app', psql: 'for psql', unit: 'for the unit', once: 'one time' },
    app: { settings: 'log = info' },
    guest: {},
  },
  rules: [
    { path: '/secrets/*', owner: 1000, mode: 0o400 },
    { path: '/secrets/psql', program: ['/usr/bin/psql'] },
    { path: '/secrets/unit', unit: ['app.service'] },
    { path: '/secrets/once', once: true },
    { path: '/app', mode: 0o755 },
    { path: '/app/settings', owner: 1000, mode: 0o644 },
  ],
};

const base64 = (text: string): string => Buffer.from(text).toString('base64');

test('the native API answers nothing but the token without the token of this boot', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  for (const route of [
    'tree',
    'watch',
    ...nativeRoutes.map(({ operationId }) => operationId),
    'batch',
    'applied',
    'token/return',
  ]) {
    const body = route === 'tree' || route === 'watch' ? undefined : {};
    for (const wrong of [undefined, 'x', `${token.slice(0, 42)}${token.endsWith('A') ? 'B' : 'A'}`])
      assert.equal((await stage.native(route, body, wrong)).status, 401, route);
  }
  assert.equal((await stage.native('stat', { caller: app, node: '/instance/id' }, token)).status, 200);
  await stage.tokens.boot('boot-2');
  assert.equal(
    (await stage.native('stat', { caller: app, node: '/instance/id' }, token)).status,
    401,
    'dead with its boot',
  );
});

test('the token is given out on privileged channels only, once, and the second claimant is an incident', async () => {
  await using stage = await Stage.start(spec);
  const nonce = 'a'.repeat(22);
  assert.equal((await stage.native('token', { nonce }, undefined, false)).status, 403);
  assert.equal(stage.events.length, 0, 'who may not ask forges nothing');
  const first = await stage.native('token', { nonce }, undefined);
  assert.deepEqual(Object.keys(first.json), ['token', 'boot']);
  assert.deepEqual((await stage.native('token', { nonce }, undefined)).json, first.json, 'a lost answer');
  assert.equal((await stage.native('token', { nonce: 'b'.repeat(22) }, undefined)).status, 409);
  assert.deepEqual(
    stage.events.map(({ event }) => event),
    ['compromised'],
  );
  for (const nonce of ['', 'short', 'x'.repeat(129), 1, undefined, '/'.repeat(30)])
    assert.equal((await stage.native('token', { nonce }, undefined)).status, 400, String(nonce));
  assert.equal((await stage.native('token', { nonce, more: 1 }, undefined)).status, 400);
  assert.equal((await stage.ask('/porthole/v1/token')).status, 405, 'not by GET, which anybody can be made to send');
  const form = { method: 'POST', headers: { 'content-type': 'text/plain' }, body: JSON.stringify({ nonce }) };
  assert.equal((await stage.ask('/porthole/v1/token', form)).status, 415, 'nor as a form of a web page');
});

test('a token that is handed back is dead, and allows one more', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  assert.equal((await stage.native('token/return', {}, token)).status, 200);
  assert.equal((await stage.native('token/return', {}, token)).status, 200, 'its answer may have been lost');
  assert.equal((await stage.native('stat', { caller: app, node: '/' }, token)).status, 401);
  const next = await stage.token('c'.repeat(22));
  assert.notEqual(next, token);
  assert.equal((await stage.native('stat', { caller: app, node: '/' }, next)).status, 200);
  assert.equal((await stage.native('token', { nonce: 'd'.repeat(22) }, undefined)).status, 409);
  assert.equal((await stage.native('token/return', {}, token)).status, 401, 'an older one ends nobody else’s');
});

test('open is decided by the caller that is stated, program and unit included, and recorded', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const open = async (node: string, caller: object) => {
    const { status, json } = await stage.native('open', { caller, node, access: 'read' }, token);
    return status === 200 ? Buffer.from(json['bytes'] as string, 'base64').toString() : json['errno'];
  };
  assert.equal(await open('/secrets/mine', app), 'for app');
  assert.equal(await open('/secrets/mine', { ...app, uid: 1001 }), 'EACCES');
  assert.equal(await open('/secrets/psql', app), 'EACCES');
  assert.equal(await open('/secrets/psql', { ...app, program: '/usr/bin/psql' }), 'for psql');
  assert.equal(await open('/secrets/unit', { ...app, program: '/usr/bin/psql' }), 'EACCES');
  assert.equal(await open('/secrets/unit', { ...app, unit: 'app.service' }), 'for the unit');
  assert.equal(await open('/secrets/none', app), 'ENOENT');
  assert.equal(await open('/secrets', app), 'EISDIR');
  assert.equal(await open('/secrets/../secrets/mine', app), 'EINVAL');
  const records = stage.world.audit.map(({ way, path, uid, program, verdict }) => [way, path, uid, program, verdict]);
  assert.deepEqual(records, [
    ['agent', '/secrets/mine', 1000, undefined, 'allowed'],
    ['agent', '/secrets/mine', 1001, undefined, 'denied'],
    ['agent', '/secrets/psql', 1000, undefined, 'denied'],
    ['agent', '/secrets/psql', 1000, '/usr/bin/psql', 'allowed'],
    ['agent', '/secrets/unit', 1000, '/usr/bin/psql', 'denied'],
    ['agent', '/secrets/unit', 1000, undefined, 'allowed'],
  ]);
  stage.world.auditWorks = false;
  assert.equal(await open('/secrets/mine', app), 'EIO');
});

test('a value that can be read once is burned by read, not by open', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const opened = await stage.native('open', { caller: app, node: '/secrets/once', access: 'read' }, token);
  assert.deepEqual([opened.json['once'], opened.json['bytes']], [true, undefined]);
  const read = { caller: app, node: '/secrets/once', offset: 0, size: 4096 };
  assert.equal((await stage.native('read', read, token)).json['bytes'], base64('one time'));
  assert.equal((await stage.native('read', read, token)).json['errno'], 'EACCES');
});

test('changes are decided, committed once, and answered with an errno by name', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const run = async (operation: string, body: object) => (await stage.native(operation, body, token)).json;
  const made = await run('create', { caller: app, directory: '/guest', name: 'f', mode: 0o600, sequence: 1 });
  const write = { caller: app, node: made['ino'], offset: 0, bytes: base64('abc'), append: true, sequence: 2 };
  const once = await run('write', write);
  assert.deepEqual(await run('write', write), once, 'sent again, it is answered and not done again');
  const bytes = await run('read', { caller: app, node: '/guest/f', offset: 0, size: 100 });
  assert.equal(bytes['bytes'], base64('abc'));
  assert.equal((await run('create', { caller: app, directory: '/guest', name: 'f', mode: 0o600 }))['errno'], 'EEXIST');
  assert.equal((await run('write', { ...write, caller: { ...app, uid: 1001 }, sequence: 3 }))['errno'], 'EACCES');
  assert.equal((await run('mkdir', { caller: app, directory: '/guest', name: 'd', mode: 0o755 }))['errno'], undefined);
  const there = { caller: app, directory: '/guest', name: 'f', toDirectory: '/guest/d', toName: 'g' };
  assert.equal((await run('rename', there))['errno'], undefined);
  assert.equal((await run('rename', there))['errno'], 'ENOENT');
  assert.equal((await run('rmdir', { caller: app, directory: '/guest', name: 'd' }))['errno'], 'ENOTEMPTY');
  assert.equal(
    (await run('setattr', { caller: app, node: '/guest/d/g', mode: 0o640, mtime: [5, 0] }))['errno'],
    undefined,
  );
  const { node } = await run('stat', { caller: app, node: '/guest/d/g' });
  assert.deepEqual([(node as { mode: number }).mode & 0o777, (node as { mtime: number[] }).mtime], [0o640, [5, 0]]);
  assert.equal((await run('truncate', { caller: app, node: '/guest/d/g', size: 1 }))['errno'], undefined);
  assert.equal(
    (await run('symlink', { caller: app, directory: '/guest', name: 'l', target: 'd/g' }))['errno'],
    undefined,
  );
  assert.equal((await run('readlink', { caller: app, node: '/guest/l' }))['bytes'], base64('d/g'));
  const { entries } = await run('list', { caller: app, node: '/guest' });
  assert.deepEqual(
    (entries as { name: string }[]).map(({ name }) => name),
    ['.agent', 'd', 'l'],
  );
  assert.equal((await run('delete', { caller: root, directory: '/instance', name: 'id' }))['errno'], 'EPERM');
  const why = await run('getxattr', { caller: app, node: '/secrets/psql', name: 'system.porthole.why' });
  assert.match(Buffer.from(why['bytes'] as string, 'base64').toString(), /program/);
});

test('a batch runs in order, each request decided by itself, up to the first refusal', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const make = (name: string, caller: object) => ({
    operation: 'mkdir',
    input: { caller, directory: '/guest', name, mode: 0o755 },
  });
  const { json } = await stage.native('batch', { requests: [make('a', app), make('a', root), make('b', app)] }, token);
  const results = json['results'] as Record<string, unknown>[];
  assert.deepEqual(
    results.map((result) => result['errno']),
    [undefined, 'EEXIST'],
  );
  assert.equal(stage.world.authority.snapshot.resolve('/guest/b'), undefined);
  const wrong = await stage.native('batch', { requests: [make('c', app), { operation: 'mkdir', input: {} }] }, token);
  assert.equal(wrong.status, 400);
  assert.equal(stage.world.authority.snapshot.resolve('/guest/c'), undefined, 'what makes no sense is not begun');
});

const MIB = 1024 * 1024;
const large: WorldSpec = { content: { instance: { large: 'x'.repeat(MIB) }, guest: {} } };
const readLarge = { caller: root, node: '/instance/large', offset: 0, size: MIB };
const largeBatch = { requests: Array.from({ length: 64 }, () => ({ operation: 'read', input: readLarge })) };

test('a batch whose answers come to 2 MiB ends there, and what comes after is not tried', async () => {
  await using stage = await Stage.start(large);
  const make = { operation: 'mkdir', input: { caller: root, directory: '/guest', name: 'd', mode: 0o755 } };
  const requests = [...largeBatch.requests.slice(0, 3), make];
  const { json } = await stage.native('batch', { requests }, await stage.token());
  const results = json['results'] as readonly { readonly bytes: string }[];
  assert.deepEqual(
    results.map(({ bytes }) => Buffer.from(bytes, 'base64').length),
    [MIB, MIB],
  );
  assert.equal(stage.world.authority.snapshot.resolve('/guest/d'), undefined);
});

test('answers that nobody takes are made up to a limit, whatever is asked, and the next ones get 503', async () => {
  await using stage = await Stage.start(large, { limits: { heldBytes: 8 * MIB } });
  const token = await stage.token();
  const body = JSON.stringify(largeBatch);
  const head = (line: string, more = '') =>
    `${line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\n${more}\r\n`;
  const batch = `${head('POST /porthole/v1/batch', `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n`)}${body}`;
  const tree = head('GET /porthole/v1/tree');
  const silent = [batch, tree, batch, tree].flatMap((asked) =>
    Array.from({ length: 8 }, () => ({ asked, stream: stage.connect() })),
  );
  for (const { stream, asked } of silent) stream.write(asked.repeat(asked === tree ? 4 : 1));
  await until('all but some are refused', () => (stage.server.counters()['rejected.unsent'] ?? 0) >= 20);
  const { heldBytes = 0 } = stage.server.counters();
  assert.ok(heldBytes > 4 * MIB && heldBytes < 12 * MIB, String(heldBytes));
  assert.equal((await stage.native('stat', { caller: app, node: '/' }, token)).status, 503);
  for (const { stream } of silent) stream.destroy();
  await until('they have gone', () => stage.server.counters()['heldBytes'] === 0);
  assert.equal((await stage.native('stat', { caller: app, node: '/' }, token)).status, 200);
  assert.deepEqual(stage.errors, []);
});

test('what the agent is answered is limited in bytes, and not what it says of its copy', async () => {
  await using stage = await Stage.start(large, { limits: { agentBytes: { burst: MIB, perSecond: MIB } } });
  const token = await stage.token();
  const statusOf = async (operation: string, body?: object) => (await stage.native(operation, body, token)).status;
  assert.equal(await statusOf('tree'), 200);
  for (const refused of [await statusOf('tree'), await statusOf('read', readLarge)]) assert.equal(refused, 429);
  assert.equal(await statusOf('applied', { stream: 1, revision: 1 }), 404);
  stage.world.clock.advance(1000);
  assert.equal(await statusOf('read', readLarge), 200);
  assert.equal(stage.server.counters()['rejected.byte-rate'], 2);
});

interface Tree {
  readonly revision: number;
  readonly nodes: readonly { readonly name: string; readonly bytes?: string }[];
}

/** Lines of a watch stream. */
class Following {
  readonly request: ClientRequest;
  readonly lines: Record<string, unknown>[] = [];
  id = 0;
  status = 0;
  hasEnded = false;

  constructor(stage: Stage, token: string, from: number) {
    this.request = stage.request(`/porthole/v1/watch?from=${from}`, { headers: { authorization: `Bearer ${token}` } });
    this.request.on('error', () => {});
    this.request.once('response', (response: IncomingMessage) => {
      this.status = response.statusCode ?? 0;
      this.id = Number(response.headers['x-porthole-stream']);
      let rest = '';
      response.setEncoding('utf8').on('data', (text: string) => {
        const lines = `${rest}${text}`.split('\n');
        rest = lines.pop()!;
        this.lines.push(...lines.map((line) => JSON.parse(line) as Record<string, unknown>));
      });
      response.once('close', () => {
        this.hasEnded = true;
      });
      response.on('error', () => {});
    });
  }

  get changes() {
    return this.lines.filter((line) => line['heartbeat'] === undefined);
  }

  started(): Promise<unknown> {
    return until('the stream starts', () => this.lines.length > 0 || (this.status !== 0 && this.status !== 200));
  }
}

test('the tree and its stream have the bytes of what everybody may read, and no others, as rules change too', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const tree = (await stage.native('tree', undefined, token)).json as unknown as Tree;
  const names = (nodes: Tree['nodes']) =>
    nodes.filter(({ name, bytes }) => bytes !== undefined && name !== '.changes').map(({ name }) => name);
  assert.deepEqual(names(tree.nodes), ['id', 'settings']);
  const following = new Following(stage, token, tree.revision);
  await following.started();
  const edit = (path: string, text: string) =>
    stage.world.authority.edit([{ op: 'put', path, bytes: Buffer.from(text) }]);
  await edit('/instance/id', 'i-2');
  await edit('/secrets/mine', 'changed');
  stage.world.load({ ...spec, rules: [...spec.rules!, { path: '/instance/id', mode: 0o400 }] });
  stage.world.load({
    ...spec,
    rules: [...spec.rules!, { path: '/app/settings', acl: [] }, { path: '/secrets', mode: 0o755 }],
  });
  await until('all commits', () => following.changes.length >= 4);
  const put = following.changes.map((line) => line['put'] as Tree['nodes']);
  assert.deepEqual(names(put[0]!), ['id']);
  assert.deepEqual(names(put[1]!), []);
  assert.ok(
    put[2]!.some(({ name, bytes }) => name === 'id' && bytes === undefined),
    'what is public no more comes without bytes',
  );
  assert.ok(names(put[3]!).includes('id'), 'and with them when it is public again');
  const everything = JSON.stringify([tree, following.lines]);
  for (const secret of ['for app', 'for psql', 'one time', 'changed'])
    assert.ok(!everything.includes(base64(secret)), secret);
  following.request.destroy();
});

test('a stream goes on from a revision, and says when that is forgotten', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const edit = (text: string) =>
    stage.world.authority.edit([{ op: 'put', path: '/instance/id', bytes: Buffer.from(text) }]);
  const { revision } = (await stage.native('tree', undefined, token)).json as unknown as Tree;
  for (const text of ['a', 'b', 'c']) await edit(text);
  const following = new Following(stage, token, revision + 1);
  await until('what it missed', () => following.changes.length === 2);
  assert.deepEqual(
    following.changes.map((line) => line['revision']),
    [revision + 2, revision + 3],
  );
  following.request.destroy();
  for (const from of [0, revision + 1000])
    assert.equal((await stage.native(`watch?from=${from}`, undefined, token)).status, 410);
  for (const from of ['', '-1', 'x', '1e3'])
    assert.equal((await stage.native(`watch?from=${from}`, undefined, token)).status, 400, from);
  for (let i = 0; i < 1100; i++) await edit(String(i));
  const forgotten = await stage.native(`watch?from=${revision}`, undefined, token);
  assert.deepEqual([forgotten.status, forgotten.body], [410, '{"compacted":true}']);
});

test('who writes outside can wait for every stream, and a stream ends with the boot', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const { revision } = stage.world.authority.snapshot;
  const following = new Following(stage, token, revision);
  await following.started();
  const edited = await stage.world.authority.edit([{ op: 'put', path: '/instance/id', bytes: Buffer.from('x') }]);
  const applied = stage.server.applied(edited.revision, 60_000);
  await until('the commit', () => following.changes.length === 1);
  await stage.native('applied', { stream: following.id, revision: edited.revision }, token);
  assert.equal(await applied, true);
  assert.equal(await stage.server.applied(edited.revision + 1, 1), false, 'what is not applied in time');
  assert.equal((await stage.native('applied', { stream: 99, revision: 1 }, token)).status, 404);
  stage.server.endStreams();
  await until('it ends', () => following.hasEnded);
  assert.equal(await stage.server.applied(edited.revision + 1, 60_000), true, 'nobody is left to wait for');
});

test('a file without a name lives while an agent follows, until it says "forget"', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const following = new Following(stage, token, stage.world.authority.snapshot.revision);
  await following.started();
  const { json } = await stage.native('create', { caller: app, directory: '/guest', name: 'f', mode: 0o600 }, token);
  const ino = json['ino'] as number;
  await stage.native('delete', { caller: app, directory: '/guest', name: 'f' }, token);
  const write = { caller: app, node: ino, offset: 0, bytes: base64('x'), opened: true };
  assert.equal((await stage.native('write', write, token)).status, 200, 'somebody has it open');
  await stage.native('forget', { node: ino }, token);
  assert.equal((await stage.native('write', write, token)).json['errno'], 'ESTALE');
  const other = await stage.native('create', { caller: app, directory: '/guest', name: 'g', mode: 0o600 }, token);
  await stage.native('delete', { caller: app, directory: '/guest', name: 'g' }, token);
  assert.ok(stage.world.authority.snapshot.node(other.json['ino'] as number));
  stage.server.endStreams();
  assert.equal(stage.world.authority.snapshot.node(other.json['ino'] as number), undefined, 'or its boot is over');
  await until('the stream ends', () => following.hasEnded);
});

test('requests that make no sense get 400, with the place and never the value', async () => {
  await using stage = await Stage.start(spec);
  const token = await stage.token();
  const secret = 'hunter2';
  const bad: readonly (readonly [string, unknown])[] = [
    ['stat', { node: '/' }],
    ['stat', { caller: { ...app, uid: -1 }, node: '/' }],
    ['stat', { caller: { ...app, uid: 0xffff_ffff }, node: '/' }],
    ['stat', { caller: { ...app, uid: 1.5 }, node: '/' }],
    ['stat', { caller: { ...app, more: secret }, node: '/' }],
    ['stat', { caller: app, node: secret }],
    ['write', { caller: app, node: '/app/settings', offset: 0, bytes: `${secret}!` }],
    ['write', { caller: app, node: '/app/settings', offset: -1, bytes: '' }],
    ['setattr', { caller: app, node: '/', mode: 0o100644 }],
    ['stat', [secret]],
    ['stat', secret],
  ];
  for (const [operation, body] of bad) {
    const { status, body: words } = await stage.native(operation, body, token);
    assert.equal(status, 400, JSON.stringify(body));
    assert.ok(!words.includes(secret), words);
  }
  assert.deepEqual(stage.errors, []);
});

test('the OpenAPI document is valid, and has every request', async () => {
  await using stage = await Stage.start(spec);
  const { json } = await stage.native('openapi.json', undefined, undefined);
  assert.deepEqual(json, JSON.parse(JSON.stringify(openApiDocument())));
  const result = await new Validator().validate(structuredClone(json));
  assert.ok(result.valid, JSON.stringify(result));
  const paths = Object.keys(json['paths'] as object);
  for (const { operationId } of nativeRoutes) assert.ok(paths.includes(`/porthole/v1/${operationId}`), operationId);
});
