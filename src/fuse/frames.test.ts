import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Client } from '../../test/fuse/client.ts';
import { World } from '../../test/tree/world.ts';
import { ways } from '../tree/index.ts';
import { operations } from './operations.ts';
import { FuseSession } from './session.ts';

interface Exchanged {
  readonly name: string;
  readonly request: Uint8Array;
  /** Undefined: there is no answer. */
  readonly reply: Uint8Array | undefined;
}

const bytesOf = (text: string): Uint8Array =>
  Uint8Array.from(
    text
      .split('\n')
      .flatMap((line) => line.replace(/#.*/, '').trim().split(/\s+/))
      .filter(Boolean),
    (hex) => Number.parseInt(hex, 16),
  );

/** `> NAME`, a request in hex, then `<` and its answer or `=`; `#` starts a comment. */
function conversation(file: URL): Exchanged[] {
  return readFileSync(file, 'utf8')
    .split(/^> /m)
    .slice(1)
    .map((part) => {
      const name = part.slice(0, part.indexOf('\n'));
      const [request, reply] = part.slice(part.indexOf('\n')).split(/^[<=]$/m);
      return {
        name,
        request: bytesOf(request!),
        reply: /^=$/m.test(part) ? undefined : bytesOf(reply!),
      };
    });
}

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
