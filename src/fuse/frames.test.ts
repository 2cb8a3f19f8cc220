import assert from 'node:assert/strict';
import { test } from 'node:test';
import { conversation } from '../../test/conversation.ts';
import { Client } from '../../test/fuse/client.ts';
import { World } from '../../test/tree/world.ts';
import { ways } from '../tree/index.ts';
import { operations } from './operations.ts';
import { FuseSession } from './session.ts';

test('a session answers the golden conversation byte for byte', () => {
  const world = new World({ content: { instance: { id: 'i-1' }, guest: {} } });
  const session = new FuseSession(world.fileSystem(ways.virtiofs), { transport: 'virtiofs', clock: world.clock });
  const client = new Client(session);
  const said = conversation(new URL('../../test/fuse/conversation.hex', import.meta.url));
  for (const { name, request, reply } of said) {
    const answer = client.raw(request);
    assert.equal(answer.silent, reply === undefined, name);
    if (reply !== undefined) assert.deepEqual(Buffer.from(answer.body.buffer), Buffer.from(reply), name);
  }
  const missing = operations.filter((row) => !said.some(({ name }) => name === row.name));
  assert.deepEqual(
    missing.map(({ name }) => name),
    [],
    'every operation has its golden frame',
  );
});
