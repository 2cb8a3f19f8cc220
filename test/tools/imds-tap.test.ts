/** The metadata server on a VM's tap device: who reaches it, how far its answers travel, and by which port root is known. */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { until } from '../until.ts';

const run = promisify(execFile);
const scripts = join(import.meta.dirname, 'imds');
const skip = process.getuid?.() === 0 ? false : 'network namespaces take root';

/** A namespace with the devices of two VMs, and what curl prints in one of its networks: a status, or why there is none. */
const networkOf = async (t: TestContext, ...hops: readonly string[]) => {
  const directory = mkdtempSync(join(tmpdir(), 'ph-tap-'));
  const server = [process.execPath, join(scripts, 'tap-server.ts'), directory, ...hops];
  const child = spawn('unshare', ['--net', 'sh', join(scripts, 'tap.sh'), ...server], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.after(async () => {
    child.stdin.end();
    if (child.exitCode === null) await once(child, 'exit');
    rmSync(directory, { recursive: true });
  });
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  await until('it listens', () => said.includes('listening'), 60_000);
  const [vm = '', far = '', other = ''] = said.split(/\s/);
  const curlIn = async (pid: string, ...args: readonly string[]): Promise<string> => {
    const command = ['--silent', '--connect-timeout', '1', '--output', '/dev/null', '--write-out', '%{http_code}'];
    try {
      return (await run('nsenter', ['--net', '--target', pid, 'curl', ...command, ...args])).stdout;
    } catch (error) {
      return `curl ${(error as { readonly code: number }).code}`;
    }
  };
  const bootAgain = async (): Promise<void> => {
    const times = (): number => said.split('listening').length;
    const before = times();
    child.stdin.write('boot\n');
    // Less than connections that say nothing are kept for.
    await until('it listens again', () => times() > before, 20_000);
  };
  return { vm, far, other, curlIn, bootAgain, cert: join(directory, 'cert.pem') };
};

const url = 'http://169.254.169.254/nocloud/meta-data';
const claim = (nonce: string, scheme: 'http' | 'https', ...more: readonly string[]): readonly string[] => [
  ...more,
  '--header',
  'content-type: application/json',
  '--data',
  JSON.stringify({ nonce: nonce.repeat(22) }),
  `${scheme}://169.254.169.254/porthole/v1/token`,
];
const notReached = /^curl (7|28)$/;

test('a metadata server on a tap device answers its VM, nobody else, and no machine behind it', { skip }, async (t) => {
  const { vm, far, other, curlIn, cert } = await networkOf(t);
  assert.equal(await curlIn(vm, url), '200');
  assert.match(await curlIn(other, url), notReached, "another VM's device leads elsewhere");
  assert.match(await curlIn(far, url), notReached, 'one hop is as far as answers travel');
  assert.equal(await curlIn(vm, ...claim('u', 'http')), '403');
  assert.equal(await curlIn(vm, ...claim('r', 'http', '--local-port', '600-1000')), '200', 'only root has such ports');
  const secure = url.replace('http', 'https');
  assert.equal(await curlIn(vm, '--cacert', cert, secure), '200');
  assert.equal(await curlIn(vm, secure), 'curl 60', 'nobody else is believed to be it');
  assert.match(await curlIn(other, '--cacert', cert, secure), notReached);
  assert.match(await curlIn(far, '--cacert', cert, secure), notReached);
  assert.equal(await curlIn(vm, ...claim('u', 'https', '--cacert', cert)), '403');
  assert.equal(await curlIn(vm, ...claim('r', 'https', '--cacert', cert, '--local-port', '600-1000')), '200');
});

test('a metadata server on a tap device answers as many hops away as it is told', { skip }, async (t) => {
  const { far, other, curlIn } = await networkOf(t, '2');
  assert.equal(await curlIn(far, url), '200');
  assert.match(await curlIn(other, url), notReached);
});

test('a metadata server on a tap device ends at a boot what the guest left open, and answers again', {
  skip,
}, async (t) => {
  const { vm, curlIn, bootAgain } = await networkOf(t);
  const script = 'exec 3<>/dev/tcp/169.254.169.254/80 && echo open && cat <&3';
  const left = spawn('nsenter', ['--net', '--target', vm, 'bash', '-c', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = once(left, 'exit');
  assert.equal(String((await once(left.stdout, 'data'))[0]), 'open\n');
  await bootAgain();
  await ended;
  assert.equal(await curlIn(vm, url), '200');
});
