/** What the clouds' clients ask for, and that none of it is anything that is not for everybody. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type Answered, Stage } from '../../test/imds/stage.ts';
import type { Content } from '../../test/tree/world.ts';
import { type Node, type Policy, type Rule, type Snapshot, ways } from '../tree/index.ts';
import { S_IFDIR, S_IFMT } from '../wire/index.ts';
import { facadeRows } from './facade-paths.ts';

// --- nothing that is not for everybody ---

/** Paths that the façades look at, with names for their wildcards, and some that they must not. */
const sources = [
  ...new Set(
    Object.values(facadeRows)
      .flat()
      .flatMap(({ from, also = [] }) => [...from, ...also])
      .flatMap((source) =>
        source.includes('{') ? ['one', 'two'].map((name) => source.replace(/\{\w+\}/, name)) : source,
      ),
  ),
  '/cloud-init/meta-data',
  '/secrets/db-password',
  '/secrets/credentials/other',
  '/guest/.agent/status.json',
  '/app/settings',
  '/instance/nested/deep/value',
].filter((path) => path !== '/user/ssh-keys');

/** A value that says where it is from, in a form that every view of it leaves as it is. */
const markOf = (path: string): string => `mark<${path.replaceAll('/', '.')}>`;
const marksIn = (text: string): Set<string> => new Set(text.match(/mark<[^>]*>/g));

const contentOf = (paths: readonly string[]): Content => {
  const root: Record<string, unknown> = {};
  for (const path of paths) {
    const names = path.split('/').slice(1);
    let at = root;
    for (const name of names.slice(0, -1)) {
      const next = at[name];
      if (typeof next === 'string') break;
      at[name] = next ?? {};
      at = at[name] as Record<string, unknown>;
    }
    at[names.at(-1)!] ??= path.startsWith('/user/ssh-keys/') ? `ssh-ed25519 AAAA ${markOf(path)}` : markOf(path);
  }
  return root as Content;
};

const parentsOf = (path: string): string[] => {
  const names = path.split('/').slice(1, -1);
  return names.map((_, i) => `/${names.slice(0, i + 1).join('/')}`);
};

const NOW = Date.UTC(2026, 0, 1);
const modes = fc.constantFrom(0o444, 0o644, 0o440, 0o400, 0o004, 0o755, 0o711, 0o700, 0o750, 0o777, 0o000, 0o1777);
const rule = (paths: readonly string[]): fc.Arbitrary<Rule> =>
  fc
    .record(
      {
        path: fc.constantFrom(
          ...new Set([
            ...paths,
            ...paths.flatMap(parentsOf),
            '/**',
            '/instance/**',
            '/secrets/**',
            '/secrets/credentials/*/*',
            '/guest/**',
          ]),
        ),
        mode: modes,
        facade: fc.boolean(),
        hidden: fc.boolean(),
        once: fc.constant(true),
        root: fc.constant('deny' as const),
        decide: fc.constant('host' as const),
        program: fc.constant(['/usr/bin/psql']),
        unit: fc.constant(['app.service']),
        fromMs: fc.constantFrom(NOW - 1000, NOW + 1000),
        untilMs: fc.constantFrom(NOW - 1000, NOW + 1000),
        acl: fc.constant([{ tag: 'user' as const, id: 0xffff_fffe, permissions: 7 }]),
        owner: fc.constantFrom(0, 1000, 0xffff_fffe),
      },
      { requiredKeys: ['path'] },
    )
    // So many keys at once refuse everything; each alone says more.
    .chain((all) =>
      fc
        .subarray(
          Object.keys(all).filter((key) => key !== 'path'),
          { minLength: 0, maxLength: 2 },
        )
        .map(
          (keys) =>
            Object.fromEntries(
              Object.entries(all).filter(([key]) => key === 'path' || keys.includes(key)),
            ) as unknown as Rule,
        ),
    );

const rulesOf = (paths: readonly string[]): fc.Arbitrary<readonly Rule[]> => {
  const secret = paths.filter((path) => path.startsWith('/secrets/') || path.startsWith('/cloud-init/'));
  const opened =
    secret.length === 0
      ? fc.constant([])
      : fc.subarray(secret).map((all) => all.map((path) => ({ path, facade: true })));
  return fc.tuple(opened, fc.array(rule(paths), { maxLength: 8 })).map(([a, b]) => [...a, ...b]);
};

/** Whether everybody may read a file, from the rules alone and without a line of what is tested. */
const isForAll = (snapshot: Snapshot, policy: Policy, node: Node): boolean => {
  const chain: Node[] = [];
  for (let at = node; at.ino !== 1; at = snapshot.node(at.parentIno)!) chain.push(at);
  chain.push(snapshot.node(1)!);
  const facade = policy.effective(snapshot.path(node)).facade;
  return chain.every((at, depth) => {
    const { effective } = { effective: policy.effective(snapshot.path(at)) };
    const { program, unit, fromMs, untilMs, once, hidden } = effective;
    if (program !== undefined || unit !== undefined || NOW < fromMs || NOW >= untilMs) return false;
    if (depth === 0 && once) return false;
    // Of what guests made, the mode by a rule alone: none of them is public without one.
    const mode = at.madeBy === 'outside' ? at.mode : (effective.mode ?? 0);
    const wanted = depth === 0 ? 4 : hidden ? 5 : 1;
    return facade || effective.facade || (mode & wanted) === wanted;
  });
};

