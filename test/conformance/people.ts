/** Who acts in the cases, and small words that the cases share. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import type { PolicySpec } from '../../src/tree/index.ts';
import { O_CREAT, O_EXCL, O_RDONLY, O_WRONLY } from '../../src/wire/index.ts';
import type { WorldSpec } from '../tree/world.ts';
import type { Actor, Errno, Fd, Identity, PathName, Stat } from './driver.ts';

export const root: Identity = { uid: 0, gid: 0, groups: [] };
export const postgres: Identity = { uid: 114, gid: 114, groups: [] };
export const app: Identity = { uid: 1000, gid: 1000, groups: [] };
export const stranger: Identity = { uid: 2000, gid: 2000, groups: [] };
export const visitor: Identity = { uid: 2001, gid: 2001, groups: [] };

/** The spec lists its members: app. */
export const sslCert = 115;
/** The spec lists no members of it. */
export const staff = 50;
export const appInSslCert: Identity = { ...app, groups: [sslCert] };
export const strangerInSslCert: Identity = { ...stranger, groups: [sslCert] };
export const visitorInStaff: Identity = { ...visitor, groups: [staff] };

export const policy: Partial<PolicySpec> = {
  users: { postgres: 114, app: 1000 },
  groups: { 'ssl-cert': { gid: sslCert, members: [app.uid] }, staff: { gid: staff } },
};

/** One of everything that the defaults speak of, and no rule. */
export const plain: WorldSpec = {
  content: {
    instance: { id: 'i-0001', hostname: 'web-1' },
    network: { mac: '52:54:00:00:00:01' },
    'cloud-init': { 'user-data': '#cloud-config\n', 'vendor-data': '', 'meta-data': '{}' },
    secrets: { 'db-password': 'hunter2' },
    other: { thing: 'x' },
  },
  policy,
};

/** open(2): a descriptor of a name, with nothing opened (asm-generic/fcntl.h). */
export const O_PATH = 0o10000000;

export const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** The value of a call that must not fail. */
export function ok<T>(answer: T): Exclude<T, `E${string}`> {
  assert.ok(!(typeof answer === 'string' && /^E[A-Z]/.test(answer)), `answered ${String(answer)}`);
  return answer as Exclude<T, `E${string}`>;
}

/** What an open of the file shows now; attributes by name alone may lag by a second. */
export async function openStat(actor: Actor, path: PathName): Promise<Stat> {
  const fd = ok(await actor.open(path, O_RDONLY));
  const stat = ok(await actor.fstat(fd));
  await actor.close(fd);
  return stat;
}

/** Makes an empty file. */
export async function touch(actor: Actor, path: PathName, mode = 0o644): Promise<void> {
  const fd = ok(await actor.open(path, O_WRONLY | O_CREAT | O_EXCL, mode));
  assert.equal(await actor.close(fd), 'OK');
}

/** A directory that anybody may write, without the sticky bit of `/guest`, by which kernels forbid some of what follows. */
export async function workshop(actor: Actor, path = '/guest/w', mode = 0o777): Promise<string> {
  assert.equal(await actor.umask(0), 'OK');
  assert.equal(await actor.mkdir(path, mode), 'OK');
  assert.equal(await actor.umask(0o022), 'OK');
  return path;
}

/** Bytes as text, errnos as they are. */
export const textIn = (answer: Uint8Array | Errno): string =>
  typeof answer === 'string' ? answer : new TextDecoder().decode(answer);

export async function textOf(actor: Actor, fd: Fd, offset = 0): Promise<string> {
  return textIn(await actor.pread(fd, 65_536, offset));
}

/** Polls until `check` passes; throws what it threw last when `withinMs` have gone. */
export async function eventually(check: () => Promise<void>, withinMs = 60_000): Promise<void> {
  const end = performance.now() + withinMs;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (performance.now() > end) throw error;
    }
    await delay(20);
  }
}
