import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { defaultQuota, type Rule, type SpecEntry } from '../tree/index.ts';
import { loadSpec, parsePolicy, parseSpec, topKeyNames } from './spec-file.ts';
import { specialKeys } from './spec-metadata.ts';
import { groupKeyNames, ninepKeyNames, quotaKeyNames, ruleKeyNames } from './spec-policy.ts';
import { formatProblems } from './spec-problem.ts';

const example = join(import.meta.dirname, '..', '..', 'examples', 'web.yaml');
const reference = join(import.meta.dirname, '..', '..', 'docs', 'spec-file.md');

const text = (entry: SpecEntry | undefined): string => {
  assert(entry?.kind === 'file', JSON.stringify(entry));
  return new TextDecoder().decode(entry.bytes);
};

/** Entries of a `metadata` section, by path; files as text. */
const read = (metadata: string): Record<string, unknown> => {
  const { spec, problems } = parseSpec(`porthole: 1\nmetadata:\n${metadata.replaceAll(/^/gm, '  ')}\n`, 'web.yaml');
  assert(spec, formatProblems(problems));
  return Object.fromEntries(
    spec.entries.map((entry) => [
      entry.path,
      entry.kind === 'file' ? text(entry) : entry.kind === 'symlink' ? { symlink: entry.target } : 'directory',
    ]),
  );
};

const rule = (yaml: string): Rule => {
  const { spec, problems } = parseSpec(
    `porthole: 1\nusers: { app: 1000 }\ngroups: { web: { gid: 33, members: [app, 7] } }\npolicy:\n  - ${yaml}\n`,
    'web.yaml',
  );
  assert(spec, formatProblems(problems));
  return spec.policy.rules[0]!;
};

/** All that is printed for a wrong spec. */
const complaint = (yaml: string): string => {
  const { spec, problems } = parseSpec(yaml, 'web.yaml');
  assert.equal(spec, undefined, 'nothing was wrong');
  return formatProblems(problems);
};

const of = (section: string): string => complaint(`porthole: 1\n${section}`);

test('parseSpec keeps plain scalars as they are written', () => {
  assert.deepEqual(
    read(
      `a: 1.10\nb: 0123\nc: true\nd: 2026-01-01\ne: 1e3\nf: 0x1F\ng: hello world\nh: no\n"i": .5\nnull: x\n1.0: y\n`,
    ),
    {
      '/a': '1.10',
      '/b': '0123',
      '/c': 'true',
      '/d': '2026-01-01',
      '/e': '1e3',
      '/f': '0x1F',
      '/g': 'hello world',
      '/h': 'no',
      '/i': '.5',
      '/null': 'x',
      '/1.0': 'y',
    },
  );
});

test('parseSpec gives quoted and block scalars their YAML value, and no value an empty file', () => {
  assert.deepEqual(
    read(`a: "x\\ny"\nb: 'it''s'\nc: |\n  one\n  two\nd: >-\n  one\n  two\ne:\nf: ~\ng: null\nh: ""\ni: "null"`),
    {
      '/a': 'x\ny',
      '/b': "it's",
      '/c': 'one\ntwo\n',
      '/d': 'one two',
      '/e': '',
      '/f': '',
      '/g': '',
      '/h': '',
      '/i': 'null',
    },
  );
});

test('parseSpec makes directories of mappings and lists, and follows the special keys', () => {
  assert.deepEqual(
    read(
      `m: { x: { y: 1 } }\nl: [a, { b: c }, []]\nln: { symlink: ../m }\nraw: { base64: "aGk =" }\nd: { directory: { file: z } }\ntwo: { file: a, base64: b }`,
    ),
    {
      '/m': 'directory',
      '/m/x': 'directory',
      '/m/x/y': '1',
      '/l': 'directory',
      '/l/0': 'a',
      '/l/1': 'directory',
      '/l/1/b': 'c',
      '/l/2': 'directory',
      '/ln': { symlink: '../m' },
      '/raw': 'hi',
      '/d': 'directory',
      '/d/file': 'z',
      '/two': 'directory',
      '/two/file': 'a',
      '/two/base64': 'b',
    },
  );
});

test('parseSpec follows aliases', () => {
  assert.deepEqual(read('a: &x { k: 1 }\nb: *x\nc: &x 2\nd: *x'), {
    '/a': 'directory',
    '/a/k': '1',
    '/b': 'directory',
    '/b/k': '1',
    '/c': '2',
    '/d': '2',
  });
});

