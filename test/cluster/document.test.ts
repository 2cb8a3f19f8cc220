import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Validator } from '@seriousme/openapi-schema-validator';
import { startApi } from './api.ts';

test('the OpenAPI document is valid 3.1 and says of every operation who may use it', async (t) => {
  const api = await startApi(t);
  const { json, status } = await api.ask({ path: '/openapi.json' });
  assert.equal(status, 200);
  assert.equal(json['openapi'], '3.1.0');
  const specification = structuredClone(json) as unknown as Record<string, object>;
  const result = await new Validator().validate(specification);
  assert.equal(JSON.stringify(result.errors ?? []).slice(0, 2_000), '[]');
  assert.equal(result.valid, true);
  const { operations } = api.contract;
  assert.ok(operations.length >= 40, `only ${operations.length} operations`);
  assert.equal(new Set(operations.map(({ id }) => id)).size, operations.length);
  for (const { id, access } of operations) assert.match(access, /^(admin|operator|viewer|none)$/, id);
});

test('the documentation page asks no other host and can run nothing', async (t) => {
  const api = await startApi(t);
  const page = await api.ask({ path: '/docs' });
  assert.equal(page.status, 200);
  assert.match(String(page.headers['content-security-policy']), /default-src 'none'/);
  assert.doesNotMatch(page.text, /<(script|img|link|iframe|object|embed)\b/i);
  assert.doesNotMatch(page.text, /(src|href)="(https?:)?\/\//i);
  for (const { id, path } of api.contract.operations) {
    assert.ok(page.text.includes(`id="${id}"`), id);
    assert.ok(page.text.includes(path), path);
  }
});
