import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import * as sys from './index.ts';

const ESRCH = 3;
const EBADF = 9;
const EINVAL = 22;

test('pidfdSendSignal reaches the process that was opened, and no other when it is gone', async () => {
  const child = spawn('sleep', ['60']);
  const pidfd = sys.pidfdOpen(child.pid!);
  assert.ok(pidfd >= 0);
  assert.equal(sys.pidfdEnded(pidfd), false);
  assert.equal(sys.pidfdSendSignal(pidfd, 0), 0);
  const exit = once(child, 'exit');
  assert.equal(sys.pidfdSendSignal(pidfd, 9), 0);
  assert.deepEqual(await exit, [null, 'SIGKILL']);
  assert.equal(sys.pidfdEnded(pidfd), true);
  assert.equal(sys.pidfdSendSignal(pidfd, 0), -ESRCH);
  sys.close(pidfd);
});

test('pidfdOpen answers the errno where there is no such process', () => {
  assert.equal(sys.pidfdOpen(2 ** 22 + 1), -ESRCH);
  assert.equal(sys.pidfdOpen(-1), -EINVAL);
  assert.equal(sys.pidfdSendSignal(-1, 0), -EBADF);
});
