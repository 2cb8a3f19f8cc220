/** What a guest looks up, opens and makes before it turns hostile; the same over any way to a session. */
import assert from 'node:assert/strict';
import { abi } from '../../src/fuse/index.ts';
import type { Client } from '../fuse/client.ts';
import type { Held } from './fuse-cases.ts';

/** Sends a frame and resolves with the reply, `fuse_out_header` first. */
type Send = (frame: Uint8Array) => Promise<DataView>;

export async function hold(client: Client, send: Send): Promise<Held> {
  const ask = async (frame: Uint8Array): Promise<DataView> => {
    const reply = await send(frame);
    assert.equal(abi.OutHeader.error.get(reply, 0), 0);
    return reply;
  };
  const lookup = async (nodeid: number, name: string): Promise<number> =>
    abi.EntryOut.nodeid.get(await ask(client.frame('LOOKUP', { nodeid, rest: [name] })), 16);
  await ask(client.frame('INIT', { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } }));
  const instance = await lookup(1, 'instance');
  const guest = await lookup(1, 'guest');
  const made = client.frame('CREATE', { nodeid: guest, in: { flags: 2, mode: 0o644 }, rest: ['own'] });
  return {
    client,
    file: await lookup(instance, 'id'),
    link: await lookup(instance, 'link'),
    guest,
    fh: abi.OpenOut.fh.get(await ask(made), 16 + abi.EntryOut.sizeBytes),
    directoryFh: abi.OpenOut.fh.get(await ask(client.frame('OPENDIR', { nodeid: guest })), 16),
  };
}
