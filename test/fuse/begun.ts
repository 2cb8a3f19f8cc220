/** A session over a tree, its client, and what it would have told the kernel. */
import assert from 'node:assert/strict';
import * as abi from '../../src/fuse/abi.ts';
import { FuseSession, type FuseSessionOptions } from '../../src/fuse/session.ts';
import { ways } from '../../src/tree/index.ts';
import { World, type WorldSpec } from '../tree/world.ts';
import { Client } from './client.ts';

export const spec = (id = 'i-0001'): WorldSpec => ({
  content: { instance: { id, hostname: 'web-1' }, secrets: { db: 'hunter2' }, guest: {} },
});

/** A session that has begun, over a tree. */
export function begin(kind: 'virtiofs' | 'dev-fuse' = 'virtiofs', options: Partial<FuseSessionOptions> = {}) {
  const world = new World(spec());
  const fileSystem = world.fileSystem(kind === 'virtiofs' ? ways.virtiofs : ways.mount);
  const notes: Uint8Array[] = [];
  const session = new FuseSession(fileSystem, {
    transport: kind,
    clock: world.clock,
    notifier: { notify: (message) => notes.push(message) },
    ...options,
  });
  const client = new Client(session);
  assert.equal(client.init().errno, 0);
  return { world, fileSystem, session, client, notes };
}

export const attrIn = (answer: ReturnType<Client['send']>, field: 'size' | 'ino' | 'nlink' | 'mode') =>
  answer.get(abi.Attr[field], abi.AttrOut.attr.offset);
