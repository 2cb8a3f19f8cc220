/** The Debian disk that `porthole image build debian` makes: built once, while its inputs are the same, and booted. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { until } from '../until.ts';
import { bootLimitMs, UpMachine } from '../up/machine.ts';

const recipe = path.join(import.meta.dirname, '../../images/debian/recipe.ts');
const cache = path.join(import.meta.dirname, '../../.cache/debian-disk');

/** What the recipe left, kept beside other builds: an operator's are always made anew. */
const built = (): string => {
  const hash = createHash('sha256');
  for (const file of [recipe, ...globSync(path.join(path.dirname(recipe), 'vm/*')).toSorted()])
    hash.update(readFileSync(file));
  const directory = path.join(cache, hash.digest('hex').slice(0, 16));
  if (!existsSync(directory)) {
    mkdirSync(cache, { recursive: true });
    const work = mkdtempSync(path.join(cache, 'build-'));
    const { status, stderr } = spawnSync(process.execPath, [recipe, work], { encoding: 'utf8' });
    if (status === 0) renameSync(work, directory);
    else rmSync(work, { recursive: true });
    assert.equal(status, 0, stderr);
  }
  return directory;
};

const spec = `porthole: 1
metadata: { instance: { hostname: web-1 } }
`;

test('the Debian disk boots by itself, takes its name from the metadata, and powers off when asked to', async (t) => {
  const directory = built();
  const image = JSON.parse(readFileSync(path.join(directory, 'image.json'), 'utf8')) as { disk: string };
  const machine = new UpMachine(t);
  await machine.start();
  const { client } = machine;
  const file = path.join(directory, image.disk);
  await machine.done(await client.call('addImage', { body: { name: 'debian', version: '12', file } }));
  const params = { name: 'one' };
  await machine.done(
    await client.call('createVm', { body: { ...params, type: 'small', image: { name: 'debian' }, spec } }),
  );
  await until('a login', async () => /^web-1 login: /m.test(await machine.console('one')), 3 * bootLimitMs);
  await machine.done(await client.call('stopVm', { params, body: { graceSeconds: 240 } }));
  const { status, reason } = await client.call('getVm', { params });
  assert.deepEqual([status, reason], ['stopped', 'the guest powered off when asked to']);
});
