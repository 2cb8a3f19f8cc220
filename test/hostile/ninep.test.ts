/** Every malformed 9P2000.L frame to a session over a real tree: it is answered or the session ends, and nobody else notices. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ways } from '../../src/tree/index.ts';
import { assertHostAccepts } from '../fuzz/mutations.ts';
import { Client } from '../ninep/client.ts';
import { Symlink, World } from '../tree/world.ts';
import { allNinepCases, type Held, hold, type NinepCase, TAG } from './ninep-cases.ts';

const content = { instance: { id: 'i-1', link: new Symlink('id') }, guest: {} };

function check(world: World, bystander: Held, each: NinepCase): void {
  const fileSystem = world.fileSystem(ways.ninep);
  const said: string[] = [];
  const client = new Client(fileSystem, { log: (message) => said.push(message) });
  const held = each.beforeVersion === true ? { ...bystander, client } : hold(client);
  const bytes = each.frame(held);
  // The type stands in the frame; of an answer, the client asks no more than that it is one.
  let answers = 0;
  let errno: number | undefined;
  const reply = client.expect('Tversion', TAG);
  reply.answer = (type, body) => {
    answers++;
    errno = type === 7 ? new DataView(body.buffer, body.byteOffset).getUint32(0, true) : 0;
  };
  assert.equal(client.session.receive(bytes), bytes.length, 'the stream is taken');
  assert.equal(client.session.bugs, 0, said.join('\n'));
  assert.equal(client.closedBy !== undefined, each.expects === 'closed', client.closedBy ?? 'it was not closed');
  assert.equal(answers, each.expects === 'closed' || each.expects === 'waits' ? 0 : 1);
  if (each.expects === 'errno') assert.ok(errno! > 0 && errno! < 134, `it was answered with errno ${errno}`);
  if (each.expects === 'answered') assert.ok(errno! >= 0 && errno! < 134);
  if (each.expects === 'closed') {
    assert.equal(client.session.malformation, client.closedBy);
    assert.deepEqual(client.session.held, { fids: 0, requests: 0 });
    assert.equal(fileSystem.openHandles, 0);
  }
  client.session[Symbol.dispose]();
  assert.equal(fileSystem.openHandles, 0);
  bystander.client.ok('Tgetattr', { fid: bystander.file });
  bystander.client.ok('Tread', { fid: bystander.file, count: 10 });
  // And the hostile client itself can come again.
  const again = new Client(world.fileSystem(ways.ninep));
  again.version();
  again.open(again.attach(1000), 'instance/id');
}

test('NinepSession answers each frame or ends, when the frame is', async (t) => {
  for (const each of allNinepCases)
    await t.test(each.name, () => {
      const world = new World({ content });
      world.onMutation = assertHostAccepts;
      check(world, hold(new Client(world.fileSystem(ways.ninep))), each);
    });
  t.diagnostic(`${allNinepCases.length} malformed 9P frames`);
});
