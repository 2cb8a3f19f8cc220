import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { defaultQuota, type PolicySpec, type Rule, type SpecEntry } from '../tree/index.ts';
import { exportPolicyYaml, exportYaml } from './export-yaml.ts';
import { parsePolicy, parseSpec } from './spec-file.ts';
import { formatProblems } from './spec-problem.ts';

const awkward = fc.constantFrom(
  'file',
  'base64',
  'symlink',
  'directory',
  '<<',
  'null',
  '~',
  'true',
  '1.10',
  '0123',
  '- a',
  '# x',
  '*a',
  '&a',
  '!t',
  '%',
  '@',
  '`',
  'a: b',
  'a #b',
  ' a',
  'a ',
  '"',
  "'",
  '{',
  '[a]',
  '|',
  '>',
  '\n',
  '\r\n',
  'a\n',
  'a\n\n',
  '\na',
  ' a\n',
  'a\n b\n',
  'a \n',
  '\t',
  '\u0085',
  '\u2028',
  '\ufeff',
  '\u0001',
  '---',
  '...',
  '?',
  '-',
);
const words = fc.oneof(fc.string({ unit: 'binary', maxLength: 12 }), fc.string({ maxLength: 12 }), awkward);
const encoder = new TextEncoder();
const bytes = fc.oneof(
  words.map((text) => encoder.encode(text)),
  fc.array(words, { maxLength: 4 }).map((lines) => encoder.encode(lines.join('\n'))),
  fc.uint8Array({ maxLength: 30 }),
);
const name = words.filter(
  (text) => text !== '' && text !== '.' && text !== '..' && !/[/\0]/.test(text) && text !== '.changes',
);

type Tree = { readonly [name: string]: Tree | Uint8Array | string };
const tree = fc.letrec<{ tree: Tree }>((tie) => ({
  tree: fc.dictionary(
    name,
    fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      bytes,
      words.filter((text) => text !== '' && !text.includes('\0')),
      tie('tree'),
    ),
    { maxKeys: 4 },
  ),
})).tree;

const entriesOf = (tree: Tree, at: string): SpecEntry[] =>
  Object.entries(tree).flatMap(([name, value]): SpecEntry[] => {
    const path = `${at}/${name}`;
    if (value instanceof Uint8Array) return [{ path, kind: 'file', bytes: value }];
    if (typeof value === 'string') return [{ path, kind: 'symlink', target: value }];
    return [{ path, kind: 'directory' }, ...entriesOf(value, path)];
  });

const reread = (yaml: string): { readonly entries: readonly SpecEntry[]; readonly policy: PolicySpec } => {
  const { spec, problems } = parseSpec(yaml, 'export.yaml');
  assert(spec, `${formatProblems(problems)}\n${yaml}`);
  return spec;
};

test('exportYaml writes what parseSpec reads back when names and values are awkward', () => {
  fc.assert(
    fc.property(tree, (tree) => {
      const entries = entriesOf(tree, '');
      const yaml = exportYaml({ entries });
      assert.deepEqual(reread(yaml).entries, entries, yaml);
    }),
    { numRuns: 400 },
  );
});