/** Everything that any façade shows, asked for in every way, from its lists and from its table. */
async function crawl(stage: Stage): Promise<{ readonly text: string; readonly requests: number }> {
  const { body: session } = await stage.ask('/latest/api/token', {
    method: 'PUT',
    headers: { 'x-aws-ec2-metadata-token-ttl-seconds': '600' },
  });
  const headers = { 'metadata-flavor': 'Google', 'x-aws-ec2-metadata-token': session };
  let text = '';
  let requests = 0;
  const ask = async (path: string): Promise<Answered> => {
    const answered = await stage.ask(encodeURI(path), { headers });
    text += `${JSON.stringify(answered.headers)}\n${answered.body}\n`;
    requests++;
    return answered;
  };
  const tables = {
    ec2: '/latest',
    gce: '/computeMetadata/v1',
    openstack: '/openstack/latest',
    nocloud: '/nocloud',
  } as const;
  for (const [name, base] of Object.entries(tables)) {
    const seen = new Set<string>();
    const queue = [
      `${base}/`,
      ...facadeRows[name as keyof typeof tables].flatMap(({ path }) =>
        path.includes('{')
          ? ['one', 'two', '0', '1'].map((wild) => `${base}/${path.replace(/\{\w+\}/, wild)}`)
          : `${base}/${path}`,
      ),
    ];
    for (let path = queue.pop(); path !== undefined; path = queue.pop()) {
      if (seen.has(path)) continue;
      seen.add(path);
      const { status, body } = await ask(path);
      if (status === 200 && path.endsWith('/') && body.length < 10_000)
        for (const entry of body.split('\n')) if (entry !== '') queue.push(`${path}${entry.replace(/=.*$/, '/')}`);
    }
  }
  for (const query of [
    '?recursive=true',
    '?recursive=true&alt=text',
    '?recursive=true&alt=json&wait_for_change=true&timeout_sec=0',
  ]) {
    const { status, headers, body } = await ask(`/computeMetadata/v1/${query}`);
    if (headers['content-type'] === 'application/json') JSON.parse(body);
    assert.equal(status, 200, query);
  }
  await ask('/computeMetadata/v1/instance/service-accounts/?recursive=true&alt=text');
  for (const path of [
    '/',
    '/openstack',
    '/openstack/',
    '/2009-04-04/meta-data/',
    '/secrets/db-password',
    '/porthole/v1/tree',
  ])
    await ask(path);
  return { text, requests };
}

test('façades show nothing that is neither for everybody nor opened by "facade: true", on any path of any of them', async (t) => {
  const total = { requests: 0, shown: 0, kept: 0, opened: 0 };
  const one = fc.constantFrom(...sources, '/user/ssh-keys/a', '/user/ssh-keys/b');
  await fc.assert(
    fc.asyncProperty(
      fc
        .uniqueArray(one, { minLength: 5, maxLength: 40, size: 'max' })
        .chain((paths) => fc.tuple(fc.constant(paths), rulesOf(paths))),
      fc.boolean(),
      async ([paths, rules], guestWrites) => {
        await using stage = await Stage.start({ content: { guest: {}, ...contentOf(paths) }, rules });
        const { world } = stage;
        if (guestWrites) {
          const caller = { uid: 1000, gid: 1000, pid: 1 };
          const guest = world.authority.snapshot.resolve('/guest')!.ino;
          let parentIno = guest;
          for (const name of ['attributes', 'space']) {
            const made = world.commit({ op: 'mkdir', caller, parentIno, name, mode: 0o777, umask: 0 }, ways.mount);
            parentIno = made.ino === 0 ? parentIno : made.ino;
          }
          const { ino, errno } = world.commit(
            { op: 'create', caller, parentIno, name: 'key', mode: 0o666, umask: 0 },
            ways.mount,
          );
          if (errno === 0) {
            const data = Buffer.from(markOf(world.authority.snapshot.path(world.authority.snapshot.node(ino)!)));
            world.commit(
              { op: 'write', caller, ino, offset: 0, data, append: false, truncate: false, grantedAtOpen: true },
              ways.mount,
            );
          }
        }
        const { snapshot, replica } = world.authority;
        const allowed = new Set<string>();
        let files = 0;
        for (const node of snapshot.nodes.values()) {
          if ((node.mode & S_IFMT) === S_IFDIR || node.name === '.changes') continue;
          files++;
          if (isForAll(snapshot, replica.policy, node)) allowed.add(markOf(snapshot.path(node)));
        }
        const { text, requests } = await crawl(stage);
        const shown = marksIn(text);
        for (const mark of shown) assert.ok(allowed.has(mark), `${mark} was shown`);
        assert.deepEqual(stage.errors, []);
        total.requests += requests;
        total.shown += shown.size;
        total.kept += files - allowed.size;
        for (const mark of shown) if (mark.includes('secrets')) total.opened++;
      },
    ),
    { numRuns: Number(process.env['PORTHOLE_FACADE_RUNS'] ?? 40) },
  );
  t.diagnostic(JSON.stringify(total));
  assert.ok(total.shown > 50 && total.kept > 50 && total.opened > 0, `it saw something: ${JSON.stringify(total)}`);
});