test('parseSpec reads every key of a rule', () => {
  assert.deepEqual(
    rule(`{ path: /a/*/b?/**, owner: app, group: web, mode: "0640", acl: ["user:0:r-x", "group:web:w"], root: deny, decide: host,
      hidden: true, program: /bin/a, unit: [a.service, b@1.socket], once: false, writeOnce: true, from: 2026-01-01,
      until: "2026-12-31T18:00:00+01:00", maxStale: 1h30m, facade: true, durable: none, quota: { bytes: 64KiB, nodes: 5 } }`),
    {
      path: '/a/*/b?/**',
      owner: 1000,
      group: 33,
      mode: 0o640,
      acl: [
        { tag: 'user', id: 0, permissions: 5 },
        { tag: 'group', id: 33, permissions: 2 },
      ],
      root: 'deny',
      decide: 'host',
      hidden: true,
      program: ['/bin/a'],
      unit: ['a.service', 'b@1.socket'],
      once: false,
      writeOnce: true,
      fromMs: Date.UTC(2026, 0, 1),
      untilMs: Date.UTC(2026, 11, 31, 17),
      maxStaleMs: 5_400_000,
      facade: true,
      durable: 'none',
      quota: { bytes: 65_536, nodes: 5 },
      source: 'web.yaml:5',
    },
  );
});

test('parseSpec takes users, groups, the quota and what is of 9P, with defaults', () => {
  const { spec } = parseSpec(
    'porthole: 1\nusers: { app: 1000 }\ngroups: { www: 33, web: { gid: 34, members: [app, 7, app] } }\nquota: { nodes: 5 }\nninep: { mountUser: app }\n',
    'w',
  );
  assert.deepEqual(spec, {
    entries: [],
    policy: {
      rules: [],
      users: { root: 0, app: 1000 },
      groups: { root: { gid: 0 }, www: { gid: 33 }, web: { gid: 34, members: [1000, 7] } },
      quota: { ...defaultQuota, nodes: 5 },
      ninepMountUid: 1000,
    },
  });
});

test('parseSpec says where, what is wrong and what would be right, all at once', () => {
  const yaml = `porthole: 1
metadata:
  secrets: { db: hunter2, "a/b": hunter2 }
users: { app: -1 }
polcy: []
policy:
  - { path: secrets, mode: 0400 }
  - { path: /a, ownr: app, root: deni, acl: ["user:ap:r"] }
`;
  assert.equal(
    complaint(yaml),
    `web.yaml:3:27: error: metadata.secrets["a/b"]: a name cannot hold "/": "a/b"
  3 |   secrets: …
    |            ^
    = nest mappings instead
web.yaml:4:15: error: users.app: "-1" is no uid
  4 | users: { app: -1 }
    |               ^
    = write a uid, a whole number from 0 to 4294967294
web.yaml:5:1: error: polcy: unknown key "polcy"
  5 | polcy: …
    | ^
    = did you mean "policy"?
web.yaml:7:13: error: policy[0].path: path "secrets" must be absolute
  7 |   - { path: secrets, mode: 0400 }
    |             ^
    = did you mean "/secrets"?
web.yaml:7:28: error: policy[0].mode: 0400 without quotes is a decimal number in YAML
  7 |   - { path: secrets, mode: 0400 }
    |                            ^
    = write it quoted: "0400"
web.yaml:8:17: error: policy[1].ownr: unknown key "ownr"
  8 |   - { path: /a, ownr: app, root: deni, acl: ["user:ap:r"] }
    |                 ^
    = did you mean "owner"?
web.yaml:8:34: error: policy[1].root: "deni" is not one of its values
  8 |   - { path: /a, ownr: app, root: deni, acl: ["user:ap:r"] }
    |                                  ^
    = did you mean deny? write allow or deny
web.yaml:8:46: error: policy[1].acl[0]: no user "ap"
  8 |   - { path: /a, ownr: app, root: deni, acl: ["user:ap:r"] }
    |                                              ^
    = give its number here, or name it under "users": { ap: 1000 }
8 errors`,
  );
});