const id = fc.integer({ min: 0, max: 0xffff_fffe });
const rule: fc.Arbitrary<Rule> = fc.record(
  {
    path: fc
      .stringMatching(/^\/[a-z*?]{1,5}(\/[a-z]{1,5}){0,2}(\/\*\*)?$/)
      .filter((path) => !/[^/]\*\*|\*\*[^/]/.test(path)),
    owner: id,
    group: id,
    mode: fc.integer({ min: 0, max: 0o7777 }),
    acl: fc.uniqueArray(
      fc.record({ tag: fc.constantFrom('user', 'group'), id, permissions: fc.integer({ min: 0, max: 7 }) }),
      {
        maxLength: 3,
        selector: (entry) => `${entry.tag} ${entry.id}`,
      },
    ),
    root: fc.constantFrom('allow', 'deny'),
    decide: fc.constantFrom('kernel', 'host'),
    hidden: fc.boolean(),
    program: fc.constant(['/usr/bin/psql', '/bin/x y']),
    unit: fc.constant(['postgresql@14-main.service']),
    once: fc.boolean(),
    writeOnce: fc.boolean(),
    fromMs: fc.integer({ min: 0, max: 1e12 }),
    untilMs: fc.integer({ min: 1e12 + 1, max: 4e12 }),
    maxStaleMs: fc.integer({ min: 0, max: 1e9 }),
    facade: fc.boolean(),
    durable: fc.constantFrom('cluster', 'host', 'none'),
    quota: fc.record({ bytes: fc.nat(), nodes: fc.nat() }, { requiredKeys: [] }),
  },
  { requiredKeys: ['path', 'hidden'], noNullPrototype: true },
);
const policyKeys = {
  rules: fc.uniqueArray(rule, { maxLength: 4, selector: (rule) => rule.path }),
  users: fc
    .dictionary(fc.stringMatching(/^[a-z]{1,6}$/), id, { noNullPrototype: true })
    .map((users) => ({ root: 0, ...users })),
  groups: fc
    .dictionary(
      fc.stringMatching(/^[a-z]{1,6}$/),
      fc.oneof(
        id.map((gid) => ({ gid })),
        fc.record({ gid: id, members: fc.uniqueArray(id, { maxLength: 3 }) }),
      ),
      {
        noNullPrototype: true,
      },
    )
    .map((groups) => ({ root: { gid: 0 }, ...groups })),
  quota: fc.oneof(fc.constant(defaultQuota), fc.record({ bytes: fc.nat(), nodes: fc.nat() })),
  ninepMountUid: id,
};
const policy: fc.Arbitrary<PolicySpec> = fc.record(policyKeys, {
  requiredKeys: ['rules', 'users', 'groups', 'quota'],
  noNullPrototype: true,
});

test('exportYaml writes a policy that parseSpec reads back', () => {
  fc.assert(
    fc.property(policy, (policy) => {
      const yaml = exportYaml({ entries: [], policy });
      const read = reread(yaml).policy;
      const rules = read.rules.map(({ source, ...rule }) => {
        assert.match(source!, /^export\.yaml:\d+$/);
        return rule;
      });
      assert.deepEqual({ ...read, rules }, structuredClone(policy), yaml);
    }),
  );
});

test('exportPolicyYaml writes what parsePolicy reads back', () => {
  fc.assert(
    fc.property(policy, (policy) => {
      const { policy: read, problems } = parsePolicy(exportPolicyYaml(policy), 'policy');
      assert(read, formatProblems(problems));
      const rules = read.rules.map(({ source: _source, ...rule }) => rule);
      assert.deepEqual({ ...read, rules }, structuredClone(policy));
    }),
  );
});

test('exportYaml writes notes as comments and text as people write it', () => {
  const yaml = exportYaml({
    entries: [
      { path: '/instance', kind: 'directory' },
      { path: '/instance/hostname', kind: 'file', bytes: encoder.encode('web-1') },
      { path: '/instance/version', kind: 'file', bytes: encoder.encode('1.10') },
      { path: '/instance/key', kind: 'file', bytes: encoder.encode('-----BEGIN KEY-----\nabc\n') },
      { path: '/instance/raw', kind: 'file', bytes: Uint8Array.of(255, 0) },
      { path: '/instance/latest', kind: 'symlink', target: 'version' },
      { path: '/guest', kind: 'directory' },
      {
        path: '/guest/note',
        kind: 'file',
        bytes: encoder.encode('hi\n'),
        note: 'made in the guest by 1000:1000, mode 0644',
      },
    ],
  });
  assert.equal(
    yaml,
    `porthole: 1
metadata:
  instance:
    hostname: web-1
    version: "1.10"
    key: |
      -----BEGIN KEY-----
      abc
    raw: { base64: /wA= }
    latest: { symlink: version }
  guest:
    # made in the guest by 1000:1000, mode 0644
    note: |
      hi
`,
  );
});
