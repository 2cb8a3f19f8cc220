import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../until.ts';
import { startApi } from './api.ts';
import { keysOf } from './host-on-authority.ts';

test('a VM goes through its life by the API', async (t) => {
  const api = await startApi(t, { manager: { uids: { first: 700_000, count: 10 } } });
  const image = await api.ask({ method: 'POST', path: '/v1/images', body: { name: 'tiny', recipe: 'tiny' } });
  assert.equal(image.status, 202, image.text);
  await until('the image', async () => (await api.ask({ path: '/v1/images/tiny/1' })).status === 200);
  const created = await api.ask({
    method: 'POST',
    path: '/v1/vms',
    body: {
      name: 'web-1',
      type: 'small',
      image: { name: 'tiny' },
      labels: { app: 'web' },
      spec: 'porthole: 1\nmetadata:\n  secrets: { db: hunter2 }\n',
    },
  });
  assert.equal(created.status, 202, created.text);
  const operation = `/v1/operations/${created.json['operation']!['id']}`;
  await until('the operation', async () => `${(await api.ask({ path: operation })).json['state']}` === 'succeeded');
  const shown = await api.ask({ path: '/v1/vms/web-1' });
  assert.deepEqual(
    [shown.json['status'], shown.json['memoryMiB'], shown.json['labels']],
    ['running', 1024, { app: 'web' }],
  );
  const secret = await api.ask({ path: '/v1/vms/web-1/metadata/secrets/db' });
  assert.deepEqual([secret.status, secret.text], [200, 'hunter2'], secret.text);
  const removal = await api.ask({ method: 'DELETE', path: '/v1/vms/web-1' });
  assert.equal(removal.status, 202, removal.text);
  await until('the end', async () => (await api.ask({ path: '/v1/vms/web-1' })).status === 404);
});
void keysOf;