const wrong: readonly (readonly [section: string, message: RegExp])[] = [
  ['metadata: [', /wrongly indented, or a bracket is not closed/],
  ['metadata: { a: "b }', /a closing quote, bracket or separator is missing/],
  ['metadata: hello', /metadata: text where the root directory must stand/],
  ['metadata: { file: x }', /metadata: the root must be a directory\n[^]*write \{ directory: \{ file: … \} \}/],
  ['metadata: { "": x }', /a name cannot be empty/],
  ['metadata: { ..: x }', /"\.\." cannot be the name of a file/],
  ['metadata: { "a\\0": x }', /a name cannot hold a NUL/],
  ['metadata: { "a\\uD800": x }', /a name must be valid Unicode/],
  [`metadata: { ${'ä'.repeat(128)}: x }`, /the name has 256 bytes; 255 are allowed/],
  ['metadata: { guest: x }', /metadata\.guest: "guest" is a directory that every tree has\n[^]*write guest: \{\}/],
  ['metadata: { guest: { .agent: { symlink: x } } }', /".agent" is a directory that every tree has/],
  ['metadata: { .changes: x }', /"\.changes" is the stream of changes/],
  ['metadata: { a: 1, a: 2 }', /metadata\.a: "a" was given before, in line 2/],
  ['metadata:\n  a: &x {b: 1}\n  c:\n    <<: *x', /merge keys are not part of YAML 1\.2/],
  ['metadata: { a: *b }', /this alias names no anchor/],
  ['metadata: { a: &x [*x] }', /deeper than 64 directories/],
  ['metadata: { a: !!binary aGk= }', /the tag tag:yaml\.org,2002:binary means nothing here\n[^]*base64/],
  ['metadata: { a: { base64: "a$b" } }', /metadata\.a\.base64: this is not base64/],
  ['metadata: { a: { file: } }', /metadata\.a\.file: nothing where text must stand/],
  ['metadata: { a: { file: [x] } }', /a list where text must stand\n[^]*write \{ directory: \{ file: … \} \}/],
  ['metadata: { a: { file: /dev/null } }', /reading "\/dev\/null" failed: it is not a regular file/],
  ['metadata: { a: { file: /no/such } }', /reading "\/no\/such" failed: there is no such file/],
  ['metadata: { a: { file: /etc } }', /it is not a regular file/],
  ['metadata: { a: { symlink: "" } }', /a symlink must lead somewhere/],
  [`metadata: { a: { symlink: ${'x'.repeat(4096)} } }`, /the target has 4096 bytes; 4095 are allowed/],
  ['metadata: { a: { directory: x } }', /text where a mapping or a list must stand/],
  [`metadata: { a: ${'x'.repeat(1024 * 1024 + 1)} }`, /the value has 1048577 bytes; 1048576 \(1 MiB\) are allowed/],
  ['metadata: { ? [a] : b }', /a key must be text/],
  ['users: { "a b": 1 }', /"a b" is no name of a user or group/],
  ['users: [app]', /users: a list where a mapping must stand/],
  ['users: { a: 4294967295 }', /"4294967295" is no uid/],
  ['groups: { a: { members: [] } }', /groups\.a: a group needs its gid/],
  ['groups: { a: { gid: 1, members: [b] } }', /groups\.a\.members\[0\]: no user "b"/],
  ['groups: { a: { gid: 1, member: [] } }', /did you mean "members"\?/],
  ['quota: { bytes: 16MB }', /quota\.bytes: "16MB" cannot be read/],
  ['quota: { nodes: 1.5 }', /quota\.nodes: "1\.5" cannot be read/],
  ['ninep: root', /ninep: text where a mapping must stand/],
  ['ninep: { mountUser: postgres }', /ninep\.mountUser: no user "postgres"/],
  ['ninep: { mountUid: 0 }', /unknown key "mountUid"/],
  ['policy: { path: / }', /policy: a mapping where a list of rules must stand/],
  ['policy: [{ mode: "0400" }]', /policy\[0\]: a rule needs a path/],
  ['policy: [{ path: /a/, hidden: true }]', /ends with "\/"\n[^]*write "\/a", or "\/a\/\*\*"/],
  ['policy: [{ path: /a//b, hidden: true }]', /has an empty name/],
  ['policy: [{ path: /a/../b, hidden: true }]', /has "\." or "\.\."/],
  ['policy: [{ path: /a**, hidden: true }]', /has "\*\*" beside other characters/],
  ['policy: [{ path: /a, mode: "rw" }]', /"rw" is no mode/],
  ['policy: [{ path: /a, mode: "0888" }]', /"0888" is no mode/],
  ['policy: [{ path: /a, acl: "user:0:r" }]', /text where a list must stand/],
  ['policy: [{ path: /a, acl: ["user:0"] }]', /"user:0" is no ACL entry/],
  ['policy: [{ path: /a, acl: ["user:0:"] }]', /"user:0:" is no ACL entry/],
  ['policy: [{ path: /a, acl: ["user:0:r", "user:root:w"] }]', /a second entry for user 0/],
  ['policy: [{ path: /a, hidden: yes }]', /"yes" is neither true nor false/],
  ['policy: [{ path: /a, hidden: }]', /nothing where a value must stand/],
  ['policy: [{ path: /a, program: psql }]', /write the absolute path of an executable/],
  ['policy: [{ path: /a, unit: postgresql }]', /write the full name of a systemd unit/],
  ['policy: [{ path: /a, unit: [] }]', /the list is empty/],
  ['policy: [{ path: /a, from: 2026-02-30 }]', /"2026-02-30" cannot be read/],
  ['policy: [{ path: /a, from: 2026-02-03T10:00 }]', /write "2026-12-31" \(midnight UTC\)/],
  ['policy: [{ path: /a, from: 2026-02-03, until: 2026-02-03 }]', /the window ends before it begins/],
  ['policy: [{ path: /a, maxStale: 60 }]', /write a number and a unit/],
  [
    'policy: [{ path: /a, hidden: true }, { path: /a, hidden: false }]',
    /"hidden" of \/a is set already by policy\[0\], line 2/,
  ],
  ['---\nporthole: 1', /several YAML documents/],
];

