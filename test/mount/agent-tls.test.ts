/** The agent and a server that it reaches by TLS: it believes the authority that it is given, and no other. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { Running } from './agent-process.ts';

const certificate = (directory: string, name: string): void => {
  const curve = [
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-subj',
    '/CN=metadata',
    '-days',
    '2',
  ];
  const files = ['-keyout', path.join(directory, `${name}.key`), '-out', path.join(directory, `${name}.pem`)];
  const address = ['-addext', 'subjectAltName=IP:127.0.0.1'];
  execFileSync('openssl', ['req', '-x509', ...curve, ...address, ...files], { stdio: 'ignore' });
};

test('an agent claims its token from a server that its authority vouches for, and tells no other anything', async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-tls-'));
  const running: Running[] = [];
  t.after(async () => {
    for (const one of running.toReversed()) await one.stop();
    rmSync(directory, { recursive: true });
  });
  const run = (...args: readonly string[]): Running => {
    const one = new Running(directory, args);
    running.push(one);
    return one;
  };
  for (const name of ['server', 'other']) certificate(directory, name);
  writeFileSync(path.join(directory, 'vm.yaml'), 'porthole: 1\nmetadata: { instance: { id: i-1 } }\n');
  mkdirSync(path.join(directory, 'mnt'));
  const keys = ['--http-cert', 'server.pem', '--http-key', 'server.key'];
  const server = run('serve', 'vm.yaml', '--http', '127.0.0.1:0', ...keys, '--state', 'state');
  const { address } = (await server.told('http')) as { readonly address?: string };
  const start = (authority: string): Running => run('agent', '--server', address!, '--ca', authority, '--mount', 'mnt');
  const doubting = start('other.pem');
  assert.match((await doubting.told('waiting')).why!, /self-signed certificate/);
  assert.equal(await doubting.stop(), 0);
  await start('server.pem').told('mounted');
  assert.equal(readFileSync(path.join(directory, 'mnt/instance/id'), 'utf8'), 'i-1');
  assert.deepEqual(
    server.events.filter(({ event }) => /refused|compromised/.test(event)),
    [],
  );
});
