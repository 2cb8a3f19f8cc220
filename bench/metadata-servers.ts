/**
 * `metadata-servers.ts DIRECTORY COUNT`, under a parent with IPC: so many VMs' metadata servers in one process, at
 * DIRECTORY/0.sock and so on, and the first at a port of the loopback, which it tells. "change" changes each tree.
 */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { MetadataServer, TokenDesk, tokenStoreInMemory } from '../src/imds/index.ts';
import { Authority, Replica } from '../src/tree/index.ts';
import { digest, specOf } from '../test/tree/world.ts';

const [directory = '', count = '1'] = process.argv.slice(2);
const unlimited = { burst: 1e9, perSecond: 1e9 };
const authorities: Authority[] = [];
let port = 0;

for (let i = 0; i < Number(count); i++) {
  const authority = new Authority({ vm: `vm-${i}`, wallMs: Date.now, digest, audit: () => true });
  authority.load(specOf({ content: { instance: { id: `i-${i}`, value: '0' }, secrets: { key: 'hunter2' } } }));
  const tokens = new TokenDesk({
    store: tokenStoreInMemory(),
    onEvent: () => true,
    randomBytes,
    monotonicMs: () => performance.now(),
    wallMs: Date.now,
  });
  await tokens.boot('boot');
  const replica = new Replica();
  authority.subscribe('metadata server', (delta) => replica.apply(delta));
  const server = new MetadataServer({
    vm: `vm-${i}`,
    replica,
    commit: (mutation, way, sequence, settle) => authority.commit(mutation, way, 'agent', sequence, settle),
    audit: () => true,
    clock: { wallMs: Date.now, monotonicMs: () => performance.now() },
    tokens,
    sessionSecret: () => randomBytes(32),
    limits: { facadeRate: unlimited, agentRate: unlimited, uidRate: unlimited },
    onError: (error) => console.error(error),
  });
  await server.listen({ unix: join(directory, `${i}.sock`), privileged: true });
  if (i === 0) port = await server.listen({ host: '127.0.0.1', port: 0 });
  authorities.push(authority);
}

let value = 0;
process.on('message', () => {
  value++;
  for (const authority of authorities)
    void authority.edit([{ op: 'put', path: '/instance/value', bytes: Buffer.from(`${value}`) }], []);
});
process.send?.({ port });