for (const [section, message] of wrong) {
  test(`parseSpec refuses a spec when it has ${section.replaceAll('\n', ' ').slice(0, 60)}`, () =>
    assert.match(of(section), message));
}

test('parseSpec refuses a spec when its version is missing or unknown', () => {
  assert.match(complaint('metadata: {}\n'), /porthole: the version of the format is missing\n[^]*write "porthole: 1"/);
  assert.match(complaint('porthole: 2\n'), /this version of the format is not known here/);
  assert.match(complaint(''), /nothing where the spec must stand/);
  assert.match(complaint('hello'), /text where the spec must stand/);
});

test('parseSpec refuses aliases of aliases when they stand for too much', () => {
  const levels = Array.from(
    { length: 9 },
    (_, i) => `  l${i + 1}: &l${i + 1} [${Array.from({ length: 9 }, () => `*l${i}`).join(', ')}]`,
  );
  const before = process.cpuUsage();
  assert.match(of(`metadata:\n  l0: &l0 lol\n${levels.join('\n')}\n`), /more than 200000 values, aliases written out/);
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < 5_000_000, `${user + system} µs`);
});

test('parseSpec refuses a spec when it is nested too deeply', () => {
  assert.match(of(`metadata: { a: ${'['.repeat(65)}${']'.repeat(65)} }`), /deeper than 64 directories/);
  assert.match(of(`metadata: ${'['.repeat(200_000)}`), /nested too deeply|missing/);
});

test('parseSpec never says a value of metadata when something is wrong', () => {
  const secret = fc.constantFrom(
    'hunter2secret',
    '"hunter2secret',
    "'hunter2secret",
    '*hunter2secret',
    '!hunter2secret',
    '{hunter2secret',
    '[hunter2secret',
    '|\n   hunter2secret',
    '@hunter2secret',
    '%hunter2secret',
    '"\\hunter2secret"',
    '{ base64: "$hunter2secret" }',
    'a: b: hunter2secret',
    '- hunter2secret',
    '\thunter2secret',
    '&a &b hunter2secret',
    '"a" hunter2secret',
  );
  const shape = fc.constantFrom(
    (value: string) => `porthole: 1\nmetadata:\n  secrets:\n    db: ${value}\n`,
    (value: string) => `porthole: 1\nmetadata: { secrets: { db: ${value} } }\n`,
    (value: string) => `porthole: 1\nmetadata:\n  db: ${value}\n  x/y: ${value}\nbad: ${value}\npolicy: []\n`,
    (value: string) => `metadata:\n- ${value}\n  db: ${value}\npolicy: [{}]\n`,
    (value: string) => `porthole: 1\n"metadata": {db: ${value}\n,a/b: ${value}\n`,
  );
  let refused = 0;
  fc.assert(
    fc.property(shape, secret, (shape, value) => {
      const { problems } = parseSpec(shape(value), 'web.yaml');
      if (problems.length > 0) refused++;
      assert.doesNotMatch(formatProblems(problems), /hunter2/);
    }),
    { numRuns: 400 },
  );
  assert.ok(refused > 100, `only ${refused} were refused`);
});

test('parseSpec throws nothing when the text is anything', () => {
  const piece = fc.constantFrom(
    'porthole: 1\n',
    'metadata:\n',
    'policy:\n',
    '  - ',
    '  ',
    'a: ',
    '{',
    '}',
    '[',
    ']',
    '"',
    '&a ',
    '*a',
    '|\n',
    ': ',
    '\n',
    '? ',
    '!t ',
    'path: /a',
    ', ',
    '0400',
    '\t',
    '#',
    '---\n',
    '\0',
  );
  fc.assert(
    fc.property(fc.array(fc.oneof(piece, fc.string({ maxLength: 5 })), { maxLength: 30 }), (pieces) => {
      const { spec, problems } = parseSpec(pieces.join(''), 'web.yaml');
      assert.equal(
        spec === undefined,
        problems.some(({ severity }) => severity === 'error'),
      );
    }),
    { numRuns: 1000 },
  );
});

