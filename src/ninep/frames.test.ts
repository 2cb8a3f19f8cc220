import assert from 'node:assert/strict';
import { test } from 'node:test';
import { conversation } from '../../test/conversation.ts';
import { Symlink, World } from '../../test/tree/world.ts';
import { ways } from '../tree/index.ts';
import { operations } from './operations.ts';
import { NinepSession } from './session.ts';

test('a 9P session answers the golden conversation byte for byte', () => {
  const world = new World({ content: { instance: { id: 'i-1', link: new Symlink('id') }, guest: {} } });
  const sent: Buffer[] = [];
  const session = new NinepSession({
    fileSystem: world.fileSystem(ways.ninep),
    isUser: () => true,
    transport: {
      send: (frame, frameBytes) => sent.push(Buffer.from(frame.subarray(0, frameBytes))) > 0,
      resume: () => undefined,
      close: (reason) => assert.fail(reason),
    },
  });
  const said = conversation(new URL('../../test/ninep/conversation.hex', import.meta.url));
  for (const { name, request, reply } of said) {
    assert.equal(session.receive(request), request.length);
    assert.deepEqual(sent.splice(0), [Buffer.from(reply!)], name);
  }
  const missing = operations.filter((row) => !said.some(({ name }) => name === row.name));
  assert.deepEqual(
    missing.map(({ name }) => name),
    [],
    'every message has its golden frame',
  );
});
