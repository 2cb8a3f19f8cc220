import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseSpec } from './spec-file.ts';

/** What is in `/cloud-init` of a spec, files as text. */
const seedOf = (yaml: string): Record<string, string> => {
  const { spec } = parseSpec(`porthole: 1\n${yaml}`, 'web.yaml');
  assert.ok(spec);
  const files = spec.entries.filter(({ path }) => path.startsWith('/cloud-init/'));
  return Object.fromEntries(
    files.map((entry) => {
      assert.ok(entry.kind === 'file');
      return [entry.path.slice('/cloud-init/'.length), new TextDecoder().decode(entry.bytes)];
    }),
  );
};

const instance = 'instance: { id: i-1, hostname: web-1 }';
const key = 'ssh-ed25519 AAAA me@home';

test('seedEntries makes what cloud-init must find of the rest of the tree', () => {
  assert.deepEqual(seedOf(`metadata: { ${instance}, user: { ssh-keys: "${key}" }, cloud-init: {} }`), {
    'meta-data': `instance-id: "i-1"\nlocal-hostname: "web-1"\npublic-keys: ["${key}"]\n`,
    'user-data': '',
  });
});

test('seedEntries makes nothing of what is written', () => {
  const written = { 'meta-data': 'instance-id: i-7', 'user-data': '#cloud-config' };
  const yaml = (name: keyof typeof written): string =>
    `metadata: { ${instance}, cloud-init: { ${name}: "${written[name]}" } }`;
  assert.deepEqual(seedOf(yaml('meta-data')), { 'meta-data': written['meta-data'], 'user-data': '' });
  const { 'user-data': userData, 'meta-data': metaData } = seedOf(yaml('user-data'));
  assert.deepEqual([userData, metaData], [written['user-data'], 'instance-id: "i-1"\nlocal-hostname: "web-1"\n']);
});

test('seedEntries makes nothing where there is no directory for it, or no id', () => {
  assert.deepEqual(seedOf(`metadata: { ${instance} }`), {});
  assert.deepEqual(seedOf('metadata: { instance: { hostname: web-1 }, cloud-init: {} }'), {});
  assert.deepEqual(seedOf(`metadata: { ${instance}, cloud-init: x }`), {});
});

test('seedEntries shows nobody what a rule keeps from everybody', () => {
  const hidden = (path: string): string =>
    `metadata: { ${instance}, cloud-init: {} }\npolicy: [{ path: ${path}, mode: "0400" }]`;
  assert.equal(seedOf(hidden('/instance/hostname'))['meta-data'], 'instance-id: "i-1"\n');
  assert.deepEqual(seedOf(hidden('/instance/id')), {});
});