const temporary = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-spec-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
};

test('loadSpec reads file: values relative to the spec file and names them to be watched', (t) => {
  const directory = temporary(t);
  mkdirSync(join(directory, 'keys'));
  const key = Uint8Array.of(0, 255, 10);
  writeFileSync(join(directory, 'keys', 'tls'), key);
  writeFileSync(join(directory, 'big'), new Uint8Array(1024 * 1024 + 1));
  const file = join(directory, 'web.yaml');
  writeFileSync(file, 'porthole: 1\nmetadata: { key: { file: keys/tls } }\n');
  const { spec, references } = loadSpec(file);
  assert.deepEqual(spec?.entries, [{ path: '/key', kind: 'file', bytes: key }]);
  assert.deepEqual(references, [join(directory, 'keys', 'tls')]);
  writeFileSync(file, 'porthole: 1\nmetadata: { key: { file: gone }, big: { file: big } }\n');
  const failed = loadSpec(file);
  assert.deepEqual(failed.references, [join(directory, 'gone'), join(directory, 'big')]);
  assert.match(
    formatProblems(failed.problems),
    /there is no such file[^]*it has 1048577 bytes; 1048576 \(1 MiB\) are allowed/,
  );
});

test('parseSpec opens no file of this machine where file: values are refused', (t) => {
  const directory = temporary(t);
  writeFileSync(join(directory, 'secret'), 'x');
  const yaml = 'porthole: 1\nmetadata: { a: { file: secret }, b: { file: gone }, c: fine }\n';
  const { spec, problems, references } = parseSpec(yaml, join(directory, 'web.yaml'), 'refused');
  assert.equal(spec, undefined);
  assert.deepEqual(references, []);
  assert.deepEqual(
    problems.map(({ path, what }) => `${path}: ${what}`),
    ['metadata.a.file', 'metadata.b.file'].map((path) => `${path}: a value cannot come from a file of the host here`),
  );
});

test('parsePolicy takes the sections of a policy alone, and says what else is wrong with it', () => {
  const { policy } = parsePolicy('users: { app: 7 }\npolicy: [{ path: /x, owner: app }]\n', 'policy');
  assert.equal(policy?.rules[0]?.owner, 7);
  const wrong = parsePolicy('metadata: {}\npolicy: [{ path: /x, mode: "0400", mod: 1 }]\n', 'policy');
  assert.equal(wrong.policy, undefined);
  assert.deepEqual(
    wrong.problems.map(({ line, path }) => [line, path]),
    [
      [1, 'metadata'],
      [2, 'policy[0].mod'],
    ],
  );
  assert.equal(parsePolicy('- 1', 'policy').problems.length, 1);
});

test('loadSpec says what is wrong when the file itself is', (t) => {
  const directory = temporary(t);
  const file = join(directory, 'web.yaml');
  const said = (): string => formatProblems(loadSpec(file).problems).replace(directory, 'DIR');
  assert.equal(said(), 'DIR/web.yaml: error: there is no such file');
  writeFileSync(file, Uint8Array.of(0x70, 0xff, 0xfe));
  assert.equal(said(), 'DIR/web.yaml: error: the file is not UTF-8 text');
  assert.equal(
    formatProblems(loadSpec(directory).problems).replace(directory, 'DIR'),
    'DIR: error: this is a directory; give the spec file in it',
  );
});

test('loadSpec finds nothing wrong in the example', () => {
  const { spec, problems } = loadSpec(example);
  assert.deepEqual(problems, []);
  const version = spec?.entries.find((entry) => entry.path === '/instance/version');
  assert.equal(text(version), '1.10');
});

test('docs/spec-file.md describes every key that the parser knows', () => {
  const documented = new Set(
    [...readFileSync(reference, 'utf8').matchAll(/^\| `([A-Za-z0-9]+)` \|/gm)].map(([, key]) => key),
  );
  const known = new Set([
    ...topKeyNames,
    ...specialKeys,
    ...groupKeyNames,
    ...ruleKeyNames,
    ...quotaKeyNames,
    ...ninepKeyNames,
  ]);
  assert.deepEqual([...documented].toSorted(), [...known].toSorted());
});
