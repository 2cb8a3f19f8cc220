/** Who follows a tree while the host daemon is stopped, upgraded or killed. No guest is needed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClientError, type StreamEvent } from '../../src/cluster/index.ts';
import { UpMachine } from './machine.ts';

test('who follows a tree is told all that changed over an orderly restart, and to read anew after a kill', async (t) => {
  const machine = new UpMachine(t);
  await machine.spawn();
  const { client } = machine;
  const params = { name: 'one' };
  await machine.done(await client.call('createVm', { body: { name: 'one', kind: 'attached' } }));
  const put = async (text: string): Promise<string> => {
    const edits = [{ op: 'put', path: '/a', text } as const];
    return (await client.call('editMetadata', { params, body: { edits } })).revision;
  };
  /** Revisions at which `/a` changed after `from`, up to `last`. */
  const followed = async (from: string, last: string): Promise<string[]> => {
    const found: string[] = [];
    const isLast = ({ id, event }: StreamEvent): boolean => event === 'commit' && id === last;
    for await (const { event, id } of client.events('watchMetadata', { params, query: { from, path: '/a' }, isLast }))
      if (event === 'commit') found.push(id!);
    return found;
  };
  const made = [await put('1'), await put('2'), await put('3')];
  await machine.kill('SIGTERM');
  await machine.spawn();
  made.push(await put('4'));
  assert.deepEqual(await followed(made[0]!, made[3]!), made.slice(1));

  await machine.kill('SIGKILL');
  await machine.spawn();
  await assert.rejects(followed(made[0]!, made[3]!), (error) => {
    assert.ok(error instanceof ClientError);
    assert.equal(error.code, 'COMPACTED');
    return true;
  });
  made.push(await put('5'), await put('6'));
  assert.deepEqual(await followed(made[4]!, made[5]!), made.slice(5));
});
